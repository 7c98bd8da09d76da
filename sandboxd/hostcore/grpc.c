/* Callouts: gRPC calls and streams (callouts.c), from their start to their end by the guest. */
#include "callouts.h"
#include "protobuf.h"

#define MAX_TEXT_BYTES 1024u /* a gRPC service or method */

/* The first field of a message if its number is at most `most` and it has a length. */
static bool first_field(struct bytes *data, u32 most)
{
    struct field field;
    if (!take_field(data, &field) || !field.number || field.number > most || field.type != WIRE_BYTES)
        return false;
    *data = field.bytes;
    return true;
}

/*
 * A name of the policy, or Envoy's GrpcService that names one: envoy_grpc (1), cluster_name (1), or google_grpc (2),
 * target_uri (1). Serialisers write fields in their order, so it is the first.
 */
static bool find_grpc_upstream(struct bytes text, struct bytes *found)
{
    return upstream_find(text, found) ||
           (first_field(&text, 2) && first_field(&text, 1) && upstream_find(text, found));
}

/* ---- calls and streams ------------------------------------------------------------------------------------------- */

/* `parts` are service, method, metadata, and for a call the message. */
static u32 grpc_start(enum call_kind kind, struct part upstream, const struct part *parts, u32 count, u32 timeout_ms,
                      u32 id_out)
{
    struct bytes found, copies[4];
    if (!guest_ok(upstream.at, upstream.len) || !callout_parts_ok(parts, count) || !guest_ok(id_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (upstream.len > MAX_UPSTREAM_BYTES)
        return STATUS_PARSE_FAILURE;
    guest_read(upstream.at, scratch, upstream.len);
    if (!find_grpc_upstream((struct bytes){scratch, upstream.len}, &found)) {
        callout_tell_unknown(OUT_GRPC_CALL, (struct bytes){scratch, upstream.len});
        return STATUS_PARSE_FAILURE;
    }
    bool texts_fit = parts[0].len <= MAX_TEXT_BYTES && parts[1].len <= MAX_TEXT_BYTES;
    if (!texts_fit || !callout_small_enough(parts, count) || !callout_room())
        return STATUS_INTERNAL_FAILURE;
    u32 id = callout_fresh_id(kind);
    enum outbox_kind request = kind == GRPC_CALL ? OUT_GRPC_CALL : OUT_GRPC_STREAM;
    struct message *message = callout_compose(request, id, timeout_ms, found, parts, count, copies);
    if (!message)
        return STATUS_INTERNAL_FAILURE;
    if (!callout_is_map(copies[2])) {
        heap_free(message);
        return STATUS_INTERNAL_FAILURE;
    }
    return callout_start(message, id, id_out);
}

u32 EXPORT(proxy_grpc_call)(u32 upstream, u32 upstream_len, u32 service, u32 service_len, u32 method, u32 method_len,
                            u32 metadata, u32 metadata_len, u32 message, u32 message_len, u32 timeout_ms,
                            u32 call_id_out)
{
    struct part parts[4] = {{service, service_len}, {method, method_len}, {metadata, metadata_len},
                            {message, message_len}};
    host_call(IN_CALLBACKS);
    return grpc_start(GRPC_CALL, (struct part){upstream, upstream_len}, parts, 4, timeout_ms, call_id_out);
}

u32 EXPORT(proxy_grpc_stream)(u32 upstream, u32 upstream_len, u32 service, u32 service_len, u32 method,
                              u32 method_len, u32 metadata, u32 metadata_len, u32 stream_id_out)
{
    struct part parts[3] = {{service, service_len}, {method, method_len}, {metadata, metadata_len}};
    host_call(IN_CALLBACKS);
    return grpc_start(GRPC_STREAM, (struct part){upstream, upstream_len}, parts, 3, 0, stream_id_out);
}

/* ---- streams that run -------------------------------------------------------------------------------------------- */

static bool tell(enum outbox_kind kind, u32 id)
{
    static const u32 nothing[OUT_PARTS];
    struct message *message = outbox_make(kind, id, 0, nothing);
    if (message)
        outbox_send(message);
    return message;
}

/* A message that cannot be sent is a BAD_ARGUMENT: the only refusal of this call that every SDK survives. */
u32 EXPORT(proxy_grpc_send)(u32 stream_id, u32 message, u32 message_len, u32 end_of_stream)
{
    struct part part = {message, message_len};
    struct bytes copy;
    host_call(IN_CALLBACKS);
    if (!guest_ok(message, message_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if ((stream_id & KIND_MASK) != GRPC_STREAM)
        return STATUS_BAD_ARGUMENT;
    struct callout *callout = callout_find(stream_id);
    if (!callout || callout->local_closed)
        return STATUS_NOT_FOUND;
    struct message *made = NULL;
    if (callout_small_enough(&part, 1))
        made = callout_compose(OUT_GRPC_SEND, stream_id, end_of_stream != 0, (struct bytes){0}, &part, 1, &copy);
    if (!made)
        return STATUS_BAD_ARGUMENT;
    callout->local_closed = end_of_stream != 0;
    outbox_send(made);
    return STATUS_OK;
}

static u32 grpc_end(u32 id, bool cancel)
{
    u32 kind = id & KIND_MASK;
    if (kind != GRPC_CALL && kind != GRPC_STREAM)
        return STATUS_BAD_ARGUMENT;
    struct callout *callout = callout_find(id);
    if (!callout)
        return STATUS_NOT_FOUND;
    if (cancel || kind == GRPC_CALL) {
        tell(OUT_GRPC_CANCEL, id);
        callout_forget(id);
    } else if (!callout->local_closed) {
        callout->local_closed = true;
        tell(OUT_GRPC_CLOSE, id);
    }
    return STATUS_OK;
}

/* No more callbacks for this id. */
u32 EXPORT(proxy_grpc_cancel)(u32 call_id)
{
    host_call(IN_CALLBACKS);
    return grpc_end(call_id, true);
}

/* A stream is closed on our side alone: the peer's messages still come. */
u32 EXPORT(proxy_grpc_close)(u32 call_id)
{
    host_call(IN_CALLBACKS);
    return grpc_end(call_id, false);
}
