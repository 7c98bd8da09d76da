/*
 * What runs outside the client's events: ticks, queue notices, answers to callouts. And the outbox: what the guest has
 * asked for that only the worker can do.
 *
 * The worker delivers between two polls, on the VM's thread. Effects of such a turn carry event number 0. What a turn
 * may log is bounded per window of time instead of per event, and after a storm of completions the next turns wait: the
 * client bounds what arises outside events by time as well.
 */
#include "callouts.h"
#include "stream.h"

#define NS_PER_MS 1000000ull
#define WINDOW_NS (100 * NS_PER_MS)
#define MAX_WINDOW_RECORDS 8192u

enum inbox_kind {
    IN_TICK = 1,
    IN_QUEUES = 2,
    IN_HTTP_RESPONSE = 3,
    IN_GRPC_INITIAL_METADATA = 4,
    IN_GRPC_MESSAGE = 5,
    IN_GRPC_TRAILING_METADATA = 6,
    IN_GRPC_CLOSE = 7,
    IN_METRICS = 8,
};

/* Results of inbox_deliver. */
enum delivered { DELIVERED = 0, DELIVER_AGAIN = 1, DELIVER_LATER = 2, DELIVER_MALFORMED = 3 };

struct delivery {
    u32 kind, id, status;
    u64 now_ns;
    struct bytes headers, body, trailers;
};
#define HEAD_BYTES 32u

STATE static u8 small_message[HEAD_BYTES]; /* so that a message without contents needs no memory */
STATE static struct {
    u64 since_ns, log_lines, log_bytes;
    u32 records;
} window;

/* ---- ticks ------------------------------------------------------------------------------------------------------- */

static void set_next_tick(u64 at_ns)
{
    vm.next_tick_ns = at_ns;
    vm.status.next_tick_low = (u32)at_ns;
    vm.status.next_tick_high = (u32)(at_ns >> 32);
}

/* A period below the policy's minimum becomes the minimum; 0 stops the timer. */
u32 EXPORT(proxy_set_tick_period_milliseconds)(u32 period_ms)
{
    host_call(IN_CALLBACKS);
    u64 least = vm.config.limits.min_tick_ms ? vm.config.limits.min_tick_ms : 1;
    u64 period = period_ms && period_ms < least ? least : period_ms;
    vm.tick_ns = period * NS_PER_MS;
    set_next_tick(period && callback_granted(CALLBACK_TICK) ? vm.now_ns + vm.tick_ns : 0);
    return STATUS_OK;
}

bool tick_due(void)
{
    return vm.next_tick_ns && vm.now_ns >= vm.next_tick_ns;
}

/* The next one is a period after the end of this one: no overlap, nothing to catch up with. */
static void run_tick(u64 now_ns)
{
    if (!vm.next_tick_ns)
        return;
    if (now_ns < vm.next_tick_ns) {
        if (vm.next_tick_ns - now_ns > vm.tick_ns) /* the wall clock went back */
            set_next_tick(now_ns + vm.tick_ns);
        return;
    }
    set_next_tick(now_ns + vm.tick_ns);
    call_guest(CALLBACK_TICK, NULL, 0, 0);
}

/* ---- turns ------------------------------------------------------------------------------------------------------- */

static bool window_full(u64 now_ns)
{
    if (now_ns - window.since_ns >= WINDOW_NS) { /* also if the clock went back */
        window.since_ns = now_ns;
        window.log_lines = window.log_bytes = window.records = 0;
    }
    return window.records > MAX_WINDOW_RECORDS;
}

static bool run(const struct delivery *delivery)
{
    switch (delivery->kind) {
    case IN_TICK:
        run_tick(delivery->now_ns);
        return false;
    case IN_QUEUES:
        return queues_deliver();
    case IN_METRICS:
        metrics_send();
        return false;
    default:
        callout_answer((enum callout_answer)(delivery->kind - IN_HTTP_RESPONSE), delivery->id, delivery->status,
                       delivery->headers, delivery->body, delivery->trailers);
        return false;
    }
}

static enum delivered turn(const struct delivery *delivery)
{
    struct record record = {.arg = delivery->now_ns};
    if (window_full(delivery->now_ns)) {
        if (delivery->kind != IN_TICK)
            return DELIVER_LATER;
        if (vm.next_tick_ns)
            set_next_tick(delivery->now_ns + vm.tick_ns); /* this one is left out */
        return DELIVERED;
    }
    u32 records = ring_records();
    event_begin(&record);
    vm.log_lines = window.log_lines;
    vm.log_bytes = window.log_bytes;
    bool more = run(delivery);
    run_deferred();
    event_end();
    window.log_lines = vm.log_lines;
    window.log_bytes = vm.log_bytes;
    window.records += ring_records() - records;
    ring_publish();
    return more ? DELIVER_AGAIN : DELIVERED;
}

/* Room for a message of the worker's; 0: there is none, and a message without contents has to do. */
u8 *EXPORT(inbox_buffer)(u32 len)
{
    return len <= HEAD_BYTES ? small_message : heap_alloc(len);
}

static bool decode(const u8 *at, u32 len, struct delivery *delivery)
{
    if (len < HEAD_BYTES)
        return false;
    u32 headers = load_u32(at + 20), body = load_u32(at + 24), trailers = load_u32(at + 28);
    *delivery = (struct delivery){.kind = load_u32(at), .id = load_u32(at + 4), .now_ns = load_u64(at + 8),
                                  .status = load_u32(at + 16)};
    if ((u64)headers + body + trailers != len - HEAD_BYTES)
        return false;
    at += HEAD_BYTES;
    delivery->headers = (struct bytes){at, headers};
    delivery->body = (struct bytes){at + headers, body};
    delivery->trailers = (struct bytes){at + headers + body, trailers};
    return delivery->kind >= IN_TICK && delivery->kind <= IN_METRICS;
}

/*
 * Run what lies in the buffer: u32 kind, id; u64 wall clock; u32 status, lengths of headers, body, trailers; then these.
 * The buffer is given back in any case but DELIVER_LATER.
 */
u32 EXPORT(inbox_deliver)(u8 *at, u32 len)
{
    struct delivery delivery;
    enum delivered result = DELIVER_MALFORMED;
    if (decode(at, len, &delivery))
        result = vm.stopped ? DELIVERED : turn(&delivery);
    if (at != small_message && result != DELIVER_LATER)
        heap_free(at);
    return result;
}

/* ---- outbox ------------------------------------------------------------------------------------------------------ */

struct message {
    struct message *next;
    u32 len;
    u8 data[]; /* u32 kind, id, argument, lengths of the parts; the parts */
};
#define OUT_HEAD_BYTES (12u + 4 * OUT_PARTS)
#define MAX_OUT_BYTES (16u * MIB)

STATE static struct {
    struct message *first, *last;
    u32 bytes;
} outbox;

bool outbox_waiting(void)
{
    return outbox.first;
}

struct message *outbox_make(enum outbox_kind kind, u32 id, u32 argument, const u32 lens[OUT_PARTS])
{
    u64 len = OUT_HEAD_BYTES;
    for (u32 i = 0; i < OUT_PARTS; i++)
        len += lens[i];
    if (len + outbox.bytes > MAX_OUT_BYTES)
        return NULL;
    struct message *message = heap_alloc((u32)(sizeof *message + len));
    if (!message)
        return NULL;
    message->next = NULL;
    message->len = (u32)len;
    store_u32(message->data, kind);
    store_u32(message->data + 4, id);
    store_u32(message->data + 8, argument);
    for (u32 i = 0; i < OUT_PARTS; i++)
        store_u32(message->data + 12 + 4 * i, lens[i]);
    return message;
}

u8 *outbox_parts(struct message *message)
{
    return message->data + OUT_HEAD_BYTES;
}

void outbox_send(struct message *message)
{
    if (outbox.last)
        outbox.last->next = message;
    else
        outbox.first = message;
    outbox.last = message;
    outbox.bytes += message->len;
}

/* The oldest message, for the worker; its length. NULL: there is none. */
u8 *EXPORT(outbox_first)(void)
{
    return outbox.first ? outbox.first->data : NULL;
}

u32 EXPORT(outbox_first_len)(void)
{
    return outbox.first ? outbox.first->len : 0;
}

/* The worker has taken it. */
void EXPORT(outbox_done)(void)
{
    struct message *message = outbox.first;
    if (!message)
        return;
    outbox.first = message->next;
    if (!outbox.first)
        outbox.last = NULL;
    outbox.bytes -= message->len;
    heap_free(message);
}
