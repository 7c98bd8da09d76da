;; Never returns from proxy_on_context_create of a stream; its root context is created normally.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_context_create") (param i32 i32)
    (if (local.get 1) (then (loop $again (br $again))))))
