"""Differences between sandboxd and Envoy's own filter that are allowed: each listed, explained, and still there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

COMPATIBILITY = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"


@dataclass(frozen=True)
class Known:
    """Fields that may differ in some cases; shell-like patterns."""

    code: str
    """The heading of its explanation in docs/compatibility.md."""
    fields: tuple[str, ...]
    cases: tuple[str, ...]
    """Of ``KIND/CASE``."""

    def covers(self, case: str, field: str) -> bool:
        """Tell whether a field may differ."""
        wanted = ((field, self.fields), (case, self.cases))
        return all(any(fnmatchcase(name, pattern) for pattern in patterns) for name, patterns in wanted)


class Ledger:
    """Compares, and keeps what was met."""

    def __init__(self, known: Sequence[Known]) -> None:
        self._known = known
        self.compared = 0
        self.met: set[str] = set()

    def compare(self, case: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
        """Fail if two outcomes of the same fields differ and nothing allows it."""
        self.compared += 1
        assert ours.keys() == theirs.keys()
        differ = {field: (ours[field], theirs[field]) for field in ours if ours[field] != theirs[field]}
        for known in self._known:
            listed = {field for field in differ if known.covers(case, field)}
            self.met |= {known.code} if listed else set()
            differ = {field: values for field, values in differ.items() if field not in listed}

        assert not differ, f"{case}: differs (sandboxd, Envoy) and is not in KNOWN_DIFFERENCES"

    def never_met(self) -> set[str]:
        """Return the codes of differences that have gone."""
        return {known.code for known in self._known} - self.met


def unexplained(known: Sequence[Known], letter: str) -> Mapping[str, str]:
    """Return what docs/compatibility.md and the table do not both name; headings are ``### LETTER<number>``."""
    headings = set(re.findall(rf"^### ({letter}\d+)\b", COMPATIBILITY.read_text(), re.MULTILINE))
    codes = {difference.code for difference in known}
    return {code: "not explained" if code in codes else "not in the table" for code in headings ^ codes}
