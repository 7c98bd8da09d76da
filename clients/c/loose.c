/* Completions outside any event: a VM that starts anew, effects on streams that go on by themselves, and notices. */
#include "internal.h"

#define HALF_RANGE (1u << 31)
#define RESTART_WINDOW_NS 10000000000ull
#define MAX_RESTARTS (sizeof((sbx_channel *)0)->restarts / sizeof((sbx_channel *)0)->restarts[0])

static bool restarts_too_often(sbx_channel *channel)
{
    uint64_t now = monotonic_ns(), *oldest = &channel->restarts[channel->restart_count++ % MAX_RESTARTS];
    bool often = channel->restart_count > MAX_RESTARTS && now - *oldest < RESTART_WINDOW_NS;
    *oldest = now;
    return often;
}

/* Drops what is collected outside events; its budget stays what it is. */
static void loose_forget(sbx_channel *channel)
{
    struct budget left = channel->loose.budget;
    collected_reset(&channel->loose, channel);
    channel->loose.budget = left;
}

static int take_restart(sbx_channel *channel, const struct record *record)
{
    if (record->event_seq || record->payload_len || record->arg <= channel->generation || record->arg > UINT32_MAX)
        return channel_break(channel, SBX_BROKEN, "VM_STARTED that makes no sense");
    if (restarts_too_often(channel))
        return channel_break(channel, SBX_BROKEN, "VM claims to restart without end");
    bool first = channel->generation == 0;
    channel->generation = (uint32_t)record->arg;
    loose_forget(channel);
    /* What was submitted while the first VM started is still in the ring and belongs to that VM. */
    if (!first) {
        channel->restart_seq = channel->next_seq == 1 ? UINT32_MAX : channel->next_seq - 1;
        streams_lose(channel);
        events_lose(channel, SBX_DOWN, true);
    }
    if (channel->hooks.notice) {
        sbx_notice notice = {SBX_VM_STARTED, 0, 0, record->arg, {NULL, 0}};
        channel->hooks.notice(channel->hooks.user, &notice);
    }
    return SBX_OK;
}

/* Submitted before the last restart: the new VM may still meet it in the ring. */
static bool is_stale(const sbx_channel *channel, uint32_t seq)
{
    return channel->restart_seq && channel->restart_seq - seq < HALF_RANGE;
}

static bool was_issued(const sbx_channel *channel, uint32_t seq)
{
    uint32_t age = channel->next_seq - seq;
    return age > 0 && age < HALF_RANGE;
}

static void tell_notice(const sbx_channel *channel, const struct record *record, sbx_bytes data)
{
    sbx_notice notice = {record->kind, record->flags, record->stream_id, record->arg, data};
    if (channel->hooks.notice && is_told(channel, &notice))
        channel->hooks.notice(channel->hooks.user, &notice);
}

/* A notice, or an effect on a stream that goes on, or is answered, without an event of its own. */
static int take_loose_effect(sbx_channel *channel, const struct record *record, const uint8_t *payload)
{
    sbx_bytes data;
    int status = take_payload(channel, NULL, record, payload, &data);
    if (!status && is_effect_kind(record->kind)) {
        sbx_effect effect = effect_of(record, data);
        status = interpret_loose(channel, &effect);
    } else if (!status) {
        tell_notice(channel, record, data);
    }
    if (status == SBX_BROKEN)
        return channel_break(channel, SBX_BROKEN, "malformed effect of kind %u outside any event", record->kind);
    if (status == SBX_NO_MEMORY && is_effect_kind(record->kind)) /* a stream would wait for ever; a notice is no loss */
        return channel_break(channel, SBX_BROKEN, "no memory for an effect outside any event");
    if (!channel->loose.partial_count)
        loose_forget(channel);
    return SBX_OK;
}

int take_loose(sbx_channel *channel, const struct record *record, const uint8_t *payload)
{
    if (!charge_loose(channel, record->payload_len))
        return channel_break(channel, SBX_BROKEN, "more outside events than the limits allow");
    if (record->kind == SBX_VM_STARTED)
        return take_restart(channel, record);
    if (record->event_seq && is_stale(channel, record->event_seq)) {
        channel->dropped++;
        return SBX_OK;
    }
    if (record->event_seq && !was_issued(channel, record->event_seq))
        return channel_break(channel, SBX_BROKEN, "completion for an event that was never submitted");
    if (record->kind == COMPLETE_VERDICT || (record->event_seq && is_effect_kind(record->kind)))
        return channel_break(channel, SBX_BROKEN, "effect of an event that has its verdict");
    return take_loose_effect(channel, record, payload);
}
