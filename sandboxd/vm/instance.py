"""
One virtual machine: a store, the six instances, the channel's window, and the calls into hostcore.

With `raw_calls`, `window` and `callbacks` the only place with unchecked calls and raw addresses. Imports wasmtime:
for the worker only. A `Vm` belongs to the thread that made it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wasmtime import Store
from wasmtime import _bindings as capi

from sandboxd.errors import InternalError
from sandboxd.limits import DEFAULT_TABLE_ELEMENTS, WASM_PAGE_BYTES
from sandboxd.vm import window
from sandboxd.vm.artefacts import BLOB_NAMES
from sandboxd.vm.callbacks import Interrupt, SharedCalls, clock_function
from sandboxd.vm.hostcore_answers import MAX_QUESTION_BYTES, MEMORY_PAGES, STATUS, Delivered, VmStatus
from sandboxd.vm.plugin import LoadedPlugin
from sandboxd.vm.raw_calls import VALUE_BYTES, Function, address, call_unchecked, extern, memory_data_size
from sandboxd.vm.traps import FailureCause, GuestFailure, failure


def _nobody(_question: bytes) -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class SharedRegion:
    """The tenant's shared region, and the VM's number in it: any that no other VM of the tenant has."""

    fd: int
    size: int
    number: int


class Vm:
    """
    A VM that is linked and mapped, but has run nothing yet.

    Args:
        plugin: what runs.
        channel_fd: the channel's memfd.
        ring_bytes: size of each of its rings.
        should_stop: see `sandboxd.vm.callbacks.Interrupt`.
        shared: the tenant's shared region.
        ask: answers questions for shared data that is kept elsewhere; empty: no answer.
        table_elements: limit of each table.

    Raises:
        WorkerError: the channel's or the region's file is not what it must be.
        GuestFailure: the modules do not link.
    """

    def __init__(
        self,
        plugin: LoadedPlugin,
        channel_fd: int,
        ring_bytes: int,
        should_stop: Callable[[], bool],
        shared: SharedRegion | None = None,
        *,
        ask: Callable[[bytes], bytes] = _nobody,
        table_elements: int = DEFAULT_TABLE_ELEMENTS,
    ) -> None:
        self._shared = shared
        self._shared_window: window.Window | None = None
        channel_bytes = window.checked_size(channel_fd, ring_bytes)
        self._trap = ctypes.c_void_p()
        self._trap_address = ctypes.addressof(self._trap)
        self._window: window.Window | None = None
        self._store = Store(plugin.engine)
        self._interrupt = Interrupt(self._store, should_stop)
        self._ask = ask
        self._shared_calls = SharedCalls(self._store, self._shared_call)
        try:
            self._limit_store(plugin, table_elements)
            self._context = ctypes.cast(self._store._context(), ctypes.c_void_p).value
            self._memory = self._new_memory()
            self._base = address(capi.wasmtime_memory_data(self._store._context(), ctypes.byref(self._memory)))
            self._instances: dict[str, Any] = {}
            for name in BLOB_NAMES:
                self._instances[name] = self._instantiate(plugin, name)
            self._guest_memory = self._export("adapter", "memory").of.memory
            self._poll = self._function("poll", 1)
            self._deliver = self._function("inbox_deliver", 2)
            self._inbox_buffer = self._function("inbox_buffer", 1)
            self._outbox = tuple(
                self._function(name, 1) for name in ("outbox_first", "outbox_first_len", "outbox_done")
            )
            self._window = window.Window(self._base, channel_fd, channel_bytes)
            if shared is not None:
                self._shared_window = window.Window(self._base, shared.fd, shared.size, window.SHARED_OFFSET)
            status = self._checked_range(self._call(self._function("status_ptr", 1)), STATUS.size)
            self._status = (ctypes.c_char * STATUS.size).from_address(self._base + status)
        except BaseException:
            self.close()
            raise

    def configure(self, blob: bytes) -> None:
        """
        Give hostcore its configuration.

        Raises:
            InternalError: hostcore does not accept it; the blob is ours.
        """
        pointer = self._call(self._function("config_buffer", 1), len(blob))
        if pointer == 0:
            raise InternalError(f"hostcore has no room for a configuration of {len(blob)} bytes")
        ctypes.memmove(self._base + self._checked_range(pointer, len(blob)), blob, len(blob))
        if code := self._call(self._function("vm_configure", 2), pointer, len(blob)):
            raise InternalError(f"hostcore refused configuration entry {code - 1000}")

    def start(self) -> None:
        """
        Run the guest's start: ``_initialize`` to ``proxy_on_configure``.

        Raises:
            GuestFailure: it trapped, went past its limit, or refused.
        """
        code = self._call(self._function("vm_start", 1))
        if code:
            name = {1: "proxy_on_vm_start", 2: "proxy_on_configure"}.get(code, f"vm_start ({code})")
            raise GuestFailure(FailureCause.START_REFUSED, f"{name} returned false")

    def poll(self, spin: int) -> int:
        """
        Process submissions until there is nothing left and ``spin`` empty looks have passed; returns
        ``POLL_*`` bits.

        Raises:
            GuestFailure: the guest's VM is over.
        """
        # The hot path: the same as _call(), with nothing looked up.
        values = self._poll.values
        values[0] = spin
        error = call_unchecked(self._context, self._poll.address, values, 1, self._trap_address)
        if error or self._trap.value:
            raise self._failure(error)
        return int(values[0] & 0xFFFFFFFF)

    def deliver(self, message: bytes) -> Delivered:
        """
        Run what the message says (`sandboxd.vm.messages`), outside any event of the client's; `poll` has to follow.

        ``Delivered.NO_ROOM``: hostcore has no memory for it, and nothing has happened.

        Raises:
            GuestFailure: the guest's VM is over.
        """
        pointer = self._call(self._inbox_buffer, len(message))
        if pointer == 0:
            return Delivered.NO_ROOM
        ctypes.memmove(self._base + self._checked_range(pointer, len(message)), message, len(message))
        return Delivered(self._call(self._deliver, pointer, len(message)))

    def take_request(self) -> bytes | None:
        """Take the oldest message off hostcore's outbox (`sandboxd.vm.messages`); None: there is none."""
        first, length, done = self._outbox
        pointer = self._call(first)
        if pointer == 0:
            return None
        size = self._call(length)
        message = ctypes.string_at(self._base + self._checked_range(pointer, size), size)
        self._call(done)
        return message

    def status(self) -> VmStatus:
        """Return hostcore's status."""
        return VmStatus._make(STATUS.unpack_from(self._status))

    def guest_memory_bytes(self) -> int:
        """Return the current size of the guest's memory."""
        return int(memory_data_size(self._context, ctypes.addressof(self._guest_memory)))

    def close(self) -> None:
        """
        Free everything; a second call does nothing.

        The channel is unmapped first: the engine may clear memory that it frees, and the client still reads
        the rings.
        """
        if self._window is not None:
            self._window.unmap()
        if self._shared_window is not None and self._shared is not None:
            self._shared_window.abandon_lock(self._shared.number)
            self._shared_window.unmap()
        self._store.close()
        self._interrupt.close()
        self._shared_calls.close()

    def _shared_call(self, at: int) -> int:
        length = int.from_bytes(ctypes.string_at(self._base + self._checked_range(at, 4), 4), "little")
        question = ctypes.string_at(
            self._base + self._checked_range(at + 4, min(length, MAX_QUESTION_BYTES)), min(length, MAX_QUESTION_BYTES)
        )
        answer = self._ask(question)
        if len(answer) > MAX_QUESTION_BYTES:
            return 0
        ctypes.memmove(self._base + self._checked_range(at + 4, MAX_QUESTION_BYTES), answer, len(answer))
        return len(answer)

    def _limit_store(self, plugin: LoadedPlugin, table_elements: int) -> None:
        # memory_size holds for each memory, and hostcore's is larger than most guests'. The guest's own bound
        # is the maximum that its binary declares (see wasm_rewrite).
        guest_bytes = plugin.manifest.memory_pages[1] * WASM_PAGE_BYTES
        self._store.set_limits(
            memory_size=max(guest_bytes, MEMORY_PAGES * WASM_PAGE_BYTES),
            table_elements=table_elements,
            instances=len(BLOB_NAMES),
            memories=2,
        )

    def _new_memory(self) -> Any:
        kind = ctypes.POINTER(capi.wasm_memorytype_t)()
        memory = capi.wasmtime_memory_t()
        self._check(
            capi.wasmtime_memorytype_new(MEMORY_PAGES, True, MEMORY_PAGES, False, False, 16, ctypes.byref(kind))
        )
        try:
            self._check(capi.wasmtime_memory_new(self._store._context(), kind, ctypes.byref(memory)))
        finally:
            capi.wasm_memorytype_delete(kind)
        return memory

    def _instantiate(self, plugin: LoadedPlugin, name: str) -> Any:
        loaded = plugin.modules[name]
        imports = (capi.wasmtime_extern_t * max(len(loaded.imports), 1))()
        for index, (module, item) in enumerate(loaded.imports):
            # The guest's imports are bound by position: names may repeat.
            found = self._export("trampolines", f"f{index}") if name == "guest" else self._resolve(name, module, item)
            ctypes.memmove(ctypes.addressof(imports[index]), ctypes.addressof(found), ctypes.sizeof(found))
        instance = capi.wasmtime_instance_t()
        error = capi.wasmtime_instance_new(
            self._store._context(),
            loaded.module.ptr(),
            imports,
            len(loaded.imports),
            ctypes.byref(instance),
            ctypes.cast(self._trap_address, ctypes.POINTER(ctypes.POINTER(capi.wasm_trap_t))),
        )
        self._check(error)
        return instance

    def _resolve(self, importer: str, module: str, item: str) -> Any:
        if module == "env" and item == "memory":
            return extern(memory=self._memory)
        if module == "host" and item == "clock_ns":
            return extern(func=clock_function(self._store))
        if module == "host" and item == "shared_call":
            return extern(func=self._shared_calls.function)
        if module == "guest":
            # Only the adapter sees the guest itself; everybody else sees the adapter.
            return self._export("guest" if importer == "adapter" else "adapter", item)
        if module in self._instances:
            return self._export(module, item)
        raise InternalError(f"artefact {importer}: import {module}.{item} has no source")

    def _export(self, instance: str, name: str) -> Any:
        found = capi.wasmtime_extern_t()
        text = name.encode()
        if not capi.wasmtime_instance_export_get(
            self._store._context(),
            ctypes.byref(self._instances[instance]),
            text,
            len(text),
            ctypes.byref(found),
        ):
            raise InternalError(f"artefact {instance} has no export {name}")
        return found

    def _function(self, name: str, count: int) -> Function:
        extern = self._export("hostcore", name)
        values = (ctypes.c_uint64 * (count * VALUE_BYTES // 8))()
        return Function(extern, ctypes.addressof(extern.of.func), values, count)

    def _call(self, function: Function, *arguments: int) -> int:
        for index, argument in enumerate(arguments):
            function.values[index * VALUE_BYTES // 8] = argument
        error = call_unchecked(self._context, function.address, function.values, function.count, self._trap_address)
        if error or self._trap.value:
            raise self._failure(error)
        return int(function.values[0] & 0xFFFFFFFF)

    def _check(self, error: Any) -> None:
        value = ctypes.cast(error, ctypes.c_void_p).value
        if value or self._trap.value:
            raise self._failure(value)

    def _failure(self, error: int | None) -> GuestFailure:
        trap, self._trap.value = self._trap.value, None
        return failure(trap, error or 0)

    def _checked_range(self, pointer: int, length: int) -> int:
        if pointer + length > MEMORY_PAGES * WASM_PAGE_BYTES:
            raise InternalError(f"hostcore gave an address outside its memory: {pointer:#x}")
        return pointer
