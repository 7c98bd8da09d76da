;; Grows a table until the host refuses; goes on normally if it survives.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32) (i32.const 32768))
  (table $table 1 funcref)
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (loop $grow
      (br_if $grow (i32.ne (table.grow $table (ref.null func) (i32.const 65536)) (i32.const -1))))
    (i32.const 0)))
