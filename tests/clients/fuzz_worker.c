/*
 * Plays a hostile worker against libsandboxd.
 *
 * One execution: a client that opens streams, submits, waits, cancels and closes, and a worker that answers between the
 * client's steps: honest records, broken ones, raw bytes, wrong counters and states. Each execution begins with the state
 * that the one before left, on one of several channels; a channel that broke is replaced.
 *
 * What must hold: no sanitizer speaks, every call returns, every effect names memory that may be read, every event ends at
 * most once, header names that come out are legal and hidden values never reach the submission ring.
 *
 *     fuzz_worker --runs N [--seed S]     numbers of its own
 *     fuzz_worker FILE...                 replays inputs
 * or built with -DLIBFUZZER -fsanitize=fuzzer: tests/fuzz/libfuzzer.py.
 */
#include "fuzz_worker.h"

#include <stdio.h>
#include <stdlib.h>

static void execute(void)
{
    for (uint32_t i = 1 + pick(6); i; i--) {
        client_turn();
        if (chance(40))
            client_turn();
        worker_turn();
    }
    sbx_event *next;
    while (sbx_next(side.channel, &next) == SBX_OK)
        check_event(next);
    if (executions++ % 64 == 0)
        check_hidden();
    if (side.channel->dead || chance(1)) {
        breaks += side.channel->dead != 0;
        check_hidden();
        close_side();
        open_side();
    }
}

/* An input means the same each time: it begins with a channel of its own. */
static void one_input(const uint8_t *data, size_t len)
{
    random_from_bytes(NULL, 0);
    if (policies[0])
        close_side();
    else
        make_policies();
    random_from_bytes(data, len);
    open_side();
    while (random_bytes_left())
        execute();
}

static void say(void)
{
    printf("%llu executions, %llu verdicts, %llu broken channels, %llu late effects, %llu times bytes of connections\n", (unsigned long long)executions,
           (unsigned long long)verdicts, (unsigned long long)breaks, (unsigned long long)late, (unsigned long long)taken);
}

#ifdef LIBFUZZER
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return atexit(say);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    one_input(data, len);
    return 0;
}
#else
static void replay(const char *path)
{
    static uint8_t data[65536];
    FILE *file = fopen(path, "rb");
    if (!file)
        finding(path);
    size_t left = fread(data, 1, sizeof data, file);
    fclose(file);
    one_input(data, left);
}

int main(int argc, char **argv)
{
    uint64_t runs = 1000000, seed = 1;
    int at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        if (!strcmp(argv[at], "--runs"))
            runs = strtoull(argv[at + 1], NULL, 10);
        else if (!strcmp(argv[at], "--seed"))
            seed = strtoull(argv[at + 1], NULL, 10);
        else
            finding("usage: fuzz_worker [--runs N] [--seed S] [FILE...]");
    }
    if (at < argc) {
        for (; at < argc; at++)
            replay(argv[at]);
        close_side();
        sbx_policy_release(policies[0]);
        sbx_policy_release(policies[1]);
        return 0;
    }
    random_from_seed(seed);
    make_policies();
    open_side();
    for (uint64_t run = 0; run < runs; run++)
        execute();
    close_side();
    sbx_policy_release(policies[0]);
    sbx_policy_release(policies[1]);
    say();
    return 0;
}
#endif
