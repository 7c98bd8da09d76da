"""The memory that the VMs of one tenant share: shared data and queues. The trusted side makes it and never reads it."""

from __future__ import annotations

import os
import weakref

from sandboxd import limits
from sandboxd.channel.memfd import create_shared_region


class SharedRegion:
    """
    One tenant's region. It outlives workers and reloads, and closes itself when nobody holds it any more.

    Args:
        size: bytes; a multiple of 4096 within `limits`.
    """

    def __init__(self, size: int = limits.DEFAULT_SHARED_BYTES) -> None:
        self.fd = create_shared_region(size)
        weakref.finalize(self, os.close, self.fd)
