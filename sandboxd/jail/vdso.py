"""
The vDSO's clocks without the cycle counter: its functions are overwritten by plain system calls.

Needed only where a policy takes RDTSC away (x86-64): the vDSO reads clocks with it, and every library that
asks for the time would crash. Costs one real system call per clock reading.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from sandboxd.errors import JailError
from sandboxd.jail import syscall_numbers
from sandboxd.jail.syscalls import step, syscall

_AT_SYSINFO_EHDR: Final = 33
_PAGE: Final = 4096
_SHT_DYNSYM: Final = 11
_CLOCKS: Final = {
    b"__vdso_clock_gettime": "clock_gettime",
    b"__vdso_clock_getres": "clock_getres",
    b"__vdso_gettimeofday": "gettimeofday",
    b"__vdso_time": "time",
}


def symbols(image: bytes) -> dict[bytes, int]:
    """Return the dynamic symbols of a 64-bit little-endian ELF image: name to offset. Pure."""
    (section_offset,) = struct.unpack_from("<Q", image, 40)
    entry_bytes, count = struct.unpack_from("<HH", image, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, section_offset + n * entry_bytes) for n in range(count)]
    found: dict[bytes, int] = {}
    for _name, kind, _flags, _address, offset, size, link, _info, _align, item_bytes in sections:
        if kind != _SHT_DYNSYM:
            continue
        strings = sections[link][4]
        for at in range(offset, offset + size, item_bytes):
            name, _kind, _other, _section, value, _size = struct.unpack_from("<IBBHQQ", image, at)
            text = image[strings + name : image.index(b"\0", strings + name)]
            if text and value:
                found[text] = value
    return found


def stub(call_number: int) -> bytes:
    """Return x86-64 code: ``mov eax, N; syscall; ret``. Pure."""
    return b"\xb8" + struct.pack("<I", call_number) + b"\x0f\x05\xc3"


def replace_by_system_calls() -> None:
    """
    Overwrite the clock functions of this process's vDSO. Nothing to do without a vDSO. Raises JailError.
    """
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    base = int(libc.getauxval(ctypes.c_ulong(_AT_SYSINFO_EHDR)))
    if not base:
        return
    header = ctypes.string_at(base, 64)
    (section_offset,) = struct.unpack_from("<Q", header, 40)
    entry_bytes, count = struct.unpack_from("<HH", header, 58)
    image = ctypes.string_at(base, section_offset + entry_bytes * count)
    table = symbols(image)
    size = -(-len(image) // _PAGE) * _PAGE
    with step("tsc", "the vDSO is sealed; boot with vdso=0 or without CONFIG_MSEAL_SYSTEM_MAPPINGS"):
        syscall("mprotect", base, size, 1 | 2)
        for name, call in _CLOCKS.items():
            number = syscall_numbers.number(call, "x86_64")
            if name in table and number is not None:
                code = stub(number)
                ctypes.memmove(base + table[name], code, len(code))
        syscall("mprotect", base, size, 1 | 4)
    if b"__vdso_clock_gettime" not in table:
        raise JailError("tsc", 0, "the vDSO has no clock_gettime that could be replaced")
