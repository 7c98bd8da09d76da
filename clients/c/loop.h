/*
 * A channel without a daemon, for programs that play the VM themselves: it answers every event with a verdict and
 * nothing else. bench_rtt.c and tests/clients/stress_wake.c use it; the library has nothing of it.
 */
#ifndef SBX_LOOP_H
#define SBX_LOOP_H

#include "layout.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* The VM's side. */
struct loop {
    uint8_t *shared;
    uint32_t ring_bytes;
    uint32_t head, tail; /* of submissions taken, of completions written */
    int vm_fd, client_fd;
};

static inline uint32_t *loop_word(const struct loop *loop, uint32_t offset)
{
    return (uint32_t *)(void *)(loop->shared + offset);
}

static inline bool loop_has_work(const struct loop *loop)
{
    return __atomic_load_n(loop_word(loop, AT_SQ_TAIL), __ATOMIC_ACQUIRE) != loop->head;
}

/* Takes what was submitted and writes a verdict for each event; the caller publishes both. Returns the events' number. */
static inline unsigned loop_answer(struct loop *loop)
{
    unsigned events = 0;
    uint32_t mask = loop->ring_bytes - 1, end = __atomic_load_n(loop_word(loop, AT_SQ_TAIL), __ATOMIC_ACQUIRE);
    while (loop->head != end) {
        const uint8_t *at = loop->shared + PAGE_BYTES + (loop->head & mask);
        uint16_t kind = get_u16(at + 4);
        if (kind != KIND_PAD && kind != SUBMIT_STREAM_OPEN) {
            /* A verdict's size divides the ring's. */
            uint8_t *to = loop->shared + PAGE_BYTES + loop->ring_bytes + (loop->tail & mask);
            put_u32(to, RECORD_BYTES);
            put_u32(to + 4, COMPLETE_VERDICT);
            memcpy(to + 8, at + 8, 12); /* stream and number */
            put_u32(to + 20, 0);
            put_u64(to + 24, SBX_VERDICT_OK);
            loop->tail += RECORD_BYTES;
            events++;
        }
        loop->head += get_u32(at);
    }
    return events;
}

/* A policy that needs request headers, allows nothing, and has generous limits. */
static inline int loop_policy(sbx_policy **policy, sbx_error *error)
{
    static const uint64_t numbers[][6] = {
        {1}, {65536, 256, 65536, 60000000000u, 1000, 60000000000u}, {0, 503}, {7, 256, 16384, 65536}};
    static const uint32_t counts[] = {1, 6, 2, 4};
    uint8_t blob[1024] = "SBXP\1\0\0", *at = blob + 8;
    for (uint32_t tag = 1; tag < 14; tag++) {
        uint32_t len = tag <= 2 ? 1 : tag == 3 ? 16 : tag <= 7 ? 8 * counts[tag - 4] : 0;
        if (tag == 9)
            continue;
        put_u32(at, tag);
        put_u32(at + 4, len);
        for (uint32_t i = 0; tag >= 4 && tag <= 7 && i < counts[tag - 4]; i++)
            put_u64(at + 8 + 8 * i, numbers[tag - 4][i]);
        at += 8 + ((len + 7) & ~7u);
    }
    return sbx_policy_load(blob, (size_t)(at - blob), policy, error);
}

/* Makes the memory and opens the client's side; what is made lives as long as the process. A status. */
static inline int loop_open(struct loop *loop, uint32_t ring_bytes, sbx_channel **channel, sbx_error *error)
{
    size_t size = PAGE_BYTES + 2 * (size_t)ring_bytes;
    int memfd = memfd_create("loop", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    *error = (sbx_error){.status = SBX_SYSTEM, .text = "no memory for a channel"};
    if (memfd < 0 || ftruncate(memfd, (off_t)size))
        return SBX_SYSTEM;
    *loop = (struct loop){.ring_bytes = ring_bytes};
    loop->shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (loop->shared == MAP_FAILED)
        return SBX_SYSTEM;
    *loop_word(loop, AT_MAGIC) = CHANNEL_MAGIC;
    *loop_word(loop, AT_VERSION) = CHANNEL_VERSION;
    *loop_word(loop, AT_RING_BYTES) = ring_bytes;
    *loop_word(loop, AT_VM_STATE) = VM_READY;
    fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    loop->vm_fd = eventfd(0, EFD_NONBLOCK);
    loop->client_fd = eventfd(0, EFD_NONBLOCK);
    sbx_descriptors given = {memfd, dup(loop->vm_fd), dup(loop->client_fd), -1, ring_bytes, 0, 0};
    sbx_policy *policy;
    int status = loop_policy(&policy, error);
    if (status)
        return status;
    status = sbx_channel_open(&given, policy, channel, error);
    sbx_policy_release(policy);
    return status;
}

#endif
