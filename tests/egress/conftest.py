"""What the tests of the broker share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import upstream


@pytest.fixture(scope="module")
def known() -> Iterator[upstream.Upstream]:
    """Return servers that do what is asked of them."""
    with upstream.running() as found:
        yield found
