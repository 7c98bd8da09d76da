"""Commands that the documentation tells are commands that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sandboxd.cli import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?: {4}|\$ )?(?:/\S*/)?(sandboxd [a-z-]+.*)$", re.MULTILINE)
BLOCK = re.compile(r"^```sh\n(.*?)^```|((?:^ {4}sandboxd .*\n)+)", re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Page and command line of each, from blocks of code."""
    found = []
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text()):
            found += [(page.name, line) for line in COMMAND.findall(block[0])]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_in_the_documentation_is_one(page: str, line: str) -> None:
    """With these arguments; what follows a ``#`` is for the reader."""
    arguments = shlex.split(line, comments=True)
    assert callable(parser().parse_args(arguments[1:]).run), page


def test_there_are_some() -> None:
    """Of several pages."""
    assert len({page for page, _ in commands()}) >= 3
    assert len(commands()) >= 10
