;; Exports no proxy_abi_version_* marker.
(module
  (memory (export "memory") 1)
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768)))
