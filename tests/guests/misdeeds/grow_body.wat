;; Appends to each body 1 MiB at its first chunk, twice as much at the next, and so on up to 64 MiB a chunk.
(module
  (import "env" "proxy_set_buffer_bytes"
    (func $set_buffer (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 17)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (global $times (mut i32) (i32.const 1))
  (func $append (param $buffer i32) (result i32)
    (local $count i32)
    (loop $again
      (drop (call $set_buffer (local.get $buffer) (i32.const 0x7fffffff) (i32.const 0)
        (i32.const 65536) (i32.const 1048576)))
      (local.set $count (i32.add (local.get $count) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $count) (global.get $times))))
    (if (i32.lt_u (global.get $times) (i32.const 64))
      (then (global.set $times (i32.shl (global.get $times) (i32.const 1)))))
    (i32.const 0))
  (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (call $append (i32.const 0)))
  (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (call $append (i32.const 1))))
