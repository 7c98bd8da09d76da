/*
 * Callouts: HTTP calls, gRPC calls and gRPC streams, and what comes back from them.
 *
 * A request is checked for form, counted, and put into the outbox; whether it is allowed, and everything that has to do
 * with a network, is decided outside. Callouts belong to the root context. The low two bits of an id tell the kind; ids
 * are never used twice by a VM.
 */
#include "hostcore.h"
#include "protobuf.h"

enum call_kind { HTTP_CALL = 0, GRPC_CALL = 1, GRPC_STREAM = 2 };
#define KIND_BITS 2
#define KIND_MASK 3u
#define MAX_UPSTREAM_BYTES 4096u /* a name, or Envoy's serialised GrpcService */
#define MAX_TEXT_BYTES 1024u     /* a gRPC service or method */
#define MAX_TIMEOUT_MS 0x7fffffffu
#define FIRST_MAP 4u

struct callout {
    bool local_closed; /* nothing more can be sent */
};

STATE static struct {
    struct table in_flight; /* by id */
    u32 numbers[3];         /* the last one given to each kind */
} calls;

/* What the running callback may read. */
STATE static struct {
    struct map maps[4]; /* 4 to 7 */
    bool map_open[4];
    struct bytes body;
    u32 buffer_id; /* 0: none */
    u32 status;
    struct bytes message;
} answer_now;

struct map *callout_map(u32 map_id)
{
    return map_id >= FIRST_MAP && map_id < FIRST_MAP + 4 && answer_now.map_open[map_id - FIRST_MAP]
               ? &answer_now.maps[map_id - FIRST_MAP]
               : NULL;
}

bool callout_buffer(u32 buffer_id, struct bytes *data)
{
    *data = answer_now.body;
    return buffer_id && buffer_id == answer_now.buffer_id;
}

/* ---- upstreams --------------------------------------------------------------------------------------------------- */

static bool find_upstream(struct bytes name, struct bytes *found)
{
    struct pairs_cursor cursor;
    struct bytes nothing;
    if (!name.len || !pairs_open(vm.config.upstreams, &cursor))
        return false;
    while (pairs_next(&cursor, found, &nothing))
        if (bytes_equal(*found, name))
            return true;
    return false;
}

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
    return find_upstream(text, found) ||
           (first_field(&text, 2) && first_field(&text, 1) && find_upstream(text, found));
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* A part of a request where the guest has it. */
struct part {
    u32 at, len;
};

static bool parts_ok(const struct part *parts, u32 count)
{
    for (u32 i = 0; i < count; i++)
        if (!guest_ok(parts[i].at, parts[i].len))
            return false;
    return true;
}

static bool small_enough(const struct part *parts, u32 count)
{
    u64 sum = 0;
    for (u32 i = 0; i < count; i++)
        sum += parts[i].len;
    return sum <= vm.config.limits.callout_bytes;
}

static u32 fresh_id(enum call_kind kind)
{
    u32 id;
    do {
        calls.numbers[kind] = (calls.numbers[kind] + 1) & (UINT32_MAX >> KIND_BITS);
        id = calls.numbers[kind] << KIND_BITS | kind;
    } while (!calls.numbers[kind] || table_get(&calls.in_flight, id));
    return id;
}

/* An upstream that the policy does not name: nobody waits for the answer, but outside it is counted and logged. */
static void tell_unknown(enum outbox_kind kind, struct bytes name)
{
    u32 lens[OUT_PARTS] = {name.len};
    struct message *message = outbox_make(kind, fresh_id(kind == OUT_HTTP_CALL ? HTTP_CALL : GRPC_CALL), 0, lens);
    if (!message)
        return;
    if (name.len)
        memcpy(outbox_parts(message), name.at, name.len);
    outbox_send(message);
}

static bool remember(u32 id)
{
    struct callout *callout = heap_alloc(sizeof *callout);
    if (!callout)
        return false;
    *callout = (struct callout){0};
    if (table_put(&calls.in_flight, id, callout))
        return true;
    heap_free(callout);
    return false;
}

static void forget(u32 id)
{
    heap_free(table_get(&calls.in_flight, id));
    table_remove(&calls.in_flight, id);
}

/* The message with the name of the upstream as its first part, and the other parts copied from the guest. */
static struct message *compose(enum outbox_kind kind, u32 id, u32 argument, struct bytes upstream,
                               const struct part *parts, u32 count, struct bytes *copies)
{
    u32 lens[OUT_PARTS] = {upstream.len};
    for (u32 i = 0; i < count; i++)
        lens[i + 1] = parts[i].len;
    struct message *message = outbox_make(kind, id, argument, lens);
    if (!message)
        return NULL;
    u8 *to = outbox_parts(message);
    if (upstream.len)
        memcpy(to, upstream.at, upstream.len);
    to += upstream.len;
    for (u32 i = 0; i < count; i++) {
        guest_read(parts[i].at, to, parts[i].len);
        copies[i] = (struct bytes){to, parts[i].len};
        to += parts[i].len;
    }
    return message;
}

static bool room_for_another(void)
{
    return calls.in_flight.count < vm.config.limits.callouts;
}

/* Sends the message, or drops it; returns the guest's status. */
static u32 start(struct message *message, u32 id, u32 id_out)
{
    if (!remember(id)) {
        heap_free(message);
        return STATUS_INTERNAL_FAILURE;
    }
    outbox_send(message);
    guest_write_u32(id_out, id);
    return STATUS_OK;
}

static bool names_target(struct bytes headers)
{
    struct pairs_cursor cursor;
    struct bytes key, value;
    bool method = false, path = false, authority = false;
    if (!pairs_open(headers, &cursor))
        return false;
    while (pairs_next(&cursor, &key, &value)) {
        method |= bytes_equal(key, TEXT(":method"));
        path |= bytes_equal(key, TEXT(":path"));
        authority |= bytes_equal(key, TEXT(":authority")) || bytes_equal(key, TEXT("host"));
    }
    return method && path && authority;
}

static bool is_map(struct bytes encoded)
{
    struct pairs_cursor cursor;
    return pairs_open(encoded, &cursor);
}

static u32 http_call(struct bytes upstream, const struct part parts[3], u32 timeout_ms, u32 id_out)
{
    struct bytes copies[3];
    if (!small_enough(parts, 3) || !room_for_another())
        return STATUS_INTERNAL_FAILURE;
    u32 id = fresh_id(HTTP_CALL);
    struct message *message = compose(OUT_HTTP_CALL, id, timeout_ms, upstream, parts, 3, copies);
    if (!message)
        return STATUS_INTERNAL_FAILURE;
    if (!names_target(copies[0]) || !is_map(copies[2])) {
        heap_free(message);
        return STATUS_BAD_ARGUMENT;
    }
    return start(message, id, id_out);
}

u32 EXPORT(proxy_http_call)(u32 upstream, u32 upstream_len, u32 headers, u32 headers_len, u32 body, u32 body_len,
                            u32 trailers, u32 trailers_len, u32 timeout_ms, u32 call_id_out)
{
    struct part parts[3] = {{headers, headers_len}, {body, body_len}, {trailers, trailers_len}};
    struct bytes found;
    host_call(IN_CALLBACKS);
    if (!guest_ok(upstream, upstream_len) || !parts_ok(parts, 3) || !guest_ok(call_id_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (timeout_ms > MAX_TIMEOUT_MS || upstream_len > MAX_UPSTREAM_BYTES)
        return STATUS_BAD_ARGUMENT;
    guest_read(upstream, scratch, upstream_len);
    if (!find_upstream((struct bytes){scratch, upstream_len}, &found)) {
        tell_unknown(OUT_HTTP_CALL, (struct bytes){scratch, upstream_len});
        return STATUS_BAD_ARGUMENT;
    }
    return http_call(found, parts, timeout_ms, call_id_out);
}

/* Calls and streams alike: `parts` are service, method, metadata, and for a call the message. */
static u32 grpc_start(enum call_kind kind, struct part upstream, const struct part *parts, u32 count, u32 timeout_ms,
                      u32 id_out)
{
    struct bytes found, copies[4];
    if (!guest_ok(upstream.at, upstream.len) || !parts_ok(parts, count) || !guest_ok(id_out, 4))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (upstream.len > MAX_UPSTREAM_BYTES)
        return STATUS_PARSE_FAILURE;
    guest_read(upstream.at, scratch, upstream.len);
    if (!find_grpc_upstream((struct bytes){scratch, upstream.len}, &found)) {
        tell_unknown(OUT_GRPC_CALL, (struct bytes){scratch, upstream.len});
        return STATUS_PARSE_FAILURE;
    }
    bool texts_fit = parts[0].len <= MAX_TEXT_BYTES && parts[1].len <= MAX_TEXT_BYTES;
    if (!texts_fit || !small_enough(parts, count) || !room_for_another())
        return STATUS_INTERNAL_FAILURE;
    u32 id = fresh_id(kind);
    struct message *message = compose(kind == GRPC_CALL ? OUT_GRPC_CALL : OUT_GRPC_STREAM, id, timeout_ms, found,
                                      parts, count, copies);
    if (!message)
        return STATUS_INTERNAL_FAILURE;
    if (!is_map(copies[2])) {
        heap_free(message);
        return STATUS_INTERNAL_FAILURE;
    }
    return start(message, id, id_out);
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
    struct callout *callout = table_get(&calls.in_flight, stream_id);
    if (!callout || callout->local_closed)
        return STATUS_NOT_FOUND;
    struct message *made =
        small_enough(&part, 1) ? compose(OUT_GRPC_SEND, stream_id, end_of_stream != 0, (struct bytes){0}, &part, 1, &copy)
                               : NULL;
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
    struct callout *callout = table_get(&calls.in_flight, id);
    if (!callout)
        return STATUS_NOT_FOUND;
    if (cancel || kind == GRPC_CALL) {
        tell(OUT_GRPC_CANCEL, id);
        forget(id);
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

/* ---- answers ----------------------------------------------------------------------------------------------------- */

static bool open_map(u32 map_id, struct bytes encoded)
{
    u32 index = map_id - FIRST_MAP;
    answer_now.map_open[index] = map_decode(&answer_now.maps[index], encoded);
    return answer_now.map_open[index];
}

static void close_answer(void)
{
    for (u32 i = 0; i < 4; i++) {
        map_free(&answer_now.maps[i]);
        answer_now.maps[i] = (struct map){0};
        answer_now.map_open[i] = false;
    }
    answer_now.body = answer_now.message = (struct bytes){0};
    answer_now.buffer_id = answer_now.status = 0;
}

static void run(enum callback callback, struct arguments arguments)
{
    if (callback_granted(callback))
        call_guest_with(callback, NULL, arguments);
}

static void http_response(u32 id, u32 status, struct bytes headers, struct bytes body, struct bytes trailers)
{
    forget(id);
    if (status == 0 && open_map(6, headers) && open_map(7, trailers)) {
        answer_now.body = body;
        answer_now.buffer_id = 4;
        run(CALLBACK_HTTP_CALL_RESPONSE,
            (struct arguments){id, answer_now.maps[2].count, body.len, answer_now.maps[3].count});
        return;
    }
    close_answer();
    answer_now.status = STATUS_BROKEN_CONNECTION;
    answer_now.message = body.len ? body : TEXT("reset");
    run(CALLBACK_HTTP_CALL_RESPONSE, (struct arguments){.a = id});
}

/* Metadata comes to streams alone. */
static void metadata(u32 id, enum callback callback, u32 map_id, struct bytes encoded)
{
    if ((id & KIND_MASK) == GRPC_STREAM && open_map(map_id, encoded))
        run(callback, (struct arguments){.a = id, .b = answer_now.maps[map_id - FIRST_MAP].count});
}

/* The answer to a call ends it well; there is no close after it. */
static void grpc_message(u32 id, struct bytes message)
{
    if ((id & KIND_MASK) == GRPC_CALL)
        forget(id);
    answer_now.body = message;
    answer_now.buffer_id = 5;
    run(CALLBACK_GRPC_RECEIVE, (struct arguments){.a = id, .b = message.len});
}

static void grpc_close(u32 id, u32 status, struct bytes message)
{
    forget(id);
    answer_now.status = status;
    answer_now.message = message;
    run(CALLBACK_GRPC_CLOSE, (struct arguments){.a = id, .b = status});
}

void callout_answer(enum callout_answer answer, u32 id, u32 status, struct bytes headers, struct bytes body,
                    struct bytes trailers)
{
    bool http = (id & KIND_MASK) == HTTP_CALL;
    if (!table_get(&calls.in_flight, id) || http != (answer == ANSWER_HTTP_RESPONSE))
        return; /* cancelled meanwhile, or none of ours */
    switch (answer) {
    case ANSWER_HTTP_RESPONSE:
        http_response(id, status, headers, body, trailers);
        break;
    case ANSWER_GRPC_INITIAL_METADATA:
        metadata(id, CALLBACK_GRPC_RECEIVE_INITIAL_METADATA, 4, headers);
        break;
    case ANSWER_GRPC_MESSAGE:
        grpc_message(id, body);
        break;
    case ANSWER_GRPC_TRAILING_METADATA:
        metadata(id, CALLBACK_GRPC_RECEIVE_TRAILING_METADATA, 5, trailers);
        break;
    case ANSWER_GRPC_CLOSE:
        grpc_close(id, status, body);
        break;
    }
    close_answer();
}

/* Of the callout whose callback runs: why an HTTP call failed, or how a gRPC call or stream ended. */
u32 EXPORT(proxy_get_status)(u32 code_out, u32 message_out, u32 size_out)
{
    host_call(IN_CALLBACKS);
    if (!guest_write_u32(code_out, answer_now.status))
        return STATUS_INVALID_MEMORY_ACCESS;
    return return_bytes(answer_now.message, message_out, size_out);
}
