/*
 * How long one event takes, from submission to verdict: with both sides spinning, and with both asleep.
 *
 *     bench_rtt SOCKET TENANT PLUGIN [EVENTS]     over the daemon's attach socket
 *     bench_rtt --loop [EVENTS]                   against a thread of this process that only answers: the channel alone,
 *                                                 each of both on a CPU of its own if there are two
 *
 * Prints one line of JSON: for each way the 50th, 90th, 99th and 99.9th percentile, in ns.
 */
#include "loop.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define RING_BYTES 65536u
#define SPIN_NS 5000000u
#define PAUSE_NS 200000 /* between sleeping turns: long enough for the VM to go to sleep */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static _Noreturn void give_up(const char *what)
{
    fprintf(stderr, "bench_rtt: %s\n", what);
    exit(1);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void print(const char *name, uint64_t *times, size_t count, const char *end)
{
    qsort(times, count, sizeof *times, by_size);
    printf("\"%s\": {\"p50\": %llu, \"p90\": %llu, \"p99\": %llu, \"p999\": %llu}%s", name,
           (unsigned long long)times[count / 2], (unsigned long long)times[count * 9 / 10],
           (unsigned long long)times[count * 99 / 100], (unsigned long long)times[count * 999 / 1000], end);
}

/* One stream of request headers; the time of the headers event alone. */
static uint64_t turn(sbx_channel *channel)
{
    static const sbx_pair headers[] = {
        {{(const uint8_t *)":method", 7}, {(const uint8_t *)"GET", 3}},
        {{(const uint8_t *)":path", 5}, {(const uint8_t *)"/", 1}},
        {{(const uint8_t *)":authority", 10}, {(const uint8_t *)"bench", 5}},
    };
    sbx_stream *stream;
    sbx_event *event;
    if (sbx_stream_open(channel, NULL, 0, 1, NULL, &stream))
        give_up("no stream");
    uint64_t begin_ns = now_ns();
    if (sbx_submit_headers(stream, SBX_REQUEST_HEADERS, headers, 3, true, 1, NULL, &event) ||
        sbx_wait(event, 5000000000u))
        give_up("no verdict");
    uint64_t took_ns = now_ns() - begin_ns;
    sbx_event_free(event);
    sbx_stream_close(stream, false, 1);
    return took_ns;
}

static void measure(sbx_channel *channel, size_t count)
{
    uint64_t *times = calloc(count, sizeof *times);
    if (!times)
        give_up("no memory");
    sbx_channel_set_spin_ns(channel, SPIN_NS);
    for (size_t i = 0; i < count / 10; i++)
        turn(channel);
    for (size_t i = 0; i < count; i++)
        times[i] = turn(channel);
    printf("{\"events\": %zu, ", count);
    print("spin_ns", times, count, ", ");
    sbx_channel_set_spin_ns(channel, 0);
    size_t slow = count / 20 + 1000;
    if (slow > count)
        slow = count;
    for (size_t i = 0; i < slow; i++) {
        struct timespec pause = {0, PAUSE_NS};
        nanosleep(&pause, NULL);
        times[i] = turn(channel);
    }
    print("sleep_ns", times, slow, "}\n");
    free(times);
}

/* ---- the channel alone --------------------------------------------------------------------------------------------- */

static struct loop vm;
static volatile bool over;

/* Waits for the client's call, unless there is work already. */
static void sleep_once(void)
{
    __atomic_store_n(loop_word(&vm, AT_VM_NEED_WAKE), 1, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!loop_has_work(&vm) && !over) {
        struct pollfd fd = {.fd = vm.vm_fd, .events = POLLIN};
        eventfd_t count;
        poll(&fd, 1, 100);
        eventfd_read(vm.vm_fd, &count);
    }
    __atomic_store_n(loop_word(&vm, AT_VM_NEED_WAKE), 0, __ATOMIC_RELEASE);
}

static void publish(void)
{
    uint32_t *need_wake = loop_word(&vm, AT_CLIENT_NEED_WAKE);
    __atomic_store_n(loop_word(&vm, AT_SQ_HEAD), vm.head, __ATOMIC_RELEASE);
    __atomic_store_n(loop_word(&vm, AT_CQ_TAIL), vm.tail, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(need_wake, __ATOMIC_ACQUIRE) && __atomic_exchange_n(need_wake, 0, __ATOMIC_SEQ_CST))
        eventfd_write(vm.client_fd, 1);
}

/* The VM spins for a while, then sleeps. */
static void *loop_main(void *unused)
{
    uint32_t idle = 0;
    (void)unused;
    while (!over) {
        uint32_t before = vm.head;
        loop_answer(&vm);
        if (vm.head != before)
            publish();
        else if (idle++ < 20000)
            continue;
        else
            sleep_once();
        idle = 0;
    }
    return NULL;
}

/* One CPU for each of both threads, if there are two: a scheduler that puts them on one measures itself. */
static void pin(pthread_t other)
{
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) || CPU_COUNT(&all) < 2)
        return;
    pthread_t threads[] = {pthread_self(), other};
    int cpu = -1;
    for (int i = 0; i < 2; i++) {
        do
            cpu++;
        while (!CPU_ISSET(cpu, &all));
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(threads[i], sizeof one, &one);
    }
}

int main(int argc, char **argv)
{
    bool loop = argc > 1 && strcmp(argv[1], "--loop") == 0;
    int first = loop ? 2 : 4;
    if (argc < first || argc > first + 1)
        give_up("usage: bench_rtt SOCKET TENANT PLUGIN [EVENTS] | bench_rtt --loop [EVENTS]");
    size_t count = argc > first ? strtoul(argv[first], NULL, 10) : 100000;
    if (count < 1000)
        give_up("at least 1000 events, for percentiles");
    pthread_t thread;
    sbx_channel *channel;
    sbx_error error;
    if (loop) {
        if (loop_open(&vm, RING_BYTES, &channel, &error))
            give_up(error.text);
        pthread_create(&thread, NULL, loop_main, NULL);
        pin(thread);
    } else {
        sbx_attach_options options = {argv[1], argv[2], argv[3], SBX_ANY_UID, 0};
        if (sbx_attach(&options, 10000000000u, &channel, &error))
            give_up(error.text);
    }
    measure(channel, count);
    sbx_channel_close(channel);
    if (loop) {
        over = true;
        eventfd_write(vm.vm_fd, 1);
        pthread_join(thread, NULL);
    }
    return 0;
}
