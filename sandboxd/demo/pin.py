"""
`python -m sandboxd.demo.pin [POLICY...]`: write the digests of the modules as they are now into policy files.

For development: after a guest was rebuilt. A digest is there so that a changed module is noticed; look at
what changed before pinning it. Without arguments: the demo's own policies.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from sandboxd.demo.__main__ import POLICIES

_MODULE = re.compile(r"(?P<head>file: *(?P<file>\S+)\n\s*sha256: *)(?P<digest>[0-9a-f]{64})")


def pinned(text: str, directory: Path) -> str:
    """Return a policy's text with each ``sha256`` that follows a ``file`` set to that file's digest."""

    def fresh(match: re.Match[str]) -> str:
        return match["head"] + hashlib.sha256((directory / match["file"]).read_bytes()).hexdigest()

    return _MODULE.sub(fresh, text)


def main(arguments: list[str]) -> int:
    """Pin the given files, or the demo's."""
    for path in [Path(name) for name in arguments] or sorted(POLICIES.glob("*.yaml")):
        before = path.read_text()
        after = pinned(before, path.parent)
        if after != before:
            path.write_text(after)
            print(f"{path}: new digest")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
