/*
 * Buffers: proxy_get_buffer_bytes, proxy_set_buffer_bytes, proxy_get_buffer_status, and ABI 0.1.0's
 * proxy_get_configuration.
 */
#include "callouts.h"
#include "stream.h"

enum buffer {
    BUFFER_REQUEST_BODY = 0,
    BUFFER_RESPONSE_BODY = 1,
    BUFFER_DOWNSTREAM_DATA = 2,
    BUFFER_UPSTREAM_DATA = 3,
    BUFFER_VM_CONFIGURATION = 6,
    BUFFER_PLUGIN_CONFIGURATION = 7,
    LAST_BUFFER = 8,
};

static struct body *body_of(u32 id)
{
    struct stream *stream = acting_stream();
    if (!stream || id > BUFFER_UPSTREAM_DATA || stream->tcp != (id >= BUFFER_DOWNSTREAM_DATA))
        return NULL;
    struct body *body = &stream->direction[id % 2].body;
    return body->open ? body : NULL;
}

/*
 * What the buffer holds now. Bodies and TCP data that are not at hand are empty, the others are not found. The plugin's
 * configuration is readable while the plugin starts, the VM's always.
 */
static u32 contents(u32 id, struct bytes *data)
{
    *data = (struct bytes){0};
    if (id > LAST_BUFFER)
        return STATUS_BAD_ARGUMENT;
    if (id == BUFFER_VM_CONFIGURATION) {
        *data = vm.config.vm_configuration;
        return STATUS_OK;
    }
    if (id == BUFFER_PLUGIN_CONFIGURATION && vm.starting) {
        *data = vm.config.plugin_configuration;
        return STATUS_OK;
    }
    if (id > BUFFER_UPSTREAM_DATA)
        return callout_buffer(id, data) ? STATUS_OK : STATUS_NOT_FOUND;
    const struct body *body = body_of(id);
    if (body)
        *data = body_visible(body);
    return STATUS_OK;
}

/* `max_size` is clamped to what there is; a start at or past the end gives nothing. */
u32 EXPORT(proxy_get_buffer_bytes)(u32 id, u32 start, u32 max_size, u32 data_out, u32 size_out)
{
    host_call(IN_CALLBACKS);
    struct bytes data;
    u32 status = contents(id, &data);
    if (status != STATUS_OK)
        return status;
    if (start >= data.len)
        return return_bytes((struct bytes){0}, data_out, size_out);
    u32 left = data.len - start;
    return return_bytes((struct bytes){data.at + start, max_size < left ? max_size : left}, data_out, size_out);
}

u32 EXPORT(proxy_get_buffer_status)(u32 id, u32 length_out, u32 flags_out)
{
    host_call(IN_CALLBACKS);
    struct bytes data;
    u32 status = contents(id, &data);
    if (status != STATUS_OK)
        return status;
    if (!guest_write_u32(length_out, data.len) || !guest_write_u32(flags_out, 0))
        return STATUS_INVALID_MEMORY_ACCESS;
    return STATUS_OK;
}

/* A body may grow past what the policy lets a stream hold only as far as it already was. */
static bool may_become(const struct body *body, u64 len)
{
    return len <= vm.config.limits.body_buffer_bytes || len <= body_visible(body).len;
}

/*
 * Replace `size` bytes at `start` by the data. (0, 0) prepends, a start at or past the end appends, a size past the end
 * means up to the end.
 */
u32 EXPORT(proxy_set_buffer_bytes)(u32 id, u32 start, u32 size, u32 data, u32 data_len)
{
    host_call(IN_CALLBACKS);
    if (id > LAST_BUFFER)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(data, data_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (id > BUFFER_UPSTREAM_DATA)
        return STATUS_BAD_ARGUMENT;
    struct body *body = body_of(id);
    if (!body) {
        if (!(vm.config.flags & FLAG_LENIENT_MAPS))
            return STATUS_BAD_ARGUMENT;
        note(acting_stream(), NOTE_BUFFER_NOT_AVAILABLE);
        return STATUS_OK;
    }
    u32 len = body_visible(body).len;
    if (start > len)
        start = len;
    if (size > len - start)
        size = len - start;
    if (!may_become(body, (u64)len - size + data_len))
        return STATUS_BAD_ARGUMENT;
    if (size == 0 && data_len == 0)
        return STATUS_OK; /* an empty body may have no memory yet, which is no failure */
    u8 *gap = body_own(body) ? body_splice(body, start, size, data_len) : NULL;
    if (!gap)
        return STATUS_INTERNAL_FAILURE;
    guest_read(data, gap, data_len);
    return STATUS_OK;
}

/* ABI 0.1.0: the plugin's configuration while it is being configured, else the VM's. */
u32 EXPORT(proxy_get_configuration)(u32 data_out, u32 size_out)
{
    host_call(IN_CALLBACKS);
    return return_bytes(vm.configuring ? vm.config.plugin_configuration : vm.config.vm_configuration, data_out,
                        size_out);
}
