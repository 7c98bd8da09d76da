;; Returns the action 0x7fffffff from request headers and -1 from response headers: counts as Pause.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (i32.const 0x7fffffff))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (i32.const -1)))
