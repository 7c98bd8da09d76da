"""Text that others wrote, made fit for where it goes. Pure; anybody may import this module."""

from __future__ import annotations

from typing import Final

_CUT: Final = " ..."


def cut_bytes(text: str, most: int) -> str:
    """
    Return a text of at most ``most`` bytes of UTF-8, 4 or more; one that is longer is cut and ends in ``...``.

    What has no UTF-8, such as a surrogate, becomes ``?``.
    """
    data = text.encode(errors="replace")
    if len(data) > most:
        return data[: most - len(_CUT)].decode(errors="ignore") + _CUT
    return data.decode()
