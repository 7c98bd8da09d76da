;; Reads a header map from its wasm start section, where only logging and WASI are allowed: must trap.
(module
  (import "env" "proxy_get_header_map_size" (func $get_size (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func $start (drop (call $get_size (i32.const 0) (i32.const 16))))
  (start $start))
