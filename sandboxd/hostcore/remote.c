/*
 * Shared data that is kept outside this machine: each call asks the worker, which asks the supervisor, and waits.
 *
 * host.shared_call(at): at lies u32 length, then the question: u32 1 get or 2 set, u32 compare-and-swap number, u32
 * length of the key, key, value. The answer takes its place: u32 status, u32 compare-and-swap number, value; its length
 * is returned, 0: there is none.
 */
#include "remote.h"

IMPORT(host, shared_call) i64 host_shared_call(i32 at);

#define MAX_REMOTE_VALUE_BYTES (48u * KIB) /* with a key, in one control frame */
#define HEAD_BYTES 12u
#define ANSWER_BYTES 8u
#define ROOM_BYTES (HEAD_BYTES + MAX_REMOTE_KEY_BYTES + MAX_REMOTE_VALUE_BYTES)

enum { REMOTE_GET = 1, REMOTE_SET = 2 };

STATE static struct {
    u32 len;
    u8 data[ROOM_BYTES];
} talk;

bool remote_shared(void)
{
    return vm.config.flags & FLAG_REMOTE_SHARED;
}

/* The answer's length, at least its head; 0: there is none. */
static u32 ask(u32 kind, u32 cas, u32 key, u32 key_len, u32 value_len)
{
    store_u32(talk.data, kind);
    store_u32(talk.data + 4, cas);
    store_u32(talk.data + 8, key_len);
    guest_read(key, talk.data + HEAD_BYTES, key_len);
    talk.len = HEAD_BYTES + key_len + value_len;
    i64 len = host_shared_call((i32)(uintptr_t)&talk);
    return len >= (i64)ANSWER_BYTES && len <= (i64)sizeof talk.data ? (u32)len : 0;
}

u32 remote_get(u32 key, u32 key_len, u32 value_out, u32 size_out, u32 cas_out)
{
    if (key_len > MAX_REMOTE_KEY_BYTES)
        return STATUS_NOT_FOUND;
    u32 len = ask(REMOTE_GET, 0, key, key_len, 0);
    if (!len)
        return STATUS_INTERNAL_FAILURE;
    u32 status = load_u32(talk.data), cas = load_u32(talk.data + 4);
    if (status == STATUS_OK)
        status = return_bytes((struct bytes){talk.data + ANSWER_BYTES, len - ANSWER_BYTES}, value_out, size_out);
    if (status == STATUS_OK)
        guest_write_u32(cas_out, cas);
    return status;
}

u32 remote_set(u32 key, u32 key_len, u32 value, u32 value_len, u32 cas)
{
    if (key_len > MAX_REMOTE_KEY_BYTES || value_len > MAX_REMOTE_VALUE_BYTES ||
        value_len > vm.config.limits.shared_value_bytes)
        return STATUS_INTERNAL_FAILURE;
    guest_read(value, talk.data + HEAD_BYTES + key_len, value_len);
    u32 len = ask(REMOTE_SET, cas, key, key_len, value_len);
    return len ? load_u32(talk.data) : STATUS_INTERNAL_FAILURE;
}
