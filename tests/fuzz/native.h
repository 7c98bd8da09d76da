/* The outside of a natively built hostcore: the guest's memory, the heap, the channel's memory, traps. */
#ifndef SANDBOXD_FUZZ_NATIVE_H
#define SANDBOXD_FUZZ_NATIVE_H

#include <setjmp.h>

#include "stream.h"
#include "hostcalls.h"
#include "numbers.h"

#define GUEST_BYTES (2u * 65536u)
#define RING_BYTES 65536u
#define WINDOW_BYTES (4096u + 2u * RING_BYTES)
#define SHARED_BYTES 65536u

extern u8 *guest_memory; /* ends at a page that nobody may touch */
extern u8 *channel_window;
extern u8 *shared_window;
extern jmp_buf native_jump; /* where a trap comes out */
extern i64 heap_fail_after; /* allocations until one fails; negative: none does */
extern u64 heap_used;

/* The guest's side of a callback: number, context, two arguments. Returns the callback's result. */
extern u32 (*native_callback)(enum callback callback, u32 context_id, u32 a, u32 b);
extern u32 (*native_allocator)(u32 size);

u8 *native_pages(size_t len);
void native_init(void);
void native_reset(void); /* as a fresh process: state, heap, rings, guest memory */
bool native_start(u32 generation, u64 flags, u32 abi, const struct limits *limits);
_Noreturn void finding(const char *what);
extern bool tracing; /* FUZZ_TRACE is set: say what goes in and out */

#endif
