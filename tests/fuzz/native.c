/* See native.h. What the membrane does in the VM is done here by memcpy, with the checks that the engine would make. */
#include "native.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Without AddressSanitizer, heap blocks end in a mark that is looked at when they are freed. */
#ifdef __SANITIZE_ADDRESS__
#define MARK_BYTES 0
#else
#define MARK_BYTES 16
#endif

u8 *guest_memory;
jmp_buf native_jump;
i64 heap_fail_after = -1;
u64 heap_used;
u32 (*native_callback)(enum callback callback, u32 context_id, u32 a, u32 b);
u32 (*native_allocator)(u32 size);

static u64 heap_limit = UINT64_MAX;

extern u8 __start_hostcore_state[], __stop_hostcore_state[]; /* from the linker */

bool tracing;

_Noreturn void finding(const char *what)
{
    fprintf(stderr, "FINDING: %s\n", what);
    abort();
}

_Noreturn void native_trap(void)
{
    longjmp(native_jump, 1);
}

/* ---- heap: every block is one of the C library's, all are known -------------------------------------------------- */

static struct block {
    struct block *next, *previous;
    u32 len;
} *blocks;

static void set_mark(u8 *at)
{
    for (int i = 0; i < MARK_BYTES; i++)
        at[i] = 0xA5;
}

static void check_mark(const u8 *at)
{
    for (int i = 0; i < MARK_BYTES; i++)
        if (at[i] != 0xA5)
            finding("a heap block was written past its end");
}

void heap_init(void)
{
}

void heap_set_limit(u64 bytes)
{
    heap_limit = bytes;
}

void *heap_alloc(u32 len)
{
    if (heap_fail_after == 0 || heap_used + len > heap_limit)
        return NULL;
    if (heap_fail_after > 0)
        heap_fail_after--;
    struct block *block = malloc(sizeof *block + (len ? len : 1) + MARK_BYTES);
    if (!block)
        abort();
    set_mark((u8 *)(block + 1) + len);
    *block = (struct block){blocks, NULL, len};
    if (blocks)
        blocks->previous = block;
    blocks = block;
    heap_used += len;
    return block + 1;
}

void heap_free(void *at)
{
    if (!at)
        return;
    struct block *block = (struct block *)at - 1;
    if (block->previous)
        block->previous->next = block->next;
    else
        blocks = block->next;
    if (block->next)
        block->next->previous = block->previous;
    check_mark((const u8 *)at + block->len);
    heap_used -= block->len;
    free(block);
}

u32 heap_usable(const void *at)
{
    return ((const struct block *)at - 1)->len;
}

/* ---- the membrane ------------------------------------------------------------------------------------------------ */

static void check_range(u32 address, u32 len)
{
    if ((u64)address + len > GUEST_BYTES)
        finding("the membrane was called with a range outside the guest's memory");
}

void membrane_read(u32 from, void *to, u32 len);
void membrane_write(u32 to, const void *from, u32 len);
void membrane_store(u32 to, u32 value);
u32 membrane_pages(void);

void membrane_read(u32 from, void *to, u32 len)
{
    check_range(from, len);
    memcpy(to, guest_memory + from, len);
}

void membrane_write(u32 to, const void *from, u32 len)
{
    check_range(to, len);
    memcpy(guest_memory + to, from, len);
}

void membrane_store(u32 to, u32 value)
{
    check_range(to, 4);
    memcpy(guest_memory + to, &value, 4);
}

u32 membrane_pages(void)
{
    return GUEST_BYTES >> 16;
}

/* ---- the guest's exports ----------------------------------------------------------------------------------------- */

#define CALLBACK_0(name, number)                                                                                       \
    u32 name(u32 id);                                                                                                  \
    u32 name(u32 id)                                                                                                   \
    {                                                                                                                  \
        return native_callback(number, id, 0, 0);                                                                      \
    }
#define CALLBACK_1(name, number)                                                                                       \
    u32 name(u32 id, u32 a);                                                                                           \
    u32 name(u32 id, u32 a)                                                                                            \
    {                                                                                                                  \
        return native_callback(number, id, a, 0);                                                                      \
    }
#define CALLBACK_2(name, number)                                                                                       \
    u32 name(u32 id, u32 a, u32 b);                                                                                    \
    u32 name(u32 id, u32 a, u32 b)                                                                                     \
    {                                                                                                                  \
        return native_callback(number, id, a, b);                                                                      \
    }

CALLBACK_1(guest_on_vm_start, CALLBACK_VM_START)
CALLBACK_1(guest_on_configure, CALLBACK_CONFIGURE)
CALLBACK_2(guest_on_request_headers, CALLBACK_REQUEST_HEADERS)
CALLBACK_2(guest_on_request_body, CALLBACK_REQUEST_BODY)
CALLBACK_1(guest_on_request_trailers, CALLBACK_REQUEST_TRAILERS)
CALLBACK_0(guest_on_new_connection, CALLBACK_NEW_CONNECTION)
CALLBACK_2(guest_on_downstream_data, CALLBACK_DOWNSTREAM_DATA)
CALLBACK_2(guest_on_upstream_data, CALLBACK_UPSTREAM_DATA)
CALLBACK_2(guest_on_response_headers, CALLBACK_RESPONSE_HEADERS)
CALLBACK_2(guest_on_response_body, CALLBACK_RESPONSE_BODY)
CALLBACK_1(guest_on_response_trailers, CALLBACK_RESPONSE_TRAILERS)
CALLBACK_0(guest_on_done, CALLBACK_DONE)

void guest_initialize(void);
void guest_initialize(void)
{
    native_callback(CALLBACK_INITIALIZE, 0, 0, 0);
}

void guest_on_context_create(u32 id, u32 parent);
void guest_on_context_create(u32 id, u32 parent)
{
    native_callback(CALLBACK_CONTEXT_CREATE, id, parent, 0);
}

void guest_on_log(u32 id);
void guest_on_log(u32 id)
{
    native_callback(CALLBACK_LOG, id, 0, 0);
}

void guest_on_delete(u32 id);
void guest_on_delete(u32 id)
{
    native_callback(CALLBACK_DELETE, id, 0, 0);
}

#define ROOT_CALLBACK(name, number)                                                                                    \
    void name(u32 id, u32 a, u32 b);                                                                                   \
    void name(u32 id, u32 a, u32 b)                                                                                    \
    {                                                                                                                  \
        native_callback(number, id, a, b);                                                                             \
    }

ROOT_CALLBACK(guest_on_grpc_receive_initial_metadata, CALLBACK_GRPC_RECEIVE_INITIAL_METADATA)
ROOT_CALLBACK(guest_on_grpc_receive, CALLBACK_GRPC_RECEIVE)
ROOT_CALLBACK(guest_on_grpc_receive_trailing_metadata, CALLBACK_GRPC_RECEIVE_TRAILING_METADATA)
ROOT_CALLBACK(guest_on_grpc_close, CALLBACK_GRPC_CLOSE)

void guest_on_downstream_connection_close(u32 id, u32 peer);
void guest_on_downstream_connection_close(u32 id, u32 peer)
{
    native_callback(CALLBACK_DOWNSTREAM_CONNECTION_CLOSE, id, peer, 0);
}

void guest_on_upstream_connection_close(u32 id, u32 peer);
void guest_on_upstream_connection_close(u32 id, u32 peer)
{
    native_callback(CALLBACK_UPSTREAM_CONNECTION_CLOSE, id, peer, 0);
}

void guest_on_tick(u32 id);
void guest_on_tick(u32 id)
{
    native_callback(CALLBACK_TICK, id, 0, 0);
}

void guest_on_queue_ready(u32 id, u32 queue_id);
void guest_on_queue_ready(u32 id, u32 queue_id)
{
    native_callback(CALLBACK_QUEUE_READY, id, queue_id, 0);
}

void guest_on_http_call_response(u32 id, u32 call_id, u32 headers, u32 body_size, u32 trailers);
void guest_on_http_call_response(u32 id, u32 call_id, u32 headers, u32 body_size, u32 trailers)
{
    (void)headers, (void)trailers;
    native_callback(CALLBACK_HTTP_CALL_RESPONSE, id, call_id, body_size);
}

u32 guest_alloc(u32 size);
u32 guest_alloc(u32 size)
{
    if (size == 0)
        finding("the guest's allocator was asked for 0 bytes");
    return native_allocator(size);
}

i64 host_shared_call(i32 at);
i64 host_shared_call(i32 at)
{
    (void)at;
    return 0;
}

i64 host_clock_ns(i32 clock_id);
i64 host_clock_ns(i32 clock_id)
{
    static i64 now_ns = 1000000000;
    now_ns += 150000000; /* whoever waits for something has waited long enough soon */
    return now_ns + clock_id;
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

/* Memory whose last byte is followed by a page that nobody may touch, as in the VM. */
u8 *native_pages(size_t len)
{
    size_t whole = (len + 4095) & ~(size_t)4095;
    u8 *at = mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at + whole, 4096, PROT_NONE) != 0)
        abort();
    return at + (whole - len);
}

void native_init(void)
{
    guest_memory = native_pages(GUEST_BYTES);
    channel_window = native_pages(WINDOW_BYTES);
    shared_window = native_pages(SHARED_BYTES);
}

void native_reset(void)
{
    while (blocks)
        heap_free(blocks + 1);
    heap_limit = UINT64_MAX;
    heap_fail_after = -1;
    memset(__start_hostcore_state, 0, (size_t)(__stop_hostcore_state - __start_hostcore_state));
    memset(channel_window, 0, WINDOW_BYTES);
    memset(shared_window, 0, SHARED_BYTES);
}

static u32 entry(u8 *to, u32 tag, const void *data, u32 len)
{
    store_u32(to, tag);
    store_u32(to + 4, len);
    memset(to + 8, 0, (len + 7) & ~7u);
    memcpy(to + 8, data, len);
    return 8 + ((len + 7) & ~7u);
}

static u32 text_entry(u8 *to, u32 tag, const char *text)
{
    return entry(to, tag, text, (u32)strlen(text));
}

/* False: the start trapped. */
bool native_start(u32 generation, u64 flags, u32 abi, const struct limits *limits)
{
    static const u8 environment[] = "\x01\0\0\0\x01\0\0\0\x02\0\0\0K\0VW";
    static const u8 denied[] = "\x01\0\0\0\x0c\0\0\0\0\0\0\0request\0host\0";
    const u64 start_ns = 1700000000000000000ull, callbacks = 0x7fffff8;
    const u32 ring_bytes = RING_BYTES;
    static const u8 upstreams[] = "\x01\0\0\0\x02\0\0\0\0\0\0\0up\0";
    const u32 shared[2] = {SHARED_BYTES, 7};
    u8 made[1024], *at = made;
    at += text_entry(at, 1, "plugin");
    at += text_entry(at, 2, "root");
    at += text_entry(at, 3, "vm");
    at += text_entry(at, 4, "vm configuration");
    at += text_entry(at, 5, "plugin configuration");
    at += entry(at, 6, environment, sizeof environment);
    at += entry(at, 7, limits, sizeof *limits);
    at += entry(at, 8, &flags, 8);
    at += text_entry(at, 9, "0123456789abcdef0123456789abcdef");
    at += entry(at, 10, &start_ns, 8);
    at += entry(at, 11, denied, sizeof denied);
    at += entry(at, 12, &callbacks, 8);
    at += entry(at, 13, &abi, 4);
    at += entry(at, 14, &generation, 4);
    at += entry(at, 15, &ring_bytes, 4);
    at += entry(at, 16, shared, sizeof shared);
    at += entry(at, 17, upstreams, sizeof upstreams);
    u32 len = (u32)(at - made);
    u8 *blob = hc_config_buffer(len);
    memcpy(blob, made, len);
    u32 bad = hc_vm_configure(blob, len);
    if (bad) {
        fprintf(stderr, "configuration refused: %u\n", bad);
        abort();
    }
    if (setjmp(native_jump))
        return false;
    return hc_vm_start() == 0;
}
