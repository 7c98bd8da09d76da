/*
 * The guest: its memory, reached with checks, and calls into it.
 *
 * The membrane does the copying. The size of the guest's memory is remembered; memory never shrinks, so only a range
 * past the remembered end needs another look.
 */
#include "hostcore.h"

IMPORT(membrane, read) void membrane_read(u32 from, void *to, u32 len);
IMPORT(membrane, write) void membrane_write(u32 to, const void *from, u32 len);
IMPORT(membrane, store) void membrane_store(u32 to, u32 value);
IMPORT(membrane, pages) u32 membrane_pages(void);

IMPORT(guest, initialize) void guest_initialize(void);
IMPORT(guest, alloc) u32 guest_alloc(u32 size);
IMPORT(guest, proxy_on_context_create) void guest_on_context_create(u32 id, u32 parent);
IMPORT(guest, proxy_on_vm_start) u32 guest_on_vm_start(u32 id, u32 size);
IMPORT(guest, proxy_on_configure) u32 guest_on_configure(u32 id, u32 size);
IMPORT(guest, proxy_on_request_headers) u32 guest_on_request_headers(u32 id, u32 count, u32 end);
IMPORT(guest, proxy_on_request_body) u32 guest_on_request_body(u32 id, u32 size, u32 end);
IMPORT(guest, proxy_on_request_trailers) u32 guest_on_request_trailers(u32 id, u32 count);
IMPORT(guest, proxy_on_response_headers) u32 guest_on_response_headers(u32 id, u32 count, u32 end);
IMPORT(guest, proxy_on_response_body) u32 guest_on_response_body(u32 id, u32 size, u32 end);
IMPORT(guest, proxy_on_response_trailers) u32 guest_on_response_trailers(u32 id, u32 count);
IMPORT(guest, proxy_on_done) u32 guest_on_done(u32 id);
IMPORT(guest, proxy_on_log) void guest_on_log(u32 id);
IMPORT(guest, proxy_on_delete) void guest_on_delete(u32 id);

STATE static u64 known_bytes;

bool guest_ok(u32 address, u32 len)
{
    u64 end = (u64)address + len;
    if (LIKELY(end <= known_bytes))
        return true;
    known_bytes = (u64)membrane_pages() << 16;
    return end <= known_bytes;
}

bool guest_read(u32 address, void *to, u32 len)
{
    if (!guest_ok(address, len))
        return false;
    if (len)
        membrane_read(address, to, len);
    return true;
}

bool guest_write(u32 address, const void *from, u32 len)
{
    if (!guest_ok(address, len))
        return false;
    if (len)
        membrane_write(address, from, len);
    return true;
}

bool guest_write_u32(u32 address, u32 value)
{
    if (!guest_ok(address, 4))
        return false;
    membrane_store(address, value);
    return true;
}

bool guest_write_u64(u32 address, u64 value)
{
    return guest_write(address, &value, sizeof value);
}

/* The allocator is the only nested entry into the guest. It is never asked for 0 bytes: some trap on that. */
static u32 allocate(u32 len)
{
    u32 phase = vm.phase, callback = vm.status.in_callback;
    vm.phase = PHASE_ALLOC;
    vm.status.in_callback = CALLBACK_ALLOC;
    u32 address = guest_alloc(len);
    vm.phase = phase;
    vm.status.in_callback = callback;
    return address;
}

/*
 * Give `data` to the guest: in a block of the guest's own allocator, whose address and size are stored at the
 * out-parameters. Nothing is given as address 0 and size 0.
 */
u32 return_bytes(struct bytes data, u32 data_out, u32 size_out)
{
    u32 address = 0;
    if (!guest_ok(data_out, 4) || !guest_ok(size_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (data.len) {
        address = allocate(data.len);
        if (!address || !guest_write(address, data.at, data.len))
            return STATUS_INVALID_MEMORY_ACCESS;
    }
    membrane_store(data_out, address);
    membrane_store(size_out, data.len);
    return STATUS_OK;
}

static u32 dispatch(enum callback callback, u32 id, u32 a, u32 b)
{
    switch (callback) {
    case CALLBACK_INITIALIZE:
        guest_initialize();
        return 0;
    case CALLBACK_CONTEXT_CREATE:
        guest_on_context_create(id, a);
        return 0;
    case CALLBACK_VM_START:
        return guest_on_vm_start(id, a);
    case CALLBACK_CONFIGURE:
        return guest_on_configure(id, a);
    case CALLBACK_REQUEST_HEADERS:
        return guest_on_request_headers(id, a, b);
    case CALLBACK_REQUEST_BODY:
        return guest_on_request_body(id, a, b);
    case CALLBACK_REQUEST_TRAILERS:
        return guest_on_request_trailers(id, a);
    case CALLBACK_RESPONSE_HEADERS:
        return guest_on_response_headers(id, a, b);
    case CALLBACK_RESPONSE_BODY:
        return guest_on_response_body(id, a, b);
    case CALLBACK_RESPONSE_TRAILERS:
        return guest_on_response_trailers(id, a);
    case CALLBACK_DONE:
        return guest_on_done(id);
    case CALLBACK_LOG:
        guest_on_log(id);
        return 0;
    case CALLBACK_DELETE:
        guest_on_delete(id);
        return 0;
    default:
        return 0;
    }
}

/*
 * Run a callback of the stream's context, or of the root context if there is none. The effective context starts as the
 * callback's own. Never called while another callback runs.
 */
u32 call_guest(enum callback callback, struct stream *stream, u32 a, u32 b)
{
    u32 id = callback == CALLBACK_INITIALIZE ? 0 : stream ? stream->context_id : ROOT_CONTEXT_ID;
    vm.current = vm.effective = stream;
    vm.phase = callback == CALLBACK_INITIALIZE ? PHASE_INITIALIZE : PHASE_CALLBACK;
    vm.status.context_id = id;
    vm.status.in_callback = callback;
    ring_stamp();
    u32 result = dispatch(callback, id, a, b);
    ring_stamp();
    vm.status.in_callback = CALLBACK_NONE;
    vm.phase = 0;
    log_lines_flush();
    vm.current = vm.effective = NULL;
    return result;
}
