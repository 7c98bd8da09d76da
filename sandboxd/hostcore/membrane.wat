;; The only code that touches both memories: copies between the guest's and hostcore's.
;;
;; Out-of-range accesses trap; hostcore checks every guest range before it calls, so a trap here is a bug of hostcore.
;; Short copies, which nearly all are, are done in place: memory.copy is a call into the engine that costs more than the
;; copy. From 8 bytes on they go by eights, the last of which may overlap the one before.
(module
  (import "guest" "memory" (memory $guest 0))
  (import "env" "memory" (memory $host 0))

  ;; read(guest address, hostcore address, length)
  (func (export "read") (param $from i32) (param $to i32) (param $len i32) (local $last i32) (local $at i32)
    (if (i32.gt_u (local.get $len) (i32.const 64))
      (then
        (memory.copy $host $guest (local.get $to) (local.get $from) (local.get $len))
        (return)))
    (if (i32.lt_u (local.get $len) (i32.const 8))
      (then
        (block $done
          (loop $bytes
            (br_if $done (i32.eq (local.get $at) (local.get $len)))
            (i32.store8 $host (i32.add (local.get $to) (local.get $at))
              (i32.load8_u $guest (i32.add (local.get $from) (local.get $at))))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br $bytes)))
        (return)))
    (local.set $last (i32.sub (local.get $len) (i32.const 8)))
    (loop $eights
      (i64.store $host (i32.add (local.get $to) (local.get $at))
        (i64.load $guest (i32.add (local.get $from) (local.get $at))))
      (br_if $eights (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 8))) (local.get $last))))
    (i64.store $host (i32.add (local.get $to) (local.get $last))
      (i64.load $guest (i32.add (local.get $from) (local.get $last)))))

  ;; write(guest address, hostcore address, length)
  (func (export "write") (param $to i32) (param $from i32) (param $len i32) (local $last i32) (local $at i32)
    (if (i32.gt_u (local.get $len) (i32.const 64))
      (then
        (memory.copy $guest $host (local.get $to) (local.get $from) (local.get $len))
        (return)))
    (if (i32.lt_u (local.get $len) (i32.const 8))
      (then
        (block $done
          (loop $bytes
            (br_if $done (i32.eq (local.get $at) (local.get $len)))
            (i32.store8 $guest (i32.add (local.get $to) (local.get $at))
              (i32.load8_u $host (i32.add (local.get $from) (local.get $at))))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br $bytes)))
        (return)))
    (local.set $last (i32.sub (local.get $len) (i32.const 8)))
    (loop $eights
      (i64.store $guest (i32.add (local.get $to) (local.get $at))
        (i64.load $host (i32.add (local.get $from) (local.get $at))))
      (br_if $eights (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 8))) (local.get $last))))
    (i64.store $guest (i32.add (local.get $to) (local.get $last))
      (i64.load $host (i32.add (local.get $from) (local.get $last)))))

  ;; store(guest address, value): one 32-bit result
  (func (export "store") (param $to i32) (param $value i32)
    (i32.store $guest (local.get $to) (local.get $value)))

  ;; Size of the guest's memory in pages of 64 KiB.
  (func (export "pages") (result i32) (memory.size $guest)))
