"""A guest that counts in shared data: read, add one, write with the number that was read; again if that failed."""

from __future__ import annotations

from typing import Final

_WAT: Final = """(module
  (import "env" "proxy_get_shared_data" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 2048))
  (data (i32.const 1024) "counter")
  (func $increment (local $status i32)
    (loop $again
      (i64.store (i32.const 2048) (i64.const 0))
      (i32.store (i32.const 72) (i32.const 0))
      (local.set $status
        (call $get (i32.const 1024) (i32.const 7) (i32.const 64) (i32.const 68) (i32.const 72)))
      (if (i32.gt_u (local.get $status) (i32.const 1)) (then unreachable))
      (i64.store (i32.const 2048) (i64.add (i64.load (i32.const 2048)) (i64.const 1)))
      (local.set $status
        (call $set (i32.const 1024) (i32.const 7) (i32.const 2048) (i32.const 8) (i32.load (i32.const 72))))
      (br_if $again (i32.eq (local.get $status) (i32.const 8)))
      (if (local.get $status) (then unreachable))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $n i32)
    (local.set $n (i32.const %TIMES%))
    (loop $l
      (call $increment)
      (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (i32.const 0)))"""


def counter_wat(times: int) -> str:
    """Return the guest as text; each request adds so often, and a status that must not be traps."""
    return _WAT.replace("%TIMES%", str(times))
