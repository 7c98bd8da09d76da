;; Imports a host function that no ABI version has.
(module
  (import "env" "proxy_open_the_pod_bay_doors" (func (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768)))
