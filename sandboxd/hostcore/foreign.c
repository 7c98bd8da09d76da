/* Foreign functions, and the route cache that one of them clears. */
#include "hostcore.h"

static void clear_route_cache(void)
{
    struct stream *stream = acting_stream();
    if (!stream || stream->over || stream->route_cleared_turn == vm.turn)
        return;
    stream->route_cleared_turn = vm.turn;
    ring_put(COMPLETE_CLEAR_ROUTE_CACHE, 0, stream->id, 0, 0);
}

/* ABI 0.1.0 */
u32 EXPORT(proxy_clear_route_cache)(void)
{
    host_call(IN_CALLBACKS);
    clear_route_cache();
    return STATUS_OK;
}

/* Either out-parameter may be 0: not wanted. */
u32 EXPORT(proxy_call_foreign_function)(u32 name, u32 name_len, u32 arguments, u32 arguments_len, u32 results_out,
                                        u32 size_out)
{
    host_call(IN_CALLBACKS);
    if (!guest_ok(name, name_len) || !guest_ok(arguments, arguments_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (name_len > MAX_FOREIGN_NAME_BYTES)
        return STATUS_NOT_FOUND;
    guest_read(name, scratch, name_len);
    if (!bytes_equal((struct bytes){scratch, name_len}, TEXT("clear_route_cache")))
        return STATUS_NOT_FOUND;
    clear_route_cache();
    if ((results_out && !guest_write_u32(results_out, 0)) || (size_out && !guest_write_u32(size_out, 0)))
        return STATUS_INVALID_MEMORY_ACCESS;
    return STATUS_OK;
}
