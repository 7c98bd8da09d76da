/*
 * libsandboxd's client against a VM thread that keeps the handshake of docs/channel.md, with a random pause before every
 * step of either (SBX_STEP is stress_step): nothing, a few hundred loops, or a yield. Each turn is one event and its verdict. The client never spins,
 * so both sides sleep all the time. A lost wake-up shows as a time-out.
 *
 *     stress_wake TURNS SEED      prints how often each side slept
 */
#include "internal.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define RING_BYTES MIN_RING_BYTES

static uint8_t *shared;
static int vm_fd, client_fd;
static uint64_t turns;
static unsigned vm_slept;

static void delay(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    unsigned what = (unsigned)(*state >> 20) % 16;
    if (what == 0)
        sched_yield();
    for (volatile unsigned i = 0; what > 12 && i < (*state >> 40) % 2000; i++)
        ;
}

void stress_step(void);

void stress_step(void)
{
    static _Thread_local uint64_t state = 88172645463325252u;
    delay(&state);
}

static uint32_t *word(uint32_t offset)
{
    return (uint32_t *)(void *)(shared + offset);
}

/* Takes what was submitted, answers each event with a verdict. Returns how many events there were. */
static unsigned serve(uint32_t *head, uint32_t *tail, uint64_t *state)
{
    unsigned events = 0;
    uint32_t end = __atomic_load_n(word(AT_SQ_TAIL), __ATOMIC_ACQUIRE);
    while (*head != end) {
        const uint8_t *at = shared + PAGE_BYTES + (*head & (RING_BYTES - 1));
        uint32_t size = get_u32(at);
        uint16_t kind = get_u16(at + 4);
        if (kind != KIND_PAD && kind != SUBMIT_STREAM_OPEN) {
            uint8_t *to = shared + PAGE_BYTES + RING_BYTES + (*tail & (RING_BYTES - 1)); /* 32 divides the ring */
            put_u32(to, RECORD_BYTES);
            put_u32(to + 4, COMPLETE_VERDICT);
            put_u64(to + 8, get_u64(at + 8));
            put_u32(to + 16, get_u32(at + 16));
            put_u32(to + 20, 0);
            put_u64(to + 24, 0);
            *tail += RECORD_BYTES;
            events++;
        }
        *head += size;
        __atomic_store_n(word(AT_SQ_HEAD), *head, __ATOMIC_RELEASE);
    }
    delay(state);
    __atomic_store_n(word(AT_CQ_TAIL), *tail, __ATOMIC_RELEASE);
    delay(state);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    delay(state);
    if (__atomic_load_n(word(AT_CLIENT_NEED_WAKE), __ATOMIC_ACQUIRE)) {
        delay(state);
        if (__atomic_exchange_n(word(AT_CLIENT_NEED_WAKE), 0, __ATOMIC_SEQ_CST)) {
            delay(state);
            eventfd_write(client_fd, 1);
        }
    }
    return events;
}

static void *vm_main(void *seed)
{
    uint64_t state = *(const uint64_t *)seed * 0x9E3779B97F4A7C15u + 7, served = 0;
    uint32_t head = 0, tail = 0;
    while (served < turns) {
        served += serve(&head, &tail, &state);
        delay(&state);
        __atomic_store_n(word(AT_VM_NEED_WAKE), 1, __ATOMIC_SEQ_CST);
        delay(&state);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        delay(&state);
        if (__atomic_load_n(word(AT_SQ_TAIL), __ATOMIC_ACQUIRE) == head && served < turns) {
            struct pollfd fd = {.fd = vm_fd, .events = POLLIN};
            eventfd_t count;
            vm_slept++;
            if (poll(&fd, 1, 20000) == 0) {
                fprintf(stderr, "the VM was not woken\n");
                exit(1);
            }
            delay(&state);
            eventfd_read(vm_fd, &count);
        }
        delay(&state);
        __atomic_store_n(word(AT_VM_NEED_WAKE), 0, __ATOMIC_RELEASE);
    }
    return NULL;
}

static sbx_policy *make_policy(void)
{
    /* Empty lists, no needs; generous limits. */
    static const uint64_t numbers[][6] = {
        {0}, {65536, 256, 65536, 60000000000ull, 1000, 60000000000ull}, {0, 503}, {7, 256, 16384, 65536}};
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
    sbx_policy *policy;
    sbx_error error;
    if (sbx_policy_load(blob, (size_t)(at - blob), &policy, &error)) {
        fprintf(stderr, "%s\n", error.text);
        exit(2);
    }
    return policy;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1, state = seed + 1;
    turns = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    size_t size = PAGE_BYTES + 2 * RING_BYTES;
    int memfd = memfd_create("stress", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0 || ftruncate(memfd, (off_t)size))
        return 2;
    shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    *word(AT_MAGIC) = CHANNEL_MAGIC;
    *word(AT_VERSION) = CHANNEL_VERSION;
    *word(AT_RING_BYTES) = RING_BYTES;
    *word(AT_VM_STATE) = VM_READY;
    fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    vm_fd = eventfd(0, EFD_NONBLOCK);
    client_fd = eventfd(0, EFD_NONBLOCK);
    sbx_descriptors given = {memfd, dup(vm_fd), dup(client_fd), -1, RING_BYTES, 0, 0};
    sbx_channel *channel;
    sbx_stream *stream;
    sbx_error error;
    if (sbx_channel_open(&given, make_policy(), &channel, &error) || sbx_stream_open(channel, NULL, 0, 1, NULL, &stream))
        return 2;
    pthread_t vm;
    pthread_create(&vm, NULL, vm_main, &seed);
    unsigned client_slept = 0;
    for (uint64_t turn = 0; turn < turns; turn++) {
        sbx_event *event;
        delay(&state);
        if (sbx_submit_nothing(stream, SBX_REQUEST_BODY, false, 1, NULL, &event))
            return 2;
        while (sbx_event_status(event) == SBX_AGAIN) {
            sbx_event *told;
            delay(&state);
            if (sbx_arm(channel) == SBX_OK) {
                struct pollfd fd = {.fd = sbx_channel_fd(channel), .events = POLLIN};
                client_slept++;
                delay(&state);
                if (poll(&fd, 1, 20000) == 0) {
                    fprintf(stderr, "the client was not woken\n");
                    return 1;
                }
            }
            delay(&state);
            sbx_next(channel, &told);
        }
        sbx_event_free(event);
    }
    pthread_join(vm, NULL);
    printf("%u %u times slept\n", client_slept, vm_slept);
    sbx_channel_close(channel);
    return 0;
}
