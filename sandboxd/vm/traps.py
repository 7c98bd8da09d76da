"""
Why a guest's VM ended: the engine's trap and error objects turned into one value.

Imports wasmtime: for the worker only. Names in a backtrace come from the guest's own binary and are cleaned
here.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any, Final

from wasmtime import TrapCode
from wasmtime import _bindings as capi

from sandboxd.errors import GuestError

MAX_TEXT_BYTES: Final = 4096
MAX_MESSAGE_BYTES: Final = 1024
MAX_FRAMES: Final = 20
MAX_FRAME_NAME: Final = 200


class FailureCause(enum.IntEnum):
    """Why a VM failed; the numbers are those of the control protocol."""

    TRAP = 1
    CPU_LIMIT = 2
    MEMORY_LIMIT = 3
    START_REFUSED = 4
    EXIT = 5
    ABI_VIOLATION = 6
    PROTOCOL = 7
    INTERNAL = 8
    HOST_CALL_LIMIT = 9


class GuestFailure(GuestError):  # noqa: N818 (a failed guest is no error of the program)
    """
    A VM is over: its guest trapped, went past a limit, or refused to start.

    Args:
        cause: whose doing it was.
        message: one line.
        backtrace: the innermost function first; cleaned names.
        code: the engine's trap code, None if it was no trap.
    """

    def __init__(
        self,
        cause: FailureCause,
        message: str,
        backtrace: tuple[str, ...] = (),
        code: TrapCode | None = None,
    ) -> None:
        self.cause = cause
        self.message = message
        self.backtrace = backtrace
        self.code = code
        super().__init__(message)

    @property
    def gave_up(self) -> bool:
        """Whether the guest ended itself: a panic or abort, which is how SDKs answer a failed allocation."""
        return self.code is TrapCode.UNREACHABLE

    @property
    def message_text(self) -> str:
        """The message alone, at most `MAX_MESSAGE_BYTES` of UTF-8."""
        return self.message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")

    @property
    def text(self) -> str:
        """Message and backtrace, at most `MAX_TEXT_BYTES` of UTF-8."""
        whole = "\n".join((self.message, *(f"  at {frame}" for frame in self.backtrace))).encode()
        return whole[:MAX_TEXT_BYTES].decode(errors="ignore")


VIOLATIONS: Final = {
    1: (
        FailureCause.ABI_VIOLATION,
        "a host call that is not allowed during initialisation or inside the allocator",
    ),
    2: (FailureCause.HOST_CALL_LIMIT, "more host calls in one event than the limit"),
    3: (FailureCause.MEMORY_LIMIT, "what the event produced does not fit in the host's heap for this VM"),
    4: (FailureCause.PROTOCOL, "the completion ring is broken"),
}
"""hostcore's own reasons for a trap (``enum violation``)."""

_MESSAGES: Final = {
    TrapCode.STACK_OVERFLOW: "call stack exhausted",
    TrapCode.MEMORY_OUT_OF_BOUNDS: "memory access out of bounds",
    TrapCode.UNREACHABLE: "unreachable code reached (a panic or abort of the guest)",
    TrapCode.INTERRUPT: "interrupted",
}


def failure(trap: int | None, error: int) -> GuestFailure:
    """
    Return what a call's trap or error pointer means, and free it. Exactly one of the two is not null.

    The epoch callback ends a call with an error of our own, and only for a call that is past its CPU limit.
    """
    if trap:
        return _from_trap(ctypes.cast(trap, ctypes.POINTER(capi.wasm_trap_t)))
    return _from_error(ctypes.cast(error, ctypes.POINTER(capi.wasmtime_error_t)))


def _from_trap(trap: Any) -> GuestFailure:
    try:
        code = _code(trap)
        message = _MESSAGES.get(code) if code else None
        if message is None:
            message = _first_line(_message(capi.wasm_trap_message, trap))
        return GuestFailure(FailureCause.TRAP, message, _frames(capi.wasm_trap_trace, trap), code)
    finally:
        capi.wasm_trap_delete(trap)


def _from_error(error: Any) -> GuestFailure:
    try:
        message = _message(capi.wasmtime_error_message, error)
        cause = FailureCause.CPU_LIMIT if CPU_LIMIT_TEXT in message else FailureCause.INTERNAL
        text = CPU_LIMIT_TEXT if cause is FailureCause.CPU_LIMIT else _first_line(message)
        return GuestFailure(cause, text, _frames(capi.wasmtime_error_wasm_trace, error))
    finally:
        capi.wasmtime_error_delete(error)


CPU_LIMIT_TEXT: Final = "CPU limit exceeded"
"""The epoch callback's error; nothing else in the engine has this text."""


def _code(trap: Any) -> TrapCode | None:
    code = capi.wasmtime_trap_code_t()
    return TrapCode(code.value) if capi.wasmtime_trap_code(trap, ctypes.byref(code)) else None


def _message(getter: Any, owner: Any) -> str:
    text = capi.wasm_byte_vec_t()
    getter(owner, ctypes.byref(text))
    try:
        return bytes(ctypes.string_at(text.data, text.size)).rstrip(b"\0").decode(errors="replace")
    finally:
        capi.wasm_byte_vec_delete(ctypes.byref(text))


def _first_line(text: str) -> str:
    """Return the part of the engine's message that is not the backtrace, which is read by itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = next((line for line in lines if line.startswith("wasm trap:")), lines[-1] if lines else "unknown")
    return clean(cause, 300)


def _frames(getter: Any, owner: Any) -> tuple[str, ...]:
    frames = capi.wasm_frame_vec_t(0, None)
    getter(owner, ctypes.byref(frames))
    try:
        return tuple(_frame(frames.data[index]) for index in range(min(frames.size, MAX_FRAMES)))
    finally:
        capi.wasm_frame_vec_delete(ctypes.byref(frames))


def _frame(frame: Any) -> str:
    name = capi.wasmtime_frame_func_name(frame)
    text = ctypes.string_at(name.contents.data, name.contents.size).decode(errors="replace") if name else "?"
    index, offset = capi.wasm_frame_func_index(frame), capi.wasm_frame_func_offset(frame)
    return f"{clean(text, MAX_FRAME_NAME)} (function {index}, +{offset:#x})"


def clean(text: str, limit: int) -> str:
    """Return hostile text without anything that is not printable, cut to ``limit`` characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])
