/*
 * libsandboxd's client against a VM thread that keeps the handshake of docs/channel.md, with a random pause before every
 * step of either (SBX_STEP is stress_step): nothing, a few hundred loops, or a yield. Each turn is one event and its verdict. The client never spins,
 * so both sides sleep all the time. A lost wake-up shows as a time-out.
 *
 *     stress_wake TURNS SEED BATCH      prints how often each side slept
 *
 * With a BATCH other than 0, so many submissions may wait, and the client watches its descriptor for edges: as Envoy's module.
 */
#include "internal.h"
#include "loop.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

#define RING_BYTES MIN_RING_BYTES

static struct loop vm;
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

/* Answers what was submitted. Returns how many events there were. */
static unsigned serve(uint64_t *state)
{
    uint32_t *need_wake = loop_word(&vm, AT_CLIENT_NEED_WAKE);
    unsigned events = loop_answer(&vm);
    __atomic_store_n(loop_word(&vm, AT_SQ_HEAD), vm.head, __ATOMIC_RELEASE);
    delay(state);
    __atomic_store_n(loop_word(&vm, AT_CQ_TAIL), vm.tail, __ATOMIC_RELEASE);
    delay(state);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    delay(state);
    if (__atomic_load_n(need_wake, __ATOMIC_ACQUIRE)) {
        delay(state);
        if (__atomic_exchange_n(need_wake, 0, __ATOMIC_SEQ_CST)) {
            delay(state);
            eventfd_write(vm.client_fd, 1);
        }
    }
    return events;
}

static void *vm_main(void *seed)
{
    uint64_t state = *(const uint64_t *)seed * 0x9E3779B97F4A7C15u + 7, served = 0;
    while (served < turns) {
        served += serve(&state);
        delay(&state);
        __atomic_store_n(loop_word(&vm, AT_VM_NEED_WAKE), 1, __ATOMIC_SEQ_CST);
        delay(&state);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        delay(&state);
        if (!loop_has_work(&vm) && served < turns) {
            struct pollfd fd = {.fd = vm.vm_fd, .events = POLLIN};
            eventfd_t count;
            vm_slept++;
            if (poll(&fd, 1, 20000) == 0) {
                fprintf(stderr, "the VM was not woken\n");
                exit(1);
            }
            delay(&state);
            eventfd_read(vm.vm_fd, &count);
        }
        delay(&state);
        __atomic_store_n(loop_word(&vm, AT_VM_NEED_WAKE), 0, __ATOMIC_RELEASE);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1, state = seed + 1;
    turns = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    sbx_channel *channel;
    sbx_stream *stream;
    sbx_error error;
    if (loop_open(&vm, RING_BYTES, &channel, &error)) {
        fprintf(stderr, "%s\n", error.text);
        return 2;
    }
    uint32_t batch = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0;
    int edges = epoll_create1(0);
    struct epoll_event seen = {.events = EPOLLIN | EPOLLET};
    sbx_channel_set_batch(channel, batch);
    if (edges < 0 || epoll_ctl(edges, EPOLL_CTL_ADD, sbx_channel_fd(channel), &seen))
        return 2;
    if (sbx_stream_open(channel, NULL, 0, 1, NULL, &stream))
        return 2;
    pthread_t thread;
    pthread_create(&thread, NULL, vm_main, &seed);
    unsigned client_slept = 0;
    for (uint64_t turn = 0; turn < turns; turn++) {
        sbx_event *event;
        delay(&state);
        if (sbx_submit_nothing(stream, SBX_REQUEST_BODY, false, 1, NULL, &event))
            return 2;
        while (sbx_event_status(event) == SBX_AGAIN) {
            sbx_event *told;
            delay(&state);
            if ((batch ? sbx_arm_edge(channel) : sbx_arm(channel)) == SBX_OK) {
                struct pollfd fd = {.fd = sbx_channel_fd(channel), .events = POLLIN};
                client_slept++;
                delay(&state);
                if ((batch ? epoll_wait(edges, &seen, 1, 20000) : poll(&fd, 1, 20000)) == 0) {
                    fprintf(stderr, "the client was not woken\n");
                    return 1;
                }
            }
            delay(&state);
            sbx_next(channel, &told);
        }
        sbx_event_free(event);
    }
    pthread_join(thread, NULL);
    printf("%u %u times slept\n", client_slept, vm_slept);
    sbx_channel_close(channel);
    return 0;
}
