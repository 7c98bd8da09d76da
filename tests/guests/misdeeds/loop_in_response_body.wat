;; Never returns from proxy_on_response_body.
(module
  ;; Not called; but only a module that could read bodies is shown any.
  (import "env" "proxy_get_buffer_bytes" (func (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
    (loop $again (br $again))
    (unreachable)))
