;; Exports proxy_on_request_headers with ABI 0.1.0's two parameters under the marker of 0.2.1.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_request_headers") (param i32 i32) (result i32) (i32.const 0)))
