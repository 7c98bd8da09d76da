/* What did not fit the submission ring, and waits for room in it. */
#include "internal.h"

#include <stdlib.h>

static void pop(struct ring *ring)
{
    struct backlog *first = ring->first;
    ring->first = first->next;
    if (!ring->first)
        ring->last = NULL;
    ring->backlog_bytes -= first->record.payload_len + RECORD_BYTES;
    free(first->owned);
    free(first);
}

void ring_drop_backlog(struct ring *ring)
{
    while (ring->first)
        pop(ring);
}

static void append(struct ring *ring, struct backlog *entry)
{
    if (ring->last)
        ring->last->next = entry;
    else
        ring->first = entry;
    ring->last = entry;
    ring->backlog_bytes += entry->record.payload_len + RECORD_BYTES;
}

static void free_entries(struct backlog *entry)
{
    while (entry) {
        struct backlog *next = entry->next;
        free(entry);
        entry = next;
    }
}

/* Cuts a payload to records; NULL: no memory. Nothing is owned yet. */
static struct backlog *cut(const struct ring *ring, const struct record *record, const uint8_t *payload)
{
    struct backlog *first = NULL, **end = &first;
    uint32_t left = record->payload_len, most = max_payload(ring);
    do {
        struct backlog *entry = calloc(1, sizeof *entry);
        if (!entry) {
            free_entries(first);
            return NULL;
        }
        entry->record = *record;
        entry->record.payload_len = left < most ? left : most;
        entry->payload = payload;
        left -= entry->record.payload_len;
        payload = payload ? payload + entry->record.payload_len : NULL;
        if (left)
            entry->record.flags |= FLAG_MORE;
        *end = entry;
        end = &entry->next;
    } while (left);
    return first;
}

int ring_queue(struct ring *ring, const struct record *record, uint8_t *payload, bool always)
{
    if (!always && ring->backlog_bytes + record->payload_len > ring->max_backlog_bytes) {
        free(payload);
        return SBX_FULL;
    }
    struct backlog *entry = cut(ring, record, payload);
    if (!entry) {
        free(payload);
        return SBX_NO_MEMORY;
    }
    while (entry) {
        struct backlog *next = entry->next;
        entry->next = NULL;
        if (!next)
            entry->owned = payload;
        append(ring, entry);
        entry = next;
    }
    return SBX_OK;
}

int ring_pump(struct ring *ring)
{
    int status = SBX_OK;
    while (ring->first) {
        uint8_t *at;
        const struct backlog *first = ring->first;
        status = ring_reserve(ring, &first->record, &at);
        if (status || !at)
            break;
        if (first->record.payload_len)
            memcpy(at, first->payload, first->record.payload_len);
        pop(ring);
    }
    ring_store(ring, AT_CLIENT_WANTS_SPACE, ring->first != NULL);
    return status;
}
