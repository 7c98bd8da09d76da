/* Events: submitted ones wait in a table by their number, ended ones in a list until the caller was told. */
#include "internal.h"

#include <stdlib.h>

#define SPARE_EVENTS 64u
#define LOOSE_WINDOW_NS 100000000ull
#define MAX_LOOSE_RECORDS 65536u /* a ring full of the smallest ones, twice */
#define EVENTS_HELD 2u /* all without a verdict may hold as much as so many may bring: a VM works on one at a time */
#define FREE_RECORDS 256u        /* of an event; those beyond count as if they were outside events */

/* ---- what an event collects -------------------------------------------------------------------------------------- */

void collected_reset(struct collected *got, const sbx_channel *channel)
{
    arena_reset(&got->arena);
    got->effect_count = got->notice_count = got->refusals.count = 0;
    if (got->partial_count)
        memset(got->partials, 0, MAX_PARTIALS * sizeof *got->partials);
    got->partial_count = 0;
    got->budget = channel->limit;
}

void collected_free(struct collected *got)
{
    arena_free(&got->arena);
    free(got->effects);
    free(got->notices);
    free(got->refusals.list);
    free(got->partials);
    *got = (struct collected){0};
}

bool charge(struct collected *got, uint64_t records, uint64_t bytes)
{
    if (got->budget.effects < records || got->budget.bytes < bytes)
        return false;
    got->budget.effects -= records;
    got->budget.bytes -= bytes;
    return true;
}

/* As Intake._charge_loose in sandboxd/channel/intake.py. */
bool charge_loose(sbx_channel *channel, uint64_t bytes)
{
    uint64_t windows = (monotonic_ns() - channel->loose_since_ns) / LOOSE_WINDOW_NS;
    if (windows && !channel->loose.partial_count) {
        struct budget *left = &channel->loose.budget;
        channel->loose_since_ns += windows * LOOSE_WINDOW_NS;
        /* In so many windows as fill it, it is full. */
        left->effects += (windows < MAX_LOOSE_RECORDS ? windows : MAX_LOOSE_RECORDS) * channel->policy->loose_per_window;
        if (left->effects > MAX_LOOSE_RECORDS)
            left->effects = MAX_LOOSE_RECORDS;
        left->bytes = channel->limit.bytes;
    }
    return charge(&channel->loose, 1, bytes + RECORD_OVERHEAD_BYTES);
}

bool charge_event(sbx_channel *channel, sbx_event *event, uint64_t bytes)
{
    if (!charge(&event->got, 1, bytes + RECORD_OVERHEAD_BYTES))
        return false;
    return channel->limit.effects - event->got.budget.effects <= FREE_RECORDS || charge_loose(channel, 0);
}

bool hold_for_verdict(sbx_channel *channel, sbx_event *event, uint64_t bytes)
{
    event->held_bytes += bytes + RECORD_OVERHEAD_BYTES;
    channel->held_bytes += bytes + RECORD_OVERHEAD_BYTES;
    return channel->held_bytes <= EVENTS_HELD * channel->limit.bytes;
}

static void hold_no_more(sbx_event *event)
{
    event->channel->held_bytes -= event->held_bytes;
    event->held_bytes = 0;
}

/* Gives back what only a large event needed, so that spare ones are small. */
static void collected_shrink(struct collected *got)
{
    if (got->effect_capacity > 64 || got->notice_capacity > 64 || got->refusals.capacity > 64 || got->partials)
        collected_free(got);
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

static void outstanding_add(sbx_channel *channel, sbx_event *event)
{
    struct list *list = &channel->outstanding;
    event->prev = list->last;
    event->next = NULL;
    *(list->last ? &list->last->next : &list->first) = event;
    list->last = event;
}

static void outstanding_remove(sbx_channel *channel, sbx_event *event)
{
    struct list *list = &channel->outstanding;
    *(event->prev ? &event->prev->next : &list->first) = event->next;
    *(event->next ? &event->next->prev : &list->last) = event->prev;
    event->prev = event->next = NULL;
}

static void ended_add(struct list *list, sbx_event *event)
{
    event->ended_in = list;
    event->ended_prev = list->last;
    event->ended_next = NULL;
    *(list->last ? &list->last->ended_next : &list->first) = event;
    list->last = event;
}

static void ended_remove(sbx_event *event)
{
    struct list *list = event->ended_in;
    if (!list)
        return;
    *(event->ended_prev ? &event->ended_prev->ended_next : &list->first) = event->ended_next;
    *(event->ended_next ? &event->ended_next->ended_prev : &list->last) = event->ended_prev;
    event->ended_in = NULL;
}

void event_told(sbx_event *event)
{
    if (event->ended_in != &event->channel->done)
        return;
    ended_remove(event);
    ended_add(&event->channel->told, event);
}

/* ---- table ------------------------------------------------------------------------------------------------------- */

static sbx_event **slot(const sbx_channel *channel, uint32_t seq)
{
    return &channel->event_slots[seq & channel->event_mask];
}

bool event_table_grow(sbx_channel *channel)
{
    if (channel->event_slots && channel->event_count <= channel->event_mask)
        return true;
    uint32_t slots = channel->event_slots ? (channel->event_mask + 1) * 2 : 64;
    sbx_event **old = channel->event_slots, **fresh = slots ? calloc(slots, sizeof *fresh) : NULL;
    if (!fresh)
        return false;
    uint32_t old_slots = old ? channel->event_mask + 1 : 0;
    channel->event_slots = fresh;
    channel->event_mask = slots - 1;
    for (uint32_t i = 0; i < old_slots; i++)
        while (old[i]) {
            sbx_event *event = old[i];
            old[i] = event->slot_next;
            event->slot_next = *slot(channel, event->seq);
            *slot(channel, event->seq) = event;
        }
    free(old);
    return true;
}

sbx_event *event_find(const sbx_channel *channel, uint32_t seq)
{
    if (!channel->event_slots)
        return NULL;
    sbx_event *event = *slot(channel, seq);
    while (event && event->seq != seq)
        event = event->slot_next;
    return event;
}

void event_enter(sbx_channel *channel, sbx_event *event)
{
    event->in_table = true;
    event->submitted_ns = monotonic_ns();
    event->slot_next = *slot(channel, event->seq);
    *slot(channel, event->seq) = event;
    channel->event_count++;
    outstanding_add(channel, event);
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

sbx_event *event_new(sbx_channel *channel)
{
    sbx_event *event = channel->spare;
    if (event) {
        channel->spare = event->slot_next;
        channel->spare_count--;
        struct collected got = event->got;
        *event = (sbx_event){.got = got};
    } else if (!(event = calloc(1, sizeof *event))) {
        return NULL;
    }
    collected_reset(&event->got, channel);
    event->channel = channel;
    event->status = SBX_AGAIN;
    event->owned = true;
    return event;
}

void event_destroy(sbx_event *event)
{
    sbx_channel *channel = event->channel;
    ended_remove(event);
    collected_shrink(&event->got);
    if (channel->spare_count >= SPARE_EVENTS) {
        collected_free(&event->got);
        free(event);
        return;
    }
    arena_reset(&event->got.arena);
    event->slot_next = channel->spare;
    channel->spare = event;
    channel->spare_count++;
}

bool event_wants(const sbx_event *event, unsigned kind, uint64_t stream_id)
{
    return !event->deaf || (is_effect_kind(kind) && stream_id != event->stream_id);
}

/* Drops what was collected and nobody wants any more. False: there is nothing else. */
static bool keep_wanted(const sbx_event *event, struct collected *got)
{
    size_t kept = 0;
    for (size_t i = 0; i < got->effect_count; i++)
        if (event_wants(event, got->effects[i].kind, got->effects[i].stream_id))
            got->effects[kept++] = got->effects[i];
    for (unsigned i = 0; got->partial_count && i < MAX_PARTIALS; i++)
        if (got->partials[i].used && !event_wants(event, got->partials[i].kind, got->partials[i].stream_id)) {
            got->partials[i].used = false;
            got->partial_count--;
        }
    got->effect_count = kept;
    got->notice_count = 0;
    return kept || got->partial_count;
}

/* What was collected so far is given back, but what is done to other streams; the event itself stays until the VM is
   through with it. */
static void go_deaf(sbx_event *event)
{
    struct budget left = event->got.budget;
    event->deaf = true;
    event->has_body = false;
    if (keep_wanted(event, &event->got))
        return;
    collected_shrink(&event->got);
    collected_reset(&event->got, event->channel);
    event->got.budget = left;
    hold_no_more(event);
}

void event_leave(sbx_channel *channel, sbx_event *event)
{
    sbx_event **at = slot(channel, event->seq);
    while (*at != event)
        at = &(*at)->slot_next;
    *at = event->slot_next;
    channel->event_count--;
    event->in_table = false;
    hold_no_more(event);
    outstanding_remove(channel, event);
    if (!event->owned)
        event_destroy(event);
}

void event_end(sbx_event *event, int status)
{
    if (!event->owned || event->status != SBX_AGAIN)
        return;
    event->status = status;
    ended_add(&event->channel->done, event);
    if (status != SBX_OK)
        go_deaf(event);
    if (status != SBX_OK && event->connection)
        tcp_event_lost(event->channel, event->stream_id, status);
}

void events_lose(sbx_channel *channel, int status, bool forget)
{
    sbx_event *next;
    for (sbx_event *event = channel->outstanding.first; event; event = next) {
        next = event->next;
        event_end(event, status);
        if (forget)
            event_leave(channel, event);
    }
}

uint32_t take_seq(sbx_channel *channel)
{
    uint32_t seq = channel->next_seq;
    channel->next_seq = seq == UINT32_MAX ? 1 : seq + 1;
    return seq;
}

/* ---- the public part --------------------------------------------------------------------------------------------- */

int sbx_event_status(const sbx_event *event)
{
    return event->status;
}

const sbx_verdict *sbx_event_verdict(const sbx_event *event)
{
    return event->status == SBX_OK ? &event->verdict : NULL;
}

void *sbx_event_user(const sbx_event *event)
{
    return event->user;
}

enum sbx_kind sbx_event_kind(const sbx_event *event)
{
    return (enum sbx_kind)event->kind;
}

uint64_t sbx_event_stream_id(const sbx_event *event)
{
    return event->stream_id;
}

void sbx_event_free(sbx_event *event)
{
    if (!event)
        return;
    if (event->connection && event->owned && event->status == SBX_AGAIN)
        tcp_event_lost(event->channel, event->stream_id, SBX_TIMEOUT); /* what becomes of its bytes is not waited for */
    event->owned = false;
    ended_remove(event);
    if (!event->in_table)
        event_destroy(event);
    else if (!event->deaf)
        go_deaf(event);
}
