"""Text that is cut to a number of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.text import cut_bytes


@given(st.text(), st.integers(4, 40))
def test_cut_text_fits_and_is_the_beginning(text: str, most: int) -> None:
    """Whole characters, and nothing is cut that fits."""
    clean = text.encode(errors="replace").decode()
    cut = cut_bytes(text, most)

    assert len(cut.encode()) <= most
    if len(clean.encode()) <= most:
        assert cut == clean
    else:
        assert cut.endswith(" ...")
        assert clean.startswith(cut.removesuffix(" ..."))
        assert len(cut.encode()) > most - 4
