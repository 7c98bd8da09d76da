/* The channel between them, and the policies that the client has of it. */
#include "fuzz_worker.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

struct side side;

/* For what breaks the channel: on most channels seldom, so that there is time for more than the first record. */
bool rarely(uint32_t percent)
{
    return side.wild ? chance(percent) : pick(2000) < percent;
}

sbx_policy *policies[2];
uint64_t breaks, verdicts, late, executions, taken;

void finding(const char *what)
{
    fprintf(stderr, "FINDING: %s\n", what);
    abort();
}

static void put_entry(uint8_t **at, uint32_t tag, const void *content, uint32_t len)
{
    put_u32(*at, tag);
    put_u32(*at + 4, len);
    if (len)
        memcpy(*at + 8, content, len);
    memset(*at + 8 + len, 0, -len & 7);
    *at += 8 + ((len + 7) & ~7u);
}

static void put_numbers(uint8_t **at, uint32_t tag, const uint64_t *numbers, uint32_t count)
{
    uint8_t bytes[64];
    for (uint32_t i = 0; i < count; i++)
        put_u64(bytes + 8 * i, numbers[i]);
    put_entry(at, tag, bytes, 8 * count);
}

/* Each reads one direction of connections alone, and the one that may write no response's body. Hides x-drop, x-mask, x-hash-*, x-presence; denies x-denied. Small limits, so that they are met. */
static sbx_policy *make_policy(bool may_write)
{
    static const char redact[] = "\x06\0\1\0x-drop\x06\0\2\0x-mask\x07\0\3\1x-hash-\x0a\0\4\0x-presence";
    static const char denied[] = "\x08\0\1\0x-denied";
    static const char paths[] = "\x0e\0\0\0source\0address";
    uint8_t blob[4096], *at = blob + 8;
    uint64_t needs = 0x1ff | SBX_HAS_TCP_CALLBACKS, limits[] = {8192, 16, 4096, 1000000000, 64, 1000000000}, failure[] = {0, 503};
    uint64_t write[] = {may_write ? 15 : 8, 16, 256, 1024};
    needs |= may_write ? SBX_NEEDS_UPSTREAM_DATA : SBX_NEEDS_DOWNSTREAM_DATA;
    if (may_write) /* else it would not matter */
        needs ^= SBX_NEEDS_RESPONSE_BODY | SBX_HAS_RESPONSE_BODY_CALLBACK;
    memcpy(blob, "SBXP\1\0\0\0", 8);
    put_entry(&at, 1, "t", 1);
    put_entry(&at, 2, "p", 1);
    put_entry(&at, 3, "0123456789abcdef", 16);
    put_numbers(&at, 4, &needs, 1);
    put_numbers(&at, 5, limits, 6);
    put_numbers(&at, 6, failure, 2);
    put_numbers(&at, 7, write, 4);
    put_entry(&at, 8, denied, sizeof denied - 1);
    for (uint32_t section = 10; section < 14; section++)
        put_entry(&at, section, redact, sizeof redact - 1);
    put_entry(&at, 14, paths, sizeof paths - 1);
    sbx_policy *policy;
    sbx_error error;
    if (sbx_policy_load(blob, (size_t)(at - blob), &policy, &error)) {
        finding(error.text);
    }
    return policy;
}

void on_notice(void *user, const sbx_notice *notice)
{
    volatile uint8_t sum = 0;
    (void)user;
    for (size_t i = 0; i < notice->data.len; i++)
        sum ^= notice->data.data[i];
    if (notice->kind == SBX_NOTE && notice->data.len) {
        if (notice->arg != SBX_PROPERTY_MISSING || notice->data.len > MAX_MISSED_BYTES)
            finding("a note with more than it may have");
        if (equal(notice->data, LITERAL(HIDDEN_PROPERTY)))
            finding("a hint at a hidden property");
    }
}

static void on_late(void *user, sbx_stream *stream, const sbx_effect *effect)
{
    (void)user;
    if (sbx_stream_id(stream) != effect->stream_id)
        finding("a late effect of another stream");
    check_effect(effect);
    late++;
}

uint32_t *word(uint32_t offset)
{
    return (uint32_t *)(void *)(side.shared + offset);
}

/* A worker that writes while the library reads: what was copied is something else right after. */
void fuzz_copied(const uint8_t *at, size_t len)
{
    const struct ring *ring = &side.channel->ring;
    size_t offset = (size_t)(at - ring->shared);
    if (len)
        side.shared[offset + pick((uint32_t)len)] ^= (uint8_t)(1u << pick(8));
}

/* Moves the library's mapping to where a page follows that nobody may touch. */
static void put_guard(struct ring *ring)
{
    uint8_t *room = mmap(NULL, ring->shared_bytes + PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED || mremap(ring->shared, ring->shared_bytes, ring->shared_bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                                     room) == MAP_FAILED)
        finding("no room for a guard page");
    ring->cq = room + (ring->cq - ring->shared);
    ring->sq = room + (ring->sq - ring->shared);
    ring->shared = room;
    side.guard = room + ring->shared_bytes;
}

static int memfd = -1;

/* The same memory for one channel after the other: new memory costs more than all that is done with it. */
static uint8_t *empty_memory(void)
{
    static uint8_t *memory;
    size_t size = PAGE_BYTES + 2 * RING_BYTES;
    if (memory)
        return memset(memory, 0, size);
    memfd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0 || ftruncate(memfd, (off_t)size) || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        finding("no memfd");
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (memory == MAP_FAILED)
        finding("no memory");
    return memory;
}

void open_side(void)
{
    static const sbx_hooks hooks = {NULL, on_notice, on_late};
    side = (struct side){.wild = chance(15), .shared = empty_memory()};
    *word(AT_MAGIC) = CHANNEL_MAGIC;
    *word(AT_VERSION) = CHANNEL_VERSION;
    *word(AT_RING_BYTES) = RING_BYTES;
    /* Counters that wrap soon. */
    uint32_t start = chance(50) ? 0u - 8u * pick(20000) : 8 * pick(1000);
    *word(AT_SQ_TAIL) = *word(AT_SQ_HEAD) = start;
    *word(AT_CQ_TAIL) = *word(AT_CQ_HEAD) = side.tail = start;
    side.vm_event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    side.client_event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sbx_descriptors given = {dup(memfd), dup(side.vm_event_fd), dup(side.client_event_fd), -1, RING_BYTES, 100000, 0};
    sbx_error error;
    if (sbx_channel_open(&given, policies[pick(2)], &side.channel, &error))
        finding(error.text);
    put_guard(&side.channel->ring);
    sbx_channel_hooks(side.channel, &hooks);
    begin_vm();
}

void close_side(void)
{
    sbx_channel_close(side.channel);
    munmap(side.guard, PAGE_BYTES);
    close(side.vm_event_fd);
    close(side.client_event_fd);
}

void make_policies(void)
{
    policies[0] = make_policy(true);
    policies[1] = make_policy(false);
}
