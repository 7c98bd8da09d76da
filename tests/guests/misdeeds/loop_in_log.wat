;; Never returns from proxy_on_log of a stream or of the plugin.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_log") (param i32)
    (loop $again (br $again))))
