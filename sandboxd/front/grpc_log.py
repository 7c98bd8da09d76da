"""What gRPC says in the log of a front about streams that proxies end."""

from __future__ import annotations

import logging

LOGGER = "grpc._cython.cygrpc"
_ENDED = "ExecuteBatchError raised in core by servicer method"

_log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    if not str(record.msg).startswith(_ENDED):
        return True
    _log.debug("a stream had ended when it was written to")
    return False


def quieten() -> None:
    """
    Let gRPC tell of a stream that the proxy has reset at debug level.

    If a reply is on its way at that moment, gRPC logs an error with a traceback. It is nobody's fault, any client can
    bring it about, and the stream's end is dealt with as any other.
    """
    logging.getLogger(LOGGER).addFilter(_is_news)
