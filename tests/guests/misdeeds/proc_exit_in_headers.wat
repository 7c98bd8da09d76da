;; Calls WASI proc_exit; a host that returns from it lets the request through with `x-after-exit: yes`.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "env" "proxy_add_header_map_value"
    (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $exit (i32.const 1))
    (call $add_header (i32.const 0) (i32.const 16) (i32.const 12) (i32.const 32) (i32.const 3)))
  (data (i32.const 16) "x-after-exit")
  (data (i32.const 32) "yes"))
