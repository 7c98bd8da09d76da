"""
A bounded reader of the WebAssembly binary format's primitives.

Pure. The input is hostile: every read is checked, every count is capped by the caller, and the only exception
is `ModuleRejected`, which names the part of the file and the byte.
"""

from __future__ import annotations

from typing import NoReturn

from sandboxd.errors import ModuleRejected

MAX_NAME_BYTES = 100_000
"""One name; the engine's own cap."""

_VALUE_TYPES = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
}


class Reader:
    """
    Reads ``data[position:end]``.

    Args:
        data: the whole file.
        position: where to begin.
        end: where to stop.
        part: what is read, for error texts, such as ``export section``.
    """

    __slots__ = ("data", "end", "part", "position")

    def __init__(self, data: bytes, position: int, end: int, part: str) -> None:
        self.data = data
        self.position = position
        self.end = end
        self.part = part

    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        """Raise `ModuleRejected` for the byte ``at``, or for where the reader stands."""
        raise ModuleRejected(f"wasm binary: {self.part}, byte {self.position if at is None else at}: {problem}")

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.end - self.position

    def byte(self) -> int:
        """Read one byte."""
        if self.position >= self.end:
            self.fail("ends too early")
        value = self.data[self.position]
        self.position += 1
        return value

    def u32(self) -> int:
        """Read an unsigned LEB128 number of at most 32 bits and 5 bytes."""
        at, value = self.position, 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                break
        else:
            self.fail("number is longer than 5 bytes", at)
        if value >> 32:
            self.fail("number does not fit in 32 bits", at)
        return value

    def count(self, what: str, limit: int) -> int:
        """Read the length of a vector, at most ``limit`` and at most the bytes that are left."""
        at = self.position
        value = self.u32()
        if value > limit:
            self.fail(f"{value} {what}, at most {limit} are accepted", at)
        if value > self.left:
            self.fail(f"{value} {what} do not fit in the {self.left} bytes that follow", at)
        return value

    def skip(self, length: int) -> None:
        """Step over ``length`` bytes."""
        if length > self.left:
            self.fail(f"{length} bytes are announced and {self.left} follow")
        self.position += length

    def name(self) -> str:
        """Read a name: a length and UTF-8."""
        at = self.position
        length = self.u32()
        if length > MAX_NAME_BYTES:
            self.fail(f"name of {length} bytes, at most {MAX_NAME_BYTES} are accepted", at)
        start = self.position
        self.skip(length)
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError:
            self.fail("name is not UTF-8", at)

    def value_type(self) -> str:
        """Read a value type."""
        at = self.position
        code = self.byte()
        if code not in _VALUE_TYPES:
            self.fail(f"value type 0x{code:02x} is not supported", at)
        return _VALUE_TYPES[code]
