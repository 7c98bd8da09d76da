"""All that plugins can keep busy with, at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tests.bench import soak_calls, soak_scenes, soak_tcp
from tests.bench.soak_scenes import Part


@contextlib.contextmanager
def scene() -> Iterator[Sequence[Part]]:
    """Run what the parts need, and give them, for the length of a ``with`` block."""
    with soak_calls.part() as calls, soak_tcp.part() as tcp:
        yield (soak_scenes.BUSY, calls, tcp)
