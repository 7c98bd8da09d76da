"""The tables of `docs/compatibility.md`, made from what was observed. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sandboxd.policy import capability_names
from sandboxd.policy.conformance import (
    CARRIED_ELSE,
    ERRNO_NAMES,
    STATUS_NAMES,
    TRANSPORTS,
    Answer,
    CallbackFacts,
    Conformance,
    FunctionFacts,
)

BEGIN: Final = "<!-- conformance: written by python -m tests.conformance -->"
END: Final = "<!-- end of conformance -->"

_INTRODUCTION: Final = """\
Each status here was observed: a guest of each ABI version makes one well-formed call of each function in each place,
once granted and once not, and a test fails when hostcore answers anything else. `-` means that the case does not exist;
where the versions differ, the answers are those of 0.1.0, 0.2.0 and 0.2.1.

* *HTTP* (over `ext_proc` and channels in shared memory): in `proxy_on_request_headers`, buffers in
  `proxy_on_request_body`.
* *TCP* (over `network ext_proc` and channels): in `proxy_on_downstream_data`.
* *root* (whatever the transport, also without any): in `proxy_on_tick`. *start*: in `proxy_on_configure`.
* *denied*: not granted by the policy. *address*: granted, with an address outside the guest's memory.
* *early*: whether `_initialize` may call it (`i`), and the allocator (`a`); the VM ends otherwise.
"""


def document(facts: Conformance) -> str:
    """Return the generated section, with its markers."""
    functions = facts.functions.values()
    names = {
        "Host functions": [f for f in functions if f.name in capability_names.HOST_FUNCTIONS],
        "WASI preview 1": [f for f in functions if f.name in capability_names.WASI_FUNCTIONS],
        "Beside the specification": [
            f for f in functions if f.name not in capability_names.HOST_FUNCTIONS | capability_names.WASI_FUNCTIONS
        ],
    }
    parts = [BEGIN, "", _INTRODUCTION]
    for title, rows in names.items():
        parts += [f"### {title}", "", *_function_table(rows, wasi=title.startswith("WASI")), ""]
    parts += ["### Foreign functions", "", *_foreign_table(facts), ""]
    parts += ["### Callbacks", "", *_callback_table(facts.callbacks.values()), "", END]
    return "\n".join(parts)


def replaced(text: str, section: str) -> str:
    """Return the document with the section between the markers replaced; ValueError: it has none."""
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin] + section + text[end:]


def _function_table(rows: Iterable[FunctionFacts], *, wasi: bool) -> list[str]:
    lines = [
        "| function | ABI | HTTP | TCP | root | start | denied | address | early | remarks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            f"`{row.name}`",
            _versions(row.versions),
            *(_answers(row.answers[scope], wasi=wasi) for scope in ("http", "tcp", "root", "start")),
            _answers(row.denied, wasi=wasi),
            _answers(row.wild, wasi=wasi),
            "i" * row.while_initialising + "a" * row.in_allocator or "-",
            _remark(row.name),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _foreign_table(facts: Conformance) -> list[str]:
    lines = ["| name | answer to a well-formed call |", "| --- | --- |"]
    return lines + [f"| `{name}` | {_answer(answer, STATUS_NAMES)} |" for name, answer in facts.foreign.items()]


def _callback_table(rows: Iterable[CallbackFacts]) -> list[str]:
    lines = [
        "| callback | ABI | `ext_proc` | `network ext_proc` | shm | denied |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        transports = {version: row.transports(version) for version in row.scopes}
        cells = [
            "never" if not any(transports.values()) else _yes(transports, transport)
            for transport in ("ext_proc", "network ext_proc", "shm")
        ]
        if row.name in capability_names.UNAVAILABLE and any(transports.values()):
            cells = ["not yet"] * 3
        denied = "not called" if row.withheld else "called"
        lines.append(f"| `{row.name}` | {_versions(row.versions)} | {' | '.join(cells)} | {denied} |")
    return lines


def _yes(transports: dict[str, tuple[str, ...]], transport: str) -> str:
    have = [version for version, names in transports.items() if transport in names]
    return "yes" if len(have) == len(transports) else ", ".join(have) or "-"


def _versions(versions: tuple[str, ...]) -> str:
    return "all" if len(versions) == 3 else ", ".join(versions)


def _answers(by_version: dict[str, Answer], *, wasi: bool) -> str:
    texts = [_answer(answer, ERRNO_NAMES if wasi else STATUS_NAMES) for answer in by_version.values()]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _answer(answer: Answer, names: dict[int, str]) -> str:
    if answer is None:
        return "-"
    return f"{answer} {names[answer]}" if isinstance(answer, int) else answer


def _remark(name: str) -> str:
    if name in capability_names.UNAVAILABLE:
        return "reaches nobody in this version"
    return CARRIED_ELSE.get(name, "")


assert set(TRANSPORTS) == {"http", "tcp", "root", "start"}
