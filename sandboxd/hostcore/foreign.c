/*
 * Foreign functions: those of Envoy that make sense outside the proxy. Names, arguments and statuses are Envoy's.
 *
 * The others answer NOT_FOUND: expressions in CEL need an interpreter, and for signatures there is no cryptography here
 * that anybody has reviewed; a guest brings its own.
 */
#include "protobuf.h"
#include "stream.h"
#include "zlib.h"

#define MAX_FOREIGN_BYTES (16u * MIB) /* arguments, and result, of one call */

static void clear_route_cache(void)
{
    struct stream *stream = acting_stream();
    if (!stream || stream->tcp || stream->over || stream->route_cleared_turn == vm.turn)
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

static u32 foreign_clear_route_cache(__attribute__((unused)) struct bytes arguments,
                                     __attribute__((unused)) struct sink *result)
{
    clear_route_cache();
    return STATUS_OK;
}

static u32 foreign_compress(struct bytes arguments, struct sink *result)
{
    zlib_compress(arguments, result);
    return result->full ? STATUS_SERIALIZATION_FAILURE : STATUS_OK;
}

static u32 foreign_uncompress(struct bytes arguments, struct sink *result)
{
    return zlib_uncompress(arguments, result) ? STATUS_OK : STATUS_SERIALIZATION_FAILURE;
}

/* SetEnvoyFilterStateArguments: path (1), value (2), span (3). Goes out as the property filter_state.PATH. */
static u32 foreign_set_envoy_filter_state(struct bytes arguments, __attribute__((unused)) struct sink *result)
{
    struct bytes path = {0}, value = {0};
    for (struct field field; arguments.len;) {
        if (!take_field(&arguments, &field))
            return STATUS_BAD_ARGUMENT;
        if (field.type == WIRE_BYTES && field.number == 1)
            path = field.bytes;
        else if (field.type == WIRE_BYTES && field.number == 2)
            value = field.bytes;
    }
    const struct bytes prefix = TEXT("filter_state\0");
    struct stream *stream = acting_stream();
    if (!stream || !path.len || path.len > MAX_PATH_BYTES - prefix.len)
        return STATUS_NOT_FOUND;
    u8 name[MAX_PATH_BYTES];
    memcpy(name, prefix.at, prefix.len);
    memcpy(name + prefix.len, path.at, path.len);
    u8 *room;
    u32 status = property_put(stream, (struct bytes){name, prefix.len + path.len}, value.len, &room);
    if (status == STATUS_OK)
        memcpy(room, value.at, value.len);
    return status;
}

/* DeclarePropertyArguments: name (1), readonly (2); type, schema and span make no difference here. */
static u32 foreign_declare_property(struct bytes arguments, __attribute__((unused)) struct sink *result)
{
    struct bytes name = {0};
    bool readonly = false;
    for (struct field field; arguments.len;) {
        if (!take_field(&arguments, &field))
            return STATUS_BAD_ARGUMENT;
        if (field.type == WIRE_BYTES && field.number == 1)
            name = field.bytes;
        else if (field.type == WIRE_VARINT && field.number == 2)
            readonly = field.value != 0;
    }
    return property_declare(name, readonly) ? STATUS_OK : STATUS_BAD_ARGUMENT;
}

static const struct {
    struct bytes name;
    u32 (*run)(struct bytes arguments, struct sink *result);
} functions[] = {
    {TEXT("clear_route_cache"), foreign_clear_route_cache},
    {TEXT("compress"), foreign_compress},
    {TEXT("declare_property"), foreign_declare_property},
    {TEXT("set_envoy_filter_state"), foreign_set_envoy_filter_state},
    {TEXT("uncompress"), foreign_uncompress},
};

static u32 run(struct bytes name, u32 arguments, u32 len, struct sink *result, bool *known)
{
    for (u32 i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (!bytes_equal(name, functions[i].name))
            continue;
        *known = true;
        if (len > MAX_FOREIGN_BYTES)
            return STATUS_BAD_ARGUMENT;
        u8 *copy = heap_alloc(len ? len : 1);
        if (!copy)
            return STATUS_INTERNAL_FAILURE;
        guest_read(arguments, copy, len);
        u32 status = functions[i].run((struct bytes){copy, len}, result);
        heap_free(copy);
        return status;
    }
    return STATUS_NOT_FOUND;
}

/* Gives the guest what it wants to have of the result; either out-parameter may be 0: not wanted. */
static u32 give(struct bytes result, u32 results_out, u32 size_out)
{
    if (results_out && size_out)
        return return_bytes(result, results_out, size_out);
    if ((results_out && !guest_write_u32(results_out, 0)) || (size_out && !guest_write_u32(size_out, result.len)))
        return STATUS_INVALID_MEMORY_ACCESS;
    return STATUS_OK;
}

u32 EXPORT(proxy_call_foreign_function)(u32 name, u32 name_len, u32 arguments, u32 arguments_len, u32 results_out,
                                        u32 size_out)
{
    u8 text[MAX_FOREIGN_NAME_BYTES];
    struct sink result = {.most = MAX_FOREIGN_BYTES};
    bool known = false;
    host_call(IN_CALLBACKS);
    if (!guest_ok(name, name_len) || !guest_ok(arguments, arguments_len) ||
        (results_out && !guest_ok(results_out, 4)) || (size_out && !guest_ok(size_out, 4)))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (name_len > MAX_FOREIGN_NAME_BYTES)
        return STATUS_NOT_FOUND;
    guest_read(name, text, name_len);
    u32 status = run((struct bytes){text, name_len}, arguments, arguments_len, &result, &known);
    if (status == STATUS_OK)
        status = give((struct bytes){result.at, result.len}, results_out, size_out);
    else if (known) /* as in Envoy, the out-parameters of a call that failed say that there is nothing */
        give((struct bytes){0}, results_out, size_out);
    heap_free(result.at);
    return status;
}
