;; Its allocator returns 0; the request gets `x-status`, the digit of what reading :path then returned (6).
(module
  (import "env" "proxy_get_header_map_value"
    (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value"
    (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 0))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (i32.store8 (i32.const 64) (i32.add (i32.const 48)
      (call $get_header (i32.const 0) (i32.const 16) (i32.const 5) (i32.const 8) (i32.const 12))))
    (call $add_header (i32.const 0) (i32.const 32) (i32.const 8) (i32.const 64) (i32.const 1)))
  (data (i32.const 16) ":path")
  (data (i32.const 32) "x-status"))
