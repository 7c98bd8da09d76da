"""What gRPC logs about streams that have ended is no error of ours."""

from __future__ import annotations

import logging

import pytest
from grpc._cython import cygrpc

from sandboxd.front import grpc_log


def test_a_reset_stream_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Anything else that gRPC says is still heard. That its text is this one shows in tests/escape/test_bodies.py."""
    logger = logging.getLogger(grpc_log.LOGGER)
    assert cygrpc._LOGGER is logger
    grpc_log.quieten()
    try:
        with caplog.at_level(logging.DEBUG):
            logger.error("ExecuteBatchError raised in core by servicer method [/x]", exc_info=ValueError("late"))
            logger.error("something else")
    finally:
        logger.removeFilter(grpc_log._is_news)

    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", "a stream had ended when it was written to"),
        ("ERROR", "something else"),
    ]
