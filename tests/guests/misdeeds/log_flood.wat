;; Writes 100000 log lines of 100 bytes for each request.
(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (local $count i32)
    (memory.fill (i32.const 1024) (i32.const 120) (i32.const 100))
    (loop $again
      (drop (call $log (i32.const 4) (i32.const 1024) (i32.const 100)))
      (local.set $count (i32.add (local.get $count) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $count) (i32.const 100000))))
    (i32.const 0)))
