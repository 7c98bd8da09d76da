/* A channel's life, and the state of the VM behind it. */
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MANY_CPUS = 4 };

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static bool has_many_cpus(void)
{
    cpu_set_t cpus;
    return !sched_getaffinity(0, sizeof cpus, &cpus) && CPU_COUNT(&cpus) >= MANY_CPUS;
}

/* The descriptors of `given` are ours from here on. */
int sbx_channel_open(const sbx_descriptors *given, sbx_policy *policy, sbx_channel **channel, sbx_error *error)
{
    *channel = NULL;
    sbx_channel *made = calloc(1, sizeof *made);
    int status = made ? ring_map(&made->ring, given, error) : fail(error, SBX_NO_MEMORY, "no memory for a channel");
    close_fd(given->memfd);
    if (status) {
        free(made);
        close_fd(given->vm_event_fd);
        close_fd(given->client_event_fd);
        close_fd(given->socket);
        return status;
    }
    made->socket = given->socket;
    made->policy = sbx_policy_keep(policy);
    made->next_seq = 1;
    made->next_stream_id = 1;
    made->limit = (struct budget){policy->limits.max_effects, policy->limits.max_bytes};
    made->spin_ns = made->spin_now_ns = given->spin_ns;
    made->many_cpus = has_many_cpus();
    *channel = made;
    return SBX_OK;
}

void sbx_channel_hooks(sbx_channel *channel, const sbx_hooks *hooks)
{
    channel->hooks = *hooks;
}

static void free_events(sbx_channel *channel)
{
    for (sbx_event *event = channel->outstanding.first, *next; event; event = next) {
        next = event->next;
        event->owned = false;
        event_leave(channel, event);
    }
    while (channel->done.first)
        event_destroy(channel->done.first);
    while (channel->told.first)
        event_destroy(channel->told.first);
    while (channel->spare) {
        sbx_event *event = channel->spare;
        channel->spare = event->slot_next;
        collected_free(&event->got);
        free(event);
    }
}

void sbx_channel_close(sbx_channel *channel)
{
    if (!channel)
        return;
    for (uint32_t i = 0; channel->stream_slots && i <= channel->stream_mask; i++)
        while (channel->stream_slots[i])
            stream_free(channel->stream_slots[i]);
    free_events(channel);
    free(channel->stream_slots);
    free(channel->event_slots);
    collected_free(&channel->loose);
    arena_free(&channel->scratch);
    close_fd(channel->ring.vm_event_fd);
    close_fd(channel->ring.client_event_fd);
    close_fd(channel->socket);
    ring_unmap(&channel->ring);
    sbx_policy_release(channel->policy);
    free(channel);
}

int channel_break(sbx_channel *channel, int status, const char *format, ...)
{
    if (channel->dead)
        return channel->dead;
    va_list arguments;
    char text[sizeof channel->reason];
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    put_text(channel->reason, sizeof channel->reason, "%s", text);
    channel->dead = status;
    streams_lose(channel);
    events_lose(channel, status, true);
    if (status == SBX_BROKEN)
        channel_tell_broken(channel);
    return status;
}

/* The VM failed: no event gets its verdict any more, though the next VM may still meet some. */
static void lose_if_failed(sbx_channel *channel)
{
    uint32_t state = ring_load(&channel->ring, AT_VM_STATE);
    if ((state == VM_FAILED || state == VM_GONE) && channel->outstanding.first && !ring_has_records(&channel->ring))
        events_lose(channel, SBX_DOWN, false);
}

enum sbx_cause sbx_channel_down_cause(const sbx_channel *channel)
{
    switch (ring_load(&channel->ring, AT_VM_FAILURE)) {
    case FAILURE_CPU_LIMIT:
        return SBX_CAUSE_CPU_LIMIT;
    case FAILURE_MEMORY_LIMIT:
        return SBX_CAUSE_MEMORY_LIMIT;
    case FAILURE_HOST_CALL_LIMIT:
        return SBX_CAUSE_HOST_CALL_LIMIT;
    default:
        return SBX_CAUSE_TRAP;
    }
}

int channel_drain(sbx_channel *channel)
{
    struct ring *ring = &channel->ring;
    struct reader reader;
    struct record record;
    const uint8_t *payload;
    enum ring_next next;
    bool any = false;
    if (channel->dead)
        return channel->dead;
    if (!ring_begin(ring, &reader))
        return channel_break(channel, SBX_BROKEN, "producer's position does not fit the consumer's");
    while ((next = ring_next(ring, &reader, &record, &payload)) == RING_RECORD) {
        any = true;
        if (take_record(channel, &record, payload))
            return channel->dead;
    }
    if (next == RING_BROKEN)
        return channel_break(channel, SBX_BROKEN, "malformed record");
    /* Padding alone is worth nothing: a VM that sends it without end must not keep us busy for ever. */
    if (!any && reader.head != ring->cq_head && !charge_loose(channel, 0))
        return channel_break(channel, SBX_BROKEN, "padding without end");
    ring_end(ring, &reader);
    if (ring->first && ring_pump(ring))
        return channel_break(channel, SBX_BROKEN, "consumer's position does not fit the producer's");
    ring_flush(ring);
    lose_if_failed(channel);
    return SBX_OK;
}

int channel_usable(sbx_channel *channel)
{
    struct ring *ring = &channel->ring;
    if (channel->dead)
        return channel->dead;
    /* Meet VM_STARTED first: it would take an event submitted now for one of the old VM. */
    if (ring_load(ring, AT_VM_GENERATION) != channel->generation && ring_has_records(ring) && channel_drain(channel))
        return channel->dead;
    return ring_load(ring, AT_VM_STATE) == VM_READY ? SBX_OK : SBX_DOWN;
}

bool sbx_ready(sbx_channel *channel)
{
    return channel_usable(channel) == SBX_OK;
}

sbx_policy *sbx_channel_policy(const sbx_channel *channel)
{
    return channel->policy;
}

const char *sbx_channel_reason(const sbx_channel *channel)
{
    return channel->reason;
}

uint32_t sbx_channel_generation(const sbx_channel *channel)
{
    return channel->generation;
}

uint64_t sbx_channel_spin_ns(const sbx_channel *channel)
{
    return channel->spin_ns;
}

void sbx_channel_set_spin_ns(sbx_channel *channel, uint64_t spin_ns)
{
    channel->spin_ns = channel->spin_now_ns = spin_ns;
}

void sbx_channel_set_batch(sbx_channel *channel, uint32_t submissions)
{
    channel->ring.may_wait = submissions;
}

void sbx_call(sbx_channel *channel)
{
    ring_call(&channel->ring);
}

int sbx_channel_fd(const sbx_channel *channel)
{
    return channel->ring.client_event_fd;
}

int sbx_channel_socket(const sbx_channel *channel)
{
    return channel->socket;
}
