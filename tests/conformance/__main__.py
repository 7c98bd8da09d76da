"""
``python -m tests.conformance``: observe what hostcore does, and write it to ``sandboxd/policy/conformance.json`` and
``docs/compatibility.md``. ``--check`` writes nothing and fails if either is not up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sandboxd.policy import conformance
from tests.conformance import table
from tests.conformance.observe import observe

DOCUMENT = Path(__file__).parents[2] / "docs/compatibility.md"


def data_text() -> str:
    """Return what the data file must hold: one line for each name."""
    parts = []
    for title, rows in observe().items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        parts.append(f"{json.dumps(title)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    """Write or check both files."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is not up to date")
    args = parser.parse_args()
    stale = []
    fresh = data_text()
    if conformance.DATA.read_text() != fresh:
        stale.append(conformance.DATA)
        if not args.check:
            conformance.DATA.write_text(fresh)
    document = DOCUMENT.read_text()
    conformance.load.cache_clear()
    wanted = table.replaced(document, table.document(conformance.load()))
    if document != wanted:
        stale.append(DOCUMENT)
        if not args.check:
            DOCUMENT.write_text(wanted)
    for path in stale:
        print(f"{path} " + ("is not up to date: run python -m tests.conformance" if args.check else "written"))
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
