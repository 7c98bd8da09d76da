"""
An honest worker's life as a forked child of a test: all that the real one asks of the kernel, inside the
jail.

Runs VMs on several threads: traps of each kind, stack overflow, memory growth, new instances, an interrupted
loop, channels mapped at a fixed address, descriptors received, clocks of threads, tracebacks worded, threads
begun and ended, memory given back.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import wasmtime

PAGES = 16
WAT = """
(module
  (memory $ring (export "ring") 16 16) (memory (export "memory") 1 1000)
  (data (memory 1) (i32.const 0) "hello")
  (func (export "unreachable") unreachable)
  (func (export "outside") (result i32) (i32.load 1 (i32.const 0x7fffffff)))
  (func $recurse (export "recurse") (call $recurse))
  (func (export "divide") (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
  (func (export "spin") (loop $l (br $l)))
  (func (export "grow") (param i32) (result i32) (memory.grow 1 (local.get 0))))
"""
TRAPS = (("unreachable", ()), ("outside", ()), ("recurse", ()), ("divide", (0,)))

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)


def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.epoch_interruption = True
    config.memory_init_cow = False
    return wasmtime.Engine(config)


def artefact() -> bytes:
    """Compile elsewhere: in the parent, as the compiler process does."""
    return bytes(wasmtime.Module(engine(), WAT).serialize())


def send_channel(to_worker: socket.socket) -> None:
    """Send a channel memfd and an eventfd, as the supervisor does."""
    memory = os.memfd_create("channel", os.MFD_CLOEXEC)
    os.ftruncate(memory, PAGES * 65536)
    event = os.eventfd(0)
    socket.send_fds(to_worker, [b"open"], [memory, event])
    os.close(memory)
    os.close(event)


def live(control: socket.socket, serialized: bytes, lock: Callable[[], None]) -> str:
    """Run in the jail; returns ``well`` or raises."""
    own_engine = engine()
    module = wasmtime.Module.deserialize(own_engine, serialized)
    lock()
    _data, fds, _flags, _address = socket.recv_fds(control, 4096, 4)
    memory, event = fds
    assert os.fstat(memory).st_size == PAGES * 65536
    problems: list[str] = []
    threads = [threading.Thread(target=_vm, args=(own_engine, module, memory, event, problems)) for _ in range(3)]
    for thread in threads:
        thread.start()
    clocks = [time.pthread_getcpuclockid(thread.ident or 0) for thread in threads]
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
        own_engine.increment_epoch()
        for clock in clocks:
            _read_clock(clock)
    assert os.eventfd_read(event) == 3
    mmap.mmap(memory, 65536).close()
    blocks = [bytearray(40_000_000) for _ in range(3)]
    blocks[0].extend(bytes(40_000_000))
    del blocks
    control.sendall(b"half way")
    with os.fdopen(memory, "rb") as stream:
        assert len(stream.read(10)) == 10
    return "; ".join(problems) or "well"


def _read_clock(clock: int) -> None:
    with contextlib.suppress(OSError):  # the thread may have ended
        time.clock_gettime(clock)


def _vm(own_engine: Any, module: Any, memory: int, event: int, problems: list[str]) -> None:
    try:
        for _ in range(3):
            _instance(own_engine, module, memory)
        os.eventfd_write(event, 1)
    except BaseException:
        problems.append(traceback.format_exc())


def _instance(own_engine: Any, module: Any, memory: int) -> None:
    store = wasmtime.Store(own_engine)
    store.set_epoch_deadline(3)
    exports = wasmtime.Instance(store, module, []).exports(store)
    base = ctypes.cast(exports["ring"].data_ptr(store), ctypes.c_void_p).value
    assert libc.mmap(base, PAGES * 65536, 3, 0x11, memory, 0) == base
    for name, arguments in TRAPS:
        try:
            exports[name](store, *arguments)
        except wasmtime.Trap as trap:
            "".join(traceback.format_exception(trap))
        else:
            raise AssertionError(f"{name} did not trap")
    assert exports["grow"](store, 50) == 1
    assert _trap_of(exports["spin"], store) is wasmtime.TrapCode.INTERRUPT


def _trap_of(function: Any, store: Any) -> Any:
    try:
        function(store)
    except wasmtime.Trap as trap:
        return trap.trap_code
    raise AssertionError("the loop ended")
