/* Callouts: what comes back from them, and what the guest may read of it in its callbacks. */
#include "callouts.h"

#define FIRST_MAP 4u

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
    callout_forget(id);
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
        callout_forget(id);
    answer_now.body = message;
    answer_now.buffer_id = 5;
    run(CALLBACK_GRPC_RECEIVE, (struct arguments){.a = id, .b = message.len});
}

static void grpc_close(u32 id, u32 status, struct bytes message)
{
    callout_forget(id);
    answer_now.status = status;
    answer_now.message = message;
    run(CALLBACK_GRPC_CLOSE, (struct arguments){.a = id, .b = status});
}

void callout_answer(enum callout_answer answer, u32 id, u32 status, struct bytes headers, struct bytes body,
                    struct bytes trailers)
{
    bool http = (id & KIND_MASK) == HTTP_CALL;
    if (!callout_find(id) || http != (answer == ANSWER_HTTP_RESPONSE))
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
