/*
 * The guest: its memory, reached with checks, and calls into it.
 *
 * The membrane does the copying. The size of the guest's memory is remembered; memory never shrinks, so only a range
 * past the remembered end needs another look.
 */
#include "stream.h"

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
IMPORT(guest, proxy_on_tick) void guest_on_tick(u32 id);
IMPORT(guest, proxy_on_queue_ready) void guest_on_queue_ready(u32 id, u32 queue_id);
IMPORT(guest, proxy_on_http_call_response)
void guest_on_http_call_response(u32 id, u32 call_id, u32 headers, u32 body_size, u32 trailers);
IMPORT(guest, proxy_on_grpc_receive_initial_metadata)
void guest_on_grpc_receive_initial_metadata(u32 id, u32 call_id, u32 count);
IMPORT(guest, proxy_on_grpc_receive) void guest_on_grpc_receive(u32 id, u32 call_id, u32 size);
IMPORT(guest, proxy_on_grpc_receive_trailing_metadata)
void guest_on_grpc_receive_trailing_metadata(u32 id, u32 call_id, u32 count);
IMPORT(guest, proxy_on_grpc_close) void guest_on_grpc_close(u32 id, u32 call_id, u32 status);

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

IMPORT(guest, proxy_on_new_connection) u32 guest_on_new_connection(u32 id);
IMPORT(guest, proxy_on_downstream_data) u32 guest_on_downstream_data(u32 id, u32 size, u32 end);
IMPORT(guest, proxy_on_upstream_data) u32 guest_on_upstream_data(u32 id, u32 size, u32 end);
IMPORT(guest, proxy_on_downstream_connection_close) void guest_on_downstream_connection_close(u32 id, u32 peer);
IMPORT(guest, proxy_on_upstream_connection_close) void guest_on_upstream_connection_close(u32 id, u32 peer);

static u32 dispatch_tcp(enum callback callback, u32 id, struct arguments with)
{
    switch (callback) {
    case CALLBACK_NEW_CONNECTION:
        return guest_on_new_connection(id);
    case CALLBACK_DOWNSTREAM_DATA:
        return guest_on_downstream_data(id, with.a, with.b);
    case CALLBACK_UPSTREAM_DATA:
        return guest_on_upstream_data(id, with.a, with.b);
    case CALLBACK_DOWNSTREAM_CONNECTION_CLOSE:
        guest_on_downstream_connection_close(id, with.a);
        return 0;
    case CALLBACK_UPSTREAM_CONNECTION_CLOSE:
        guest_on_upstream_connection_close(id, with.a);
        return 0;
    default:
        return 0;
    }
}

/* Callbacks of the root context: they have no result. */
static void dispatch_root(enum callback callback, u32 id, struct arguments with)
{
    switch (callback) {
    case CALLBACK_TICK:
        guest_on_tick(id);
        break;
    case CALLBACK_QUEUE_READY:
        guest_on_queue_ready(id, with.a);
        break;
    case CALLBACK_HTTP_CALL_RESPONSE:
        guest_on_http_call_response(id, with.a, with.b, with.c, with.d);
        break;
    case CALLBACK_GRPC_RECEIVE_INITIAL_METADATA:
        guest_on_grpc_receive_initial_metadata(id, with.a, with.b);
        break;
    case CALLBACK_GRPC_RECEIVE:
        guest_on_grpc_receive(id, with.a, with.b);
        break;
    case CALLBACK_GRPC_RECEIVE_TRAILING_METADATA:
        guest_on_grpc_receive_trailing_metadata(id, with.a, with.b);
        break;
    case CALLBACK_GRPC_CLOSE:
        guest_on_grpc_close(id, with.a, with.b);
        break;
    default:
        break;
    }
}

static u32 dispatch(enum callback callback, u32 id, struct arguments with)
{
    u32 a = with.a, b = with.b;
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
        if (callback >= CALLBACK_NEW_CONNECTION)
            return dispatch_tcp(callback, id, with);
        dispatch_root(callback, id, with);
        return 0;
    }
}

/*
 * Run a callback of the stream's context, or of the root context if there is none. The effective context starts as the
 * callback's own. Never called while another callback runs.
 */
u32 call_guest_with(enum callback callback, struct stream *stream, struct arguments arguments)
{
    u32 id = callback == CALLBACK_INITIALIZE ? 0 : stream ? stream->context_id : ROOT_CONTEXT_ID;
    vm.current = vm.effective = stream;
    vm.phase = callback == CALLBACK_INITIALIZE ? PHASE_INITIALIZE : PHASE_CALLBACK;
    vm.status.context_id = id;
    vm.status.in_callback = callback;
    ring_stamp();
    u32 result = dispatch(callback, id, arguments);
    ring_stamp();
    vm.status.in_callback = CALLBACK_NONE;
    vm.phase = 0;
    log_lines_flush();
    vm.current = vm.effective = NULL;
    return result;
}
