;; Sets 100000 properties of 1 KiB for each request.
(module
  (import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (local $count i32)
    (loop $again
      ;; the path is "property-" and four bytes that count, each made printable
      (i32.store (i32.const 1033) (i32.add (i32.const 0x21212121)
        (i32.or
          (i32.or (i32.and (local.get $count) (i32.const 0x3f))
            (i32.shl (i32.and (local.get $count) (i32.const 0xfc0)) (i32.const 2)))
          (i32.shl (i32.and (local.get $count) (i32.const 0x3f000)) (i32.const 4)))))
      (drop (call $set_property (i32.const 1024) (i32.const 13) (i32.const 2048) (i32.const 1024)))
      (local.set $count (i32.add (local.get $count) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $count) (i32.const 100000))))
    (i32.const 0))
  (data (i32.const 1024) "property-...."))
