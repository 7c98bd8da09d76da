/* The client: uses the library as a proxy would, and checks what comes out of it. */
#include "fuzz_worker.h"

static void read_all(sbx_bytes bytes)
{
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < bytes.len; i++)
        sum ^= bytes.data[i];
}

static void check_name(sbx_bytes name)
{
    if (!name.len)
        finding("an empty header name came out");
    for (size_t i = 0; i < name.len; i++)
        if (name.data[i] <= 0x20 || name.data[i] >= 0x7f || (name.data[i] >= 'A' && name.data[i] <= 'Z'))
            finding("an illegal header name came out");
    if (equal(name, LITERAL("x-denied")) || equal(name, LITERAL("connection")))
        finding("a denied header came out");
}

static void check_value(sbx_bytes value)
{
    for (size_t i = 0; i < value.len; i++)
        if (value.data[i] == '\n' || value.data[i] == 0)
            finding("an illegal header value came out");
}

static void check_changes(const sbx_changes *changes)
{
    for (size_t i = 0; i < changes->removed_count; i++)
        check_name(changes->removed[i]);
    for (size_t i = 0; i < changes->set_count; i++) {
        check_name(changes->set[i].name);
        if (!changes->set[i].count)
            finding("a name is set to nothing");
        for (size_t n = 0; n < changes->set[i].count; n++)
            check_value(changes->set[i].values[n]);
    }
    for (size_t i = 0; i < changes->added_count; i++) {
        check_name(changes->added[i].name);
        check_value(changes->added[i].value);
    }
}

void check_effect(const sbx_effect *effect)
{
    if (effect->changes)
        check_changes(effect->changes);
    if (effect->flags & SBX_AS_SUBMITTED && effect->data.data)
        finding("bytes beside AS_SUBMITTED");
    if (!(effect->flags & SBX_AS_SUBMITTED))
        read_all(effect->data);
    if (!effect->refused && is_body_kind(effect->kind) && !(effect->flags & SBX_AS_SUBMITTED) &&
        (!may_write_body(side.channel->policy) || !needed(side.channel->policy, effect->kind)))
        for (size_t i = 0; i < effect->data.len; i++)
            if (effect->data.data[i] != 'S')
                finding("the plugin's bytes went on although it may not write bodies");
    if (effect->local) {
        const sbx_local_response *local = effect->local;
        if (local->status < 200 || local->status > 599)
            finding("an illegal status came out");
        for (size_t i = 0; i < local->header_count; i++)
            check_name(local->headers[i].name);
        read_all(local->details);
        read_all(local->body);
    }
    read_all(effect->property.name);
    read_all(effect->property.value);
}

void check_event(sbx_event *event)
{
    const sbx_verdict *verdict = sbx_event_verdict(event);
    if (!verdict)
        return;
    verdicts++;
    if (verdict->code > 4 || verdict->state > 63)
        finding("a verdict that is none came out");
    for (size_t i = 0; i < verdict->effect_count; i++) {
        if (verdict->effects[i].stream_id != event->stream_id)
            finding("an effect on another stream in a verdict");
        check_effect(&verdict->effects[i]);
    }
    for (size_t i = 0; i < verdict->notice_count; i++)
        on_notice(NULL, &verdict->notices[i]);
    for (size_t i = 0; i < verdict->refusal_count; i++)
        read_all(verdict->refusals[i].name);
}

static void drop_event(uint32_t index)
{
    if (side.events[index])
        check_event(side.events[index]);
    sbx_event_free(side.events[index]);
    side.events[index] = NULL;
}

static void submit_something(sbx_stream *stream, uint32_t index)
{
    static const char *const names[] = {"x-drop", "x-mask", "x-hash-1", "x-presence"};
    static uint8_t body[30000];
    enum sbx_kind kind = (enum sbx_kind)(2 + pick(6));
    drop_event(index);
    if (stream->tcp) {
        submit_to_connection(stream, &side.events[index]);
        return;
    }
    if (is_body_kind(kind)) {
        memset(body, 'S', sizeof body);
        sbx_bytes pieces[] = {{body, pick(200)}, {body, pick(chance(5) ? 30000 : 200)}};
        sbx_submit_body(stream, kind, pieces, pick(3), chance(30), 1, NULL, &side.events[index]);
        return;
    }
    sbx_pair headers[6] = {{LITERAL_INIT("a"), LITERAL_INIT("1")}, {LITERAL_INIT(":path"), LITERAL_INIT("/")}};
    for (int i = 2; i < 6; i++) {
        const char *name = names[pick(4)];
        headers[i] = (sbx_pair){{(const uint8_t *)name, strlen(name)}, LITERAL_INIT(SECRET)};
    }
    sbx_submit_headers(stream, kind, headers, 2 + pick(5), chance(30), 1, NULL, &side.events[index]);
}

void client_turn(void)
{
    uint32_t s = pick(STREAMS), e = pick(EVENTS);
    sbx_pair attributes[] = {{LITERAL_INIT("source\0address"), LITERAL_INIT(SECRET)},
                             {LITERAL_INIT("request\0id"), LITERAL_INIT("7")}};
    sbx_event *next;
    switch (pick(8)) {
    case 0:
    case 1:
    case 2:
        if (!side.streams[s] && chance(30)) {
            drop_event(e);
            sbx_connection_open(side.channel, attributes, 2, 1, NULL, NULL, &side.streams[s], &side.events[e]);
            break;
        }
        if (!side.streams[s])
            sbx_stream_open(side.channel, attributes, 2, 1, NULL, &side.streams[s]);
        if (side.streams[s])
            submit_something(side.streams[s], e);
        break;
    case 3:
        if (side.streams[s])
            sbx_stream_close(side.streams[s], chance(50), 1);
        side.streams[s] = NULL;
        break;
    case 4:
        if (side.events[e])
            sbx_spin(side.events[e]);
        break;
    case 5:
        if (chance(30))
            drop_event(e);
        break;
    case 6:
        if (side.streams[s] && side.streams[s]->tcp)
            take_connection(side.streams[s]);
        sbx_channel_set_batch(side.channel, (uint32_t)s);
        if (e % 2)
            sbx_arm(side.channel);
        else
            sbx_arm_edge(side.channel);
        break;
    default:
        while (sbx_next(side.channel, &next) == SBX_OK)
            check_event(next);
    }
}

/* Nothing that the policy hides may stand in memory that the worker can read. */
void check_hidden(void)
{
    if (memmem(side.shared + PAGE_BYTES, RING_BYTES, SECRET, strlen(SECRET)))
        finding("a hidden value is in the submission ring");
}
