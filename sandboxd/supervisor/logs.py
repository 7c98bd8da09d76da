"""
Log records of the fronts, through ``multiprocessing-logging``: forked processes put them on a queue, the
supervisor writes.

Only trusted processes may be forked from here: what comes out of the queue is unpickled.
"""

from __future__ import annotations

import logging

from multiprocessing_logging import MultiProcessingHandler, install_mp_handler


class FrontLogs:
    """
    Installs the queue behind the root logger's handlers; make it after `sandboxd.log.configure` and before
    forking.
    """

    def __init__(self) -> None:
        install_mp_handler()
        root = logging.getLogger()
        self._handlers = [handler for handler in root.handlers if isinstance(handler, MultiProcessingHandler)]

    def fronts_can_be_forked(self) -> None:
        """
        Write the supervisor's own records directly from now on; call after the zygote is forked.

        A front that is killed while it writes to the queue may leave the queue's lock taken for ever. The
        supervisor must be able to log, and to end, all the same.
        """
        root = logging.getLogger()
        for handler in self._handlers:
            root.removeHandler(handler)
            root.addHandler(handler.sub_handler)

    def close(self) -> None:
        """
        Write what the fronts have said last, and end the receiving threads; takes 5 seconds at the very most.
        """
        for handler in self._handlers:
            stream_handler = handler.sub_handler
            handler.queue.cancel_join_thread()
            # `close` closes the handler below as well; the supervisor still has things to say.
            handler.sub_handler = _Forward(stream_handler)
            handler.close()


class _Forward(logging.Handler):
    """Passes records on to a handler that outlives it."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        self._target.emit(record)
