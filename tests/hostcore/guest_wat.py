"""
Guests written by the test: each callback is a list of host calls, and every result comes back as a log line.

A call is a tuple: the host function's name and its arguments. An int is itself, text or bytes become an
address and a length, `OUT` becomes the addresses of two result words. After each call the guest logs (level
trace) the status as one byte, followed by the bytes that the result words point to, or by the two words
themselves for `OUT_WORDS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sandboxd.vm import abi

OUT: Final = object()
"""Two out-parameters: address and size of returned bytes."""
OUT_WORD: Final = object()
"""One out-parameter of 8 bytes, logged whole."""
OUT_WORDS: Final = object()
"""Two out-parameters of 4 bytes, logged both."""

OUT_CAS: Final = object()
"""Three out-parameters: address and size of returned bytes, and a word. The bytes are reported, then the word."""

_OUT_AT: Final = 64
_REPORT_AT: Final = 1024
_TEXT_AT: Final = 0x10000
_HEAP_AT: Final = 0x80000
_PAGES: Final = 64

_CALLBACKS: Final = {
    name: (" ".join(kind.params), " ".join(kind.results))
    for name, kind in {**abi.CALLBACKS, "_initialize": abi.FuncType(), **abi.ALLOCATORS}.items()
}
_MODULES: Final = {"wasi_snapshot_preview1": abi.WASI_FUNCTIONS, "env": abi.IMPORT_MODULES["env"]}
_TYPES: Final = {name: (module, kind) for module, kinds in _MODULES.items() for name, kind in kinds.items()}
_DEFAULT_TRUE: Final = frozenset({"proxy_on_vm_start", "proxy_on_configure", "proxy_on_done"})
_NO_RESULT: Final = frozenset(name for name, (_, kind) in _TYPES.items() if not kind.results)

Call = tuple[Any, ...]


class _Texts:
    """The guest's data segment."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._places: dict[bytes, int] = {}

    def place(self, text: bytes) -> int:
        if text not in self._places:
            self._places[text] = _TEXT_AT + len(self.data)
            self.data += text
        return self._places[text]


def _arguments(call: Call, texts: _Texts) -> tuple[list[str], str]:
    """Return the operands, and how the results are reported."""
    operands: list[str] = []
    report = "none"
    for argument in call[1:]:
        if isinstance(argument, bool) or argument is None:
            raise TypeError(f"{argument!r} is no argument of a host call")
        if isinstance(argument, int):
            kind = _TYPES[call[0]][1].params[len(operands)]
            operands.append(f"({kind}.const {argument})")
        elif isinstance(argument, str | bytes):
            text = argument.encode() if isinstance(argument, str) else argument
            operands += [f"(i32.const {texts.place(text)})", f"(i32.const {len(text)})"]
        elif argument is OUT_WORD:
            report = "word"
            operands.append(f"(i32.const {_OUT_AT})")
        elif argument is OUT_CAS:
            report = "cas"
            operands += [f"(i32.const {_OUT_AT + offset})" for offset in (0, 4, 8)]
        else:
            report = "bytes" if argument is OUT else "words"
            operands += [f"(i32.const {_OUT_AT})", f"(i32.const {_OUT_AT + 4})"]
    return operands, report


def _step(call: Call, texts: _Texts) -> str:
    if call[0] == "loop":  # the given calls, so many times, without reports
        _, times, *calls = call
        body = " ".join(f"(drop (call ${inner[0]} {' '.join(_arguments(inner, texts)[0])}))" for inner in calls)
        return (
            f"(local.set $n (i32.const {times})) (loop $l {body}"
            " (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
        )
    if call[0] == "trap":
        return "unreachable"
    operands, report = _arguments(call, texts)
    invoke = f"(call ${call[0]} {' '.join(operands)})"
    if call[0] in _NO_RESULT:
        return invoke
    clear = f"(i64.store (i32.const {_OUT_AT}) (i64.const 0))"
    return f"{clear} (call $report_{report} {invoke})"


def _names(steps: Iterable[Call]) -> Iterable[str]:
    for call in steps:
        if call[0] == "loop":
            yield from (inner[0] for inner in call[2:])
        elif call[0] != "trap":
            yield call[0]


def _import(name: str) -> str:
    module, kind = _TYPES[name]
    result = "(result i32)" if kind.results else ""
    return f'(import "{module}" "{name}" (func ${name} (param {" ".join(kind.params)}) {result}))'


def guest(
    callbacks: Mapping[str, Iterable[Call] | tuple[int, Iterable[Call]]],
    *,
    marker: str = "proxy_abi_version_0_2_1",
) -> str:
    """
    Return the module's text.

    Args:
        callbacks: calls by the callback's name (without ``proxy_on_`` for those that have it), or a pair of
            the callback's result and its calls. The allocator may be given as ``memory_allocate``.
        marker: the ABI version's export.
    """
    texts = _Texts()
    functions: dict[str, tuple[int | None, list[Call]]] = {}
    for short, value in callbacks.items():
        name = f"proxy_on_{short}" if f"proxy_on_{short}" in _CALLBACKS else short
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int):
            functions[name] = (value[0], list(value[1]))
        else:
            functions[name] = (None, list(value))
    imports = {"proxy_log": _import("proxy_log")}
    bodies = [_function(name, result, steps, texts, marker) for name, (result, steps) in functions.items()]
    for _, steps in functions.values():
        for name in _names(steps):
            imports.setdefault(name, _import(name))
    if "proxy_on_memory_allocate" not in functions:
        bodies.append(_ALLOCATOR)
    data = "".join(f"\\{byte:02x}" for byte in texts.data)
    return "\n".join(
        [
            "(module",
            *imports.values(),
            f'(memory (export "memory") {_PAGES})',
            f"(global $heap (mut i32) (i32.const {_HEAP_AT}))",
            f'(func (export "{marker}"))',
            _REPORTS,
            *bodies,
            f'(data (i32.const {_TEXT_AT}) "{data}")',
            ")",
        ]
    )


def _function(name: str, result: int | None, steps: list[Call], texts: _Texts, marker: str) -> str:
    params, results = _CALLBACKS[name]
    if marker.endswith("0_1_0") and name.endswith("_headers"):
        params = "i32 i32"
    body = " ".join(_step(call, texts) for call in steps)
    value = ""
    if results:
        if name == "proxy_on_memory_allocate":
            value = f"(i32.const {_HEAP_AT if result is None else result})"
        else:
            value = f"(i32.const {int(name in _DEFAULT_TRUE) if result is None else result})"
    signature = (f"(param {params})" if params else "") + (f" (result {results})" if results else "")
    return f'(func (export "{name}") {signature} (local $n i32) {body} {value})'


# A bump allocator that starts again when half of the memory is used: nothing lives longer than a callback.
_ALLOCATOR: Final = f"""
(func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (local $at i32)
  (if (i32.gt_u (i32.add (global.get $heap) (local.get $size)) (i32.const {_PAGES * 65536}))
    (then (global.set $heap (i32.const {_HEAP_AT}))))
  (local.set $at (global.get $heap))
  (global.set $heap
    (i32.and (i32.add (i32.add (local.get $at) (local.get $size)) (i32.const 15)) (i32.const -16)))
  (local.get $at))"""

_REPORTS: Final = f"""
(func $report_cas (param $status i32) (local $size i32)
  (local.set $size (i32.load (i32.const {_OUT_AT + 4})))
  (i32.store8 (i32.const {_REPORT_AT}) (local.get $status))
  (memory.copy (i32.const {_REPORT_AT + 1}) (i32.load (i32.const {_OUT_AT})) (local.get $size))
  (i32.store (i32.add (i32.const {_REPORT_AT + 1}) (local.get $size)) (i32.load (i32.const {_OUT_AT + 8})))
  (drop (call $proxy_log (i32.const 0) (i32.const {_REPORT_AT}) (i32.add (i32.const 5) (local.get $size)))))
(func $report_none (param $status i32)
  (i32.store8 (i32.const {_REPORT_AT}) (local.get $status))
  (drop (call $proxy_log (i32.const 0) (i32.const {_REPORT_AT}) (i32.const 1))))
(func $report_word (param $status i32)
  (i32.store8 (i32.const {_REPORT_AT}) (local.get $status))
  (i64.store (i32.const {_REPORT_AT + 1}) (i64.load (i32.const {_OUT_AT})))
  (drop (call $proxy_log (i32.const 0) (i32.const {_REPORT_AT}) (i32.const 9))))
(func $report_words (param $status i32) (call $report_word (local.get $status)))
(func $report_bytes (param $status i32)
  (i32.store8 (i32.const {_REPORT_AT}) (local.get $status))
  (memory.copy (i32.const {_REPORT_AT + 1}) (i32.load (i32.const {_OUT_AT}))
    (i32.load (i32.const {_OUT_AT + 4})))
  (drop (call $proxy_log (i32.const 0) (i32.const {_REPORT_AT})
    (i32.add (i32.const 1) (i32.load (i32.const {_OUT_AT + 4}))))))"""
