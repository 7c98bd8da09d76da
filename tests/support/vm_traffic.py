"""A guest's bundle, and one stream of requests through its VM, for tests of the worker."""

from __future__ import annotations

import time
from typing import Any

from sandboxd.channel import layout, pairs
from sandboxd.vm.artefacts import Bundle
from tests.support.guests import GUESTS
from tests.support.modules import bundle
from tests.support.worker_process import OneVm

REQUEST = pairs.encode([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"x")])
RESPONSE = pairs.encode([(b":status", b"200")])


def guest_bundle(path: str) -> Bundle:
    """Return the bundle of a guest."""
    return bundle((GUESTS / f"{path}.wasm").read_bytes())


def request(one: OneVm) -> Any:
    """Open a stream and send request headers; returns the verdict."""
    stream = one.vm.client.open_stream(b"", time.time_ns())
    return one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)


def whole_stream(one: OneVm) -> None:
    """Send every event of a stream."""
    stream = one.vm.client.open_stream(b"", time.time_ns())
    for kind in (layout.REQUEST_HEADERS, layout.REQUEST_BODY, layout.REQUEST_TRAILERS):
        one.vm.call(stream, kind, b"body" if kind == layout.REQUEST_BODY else REQUEST)
    for kind in (layout.RESPONSE_HEADERS, layout.RESPONSE_BODY, layout.RESPONSE_TRAILERS):
        one.vm.call(stream, kind, b"body" if kind == layout.RESPONSE_BODY else RESPONSE)
    one.vm.close_stream(stream)
