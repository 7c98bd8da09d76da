/*
 * What this version does not offer: callouts, gRPC, shared data, queues, ticks.
 *
 * Calls that would start something fail with INTERNAL_FAILURE, look-ups find nothing; both are statuses that the SDKs
 * expect of these functions.
 */
#include "hostcore.h"

static u32 cannot_start(void)
{
    host_call(IN_CALLBACKS);
    return STATUS_INTERNAL_FAILURE;
}

static u32 not_found(void)
{
    host_call(IN_CALLBACKS);
    return STATUS_NOT_FOUND;
}

#define UNUSED __attribute__((unused)) u32

u32 EXPORT(proxy_http_call)(UNUSED upstream, UNUSED upstream_len, UNUSED headers, UNUSED headers_len, UNUSED body,
                            UNUSED body_len, UNUSED trailers, UNUSED trailers_len, UNUSED timeout_ms,
                            UNUSED call_id_out)
{
    return cannot_start();
}

u32 EXPORT(proxy_grpc_call)(UNUSED upstream, UNUSED upstream_len, UNUSED service, UNUSED service_len, UNUSED method,
                            UNUSED method_len, UNUSED metadata, UNUSED metadata_len, UNUSED message,
                            UNUSED message_len, UNUSED timeout_ms, UNUSED call_id_out)
{
    return cannot_start();
}

u32 EXPORT(proxy_grpc_stream)(UNUSED upstream, UNUSED upstream_len, UNUSED service, UNUSED service_len, UNUSED method,
                              UNUSED method_len, UNUSED metadata, UNUSED metadata_len, UNUSED stream_id_out)
{
    return cannot_start();
}

u32 EXPORT(proxy_grpc_send)(UNUSED stream_id, UNUSED message, UNUSED message_len, UNUSED end_of_stream)
{
    return not_found();
}

u32 EXPORT(proxy_grpc_cancel)(UNUSED call_id)
{
    return not_found();
}

u32 EXPORT(proxy_grpc_close)(UNUSED call_id)
{
    return not_found();
}

u32 EXPORT(proxy_get_shared_data)(UNUSED key, UNUSED key_len, UNUSED value_out, UNUSED size_out, UNUSED cas_out)
{
    return not_found();
}

u32 EXPORT(proxy_set_shared_data)(UNUSED key, UNUSED key_len, UNUSED value, UNUSED value_len, UNUSED cas)
{
    return cannot_start();
}

u32 EXPORT(proxy_register_shared_queue)(UNUSED name, UNUSED name_len, UNUSED queue_id_out)
{
    return cannot_start();
}

u32 EXPORT(proxy_resolve_shared_queue)(UNUSED vm_id, UNUSED vm_id_len, UNUSED name, UNUSED name_len,
                                       UNUSED queue_id_out)
{
    return not_found();
}

u32 EXPORT(proxy_dequeue_shared_queue)(UNUSED queue_id, UNUSED value_out, UNUSED size_out)
{
    return not_found();
}

u32 EXPORT(proxy_enqueue_shared_queue)(UNUSED queue_id, UNUSED value, UNUSED value_len)
{
    return not_found();
}

/* Stopping a timer that does not run is no error. */
u32 EXPORT(proxy_set_tick_period_milliseconds)(u32 period_ms)
{
    host_call(IN_CALLBACKS);
    return period_ms ? STATUS_INTERNAL_FAILURE : STATUS_OK;
}

/* Status of the last callout: there was none. */
u32 EXPORT(proxy_get_status)(u32 code_out, u32 message_out, u32 size_out)
{
    host_call(IN_CALLBACKS);
    if (!guest_write_u32(code_out, 0))
        return STATUS_INVALID_MEMORY_ACCESS;
    return return_bytes((struct bytes){0}, message_out, size_out);
}

u32 EXPORT(envoy_resolve_dns)(UNUSED name, UNUSED name_len, UNUSED token_out)
{
    return cannot_start();
}

/* Emscripten's notice that memory grew; guest.c looks at the size itself. */
void EXPORT(emscripten_notify_memory_growth)(UNUSED memory)
{
    host_call(ANYWHERE);
}

/* Old Emscripten */
u32 EXPORT(pthread_equal)(u32 left, u32 right)
{
    host_call(ANYWHERE);
    return left == right;
}
