"""What the tests of the front share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.front_rig import Rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A front with its fake VMs, served on a socket."""
    made = Rig(tmp_path)
    await made.start()
    yield made
    await made.close()
