/*
 * Fuzzers of hostcore, natively built with sanitizers.
 *
 *   fuzz pairs|heap|zlib|folders|channel COUNT [SEED]
 *
 * pairs: the codec on valid, damaged and random bytes, against the rules written out a second time. heap: the page and
 * size-class allocator, every block filled and checked. zlib: streams of every kind, good and
 * damaged. folders: what the configuration brings, good and damaged, and calls for files. channel: submissions, valid, damaged and random, to a VM whose
 * guest calls random host functions with random arguments and returns random results; what comes out is checked as the
 * client would check it. Every run of the same count and seed does the same. With libFuzzer
 * (LLVMFuzzerTestOneInput) the input's bytes take the place of the random numbers.
 */
#include <stdio.h>
#include <stdlib.h>

#include "native.h"

void fuzz_pairs(void);
void fuzz_heap(void);
void fuzz_zlib(void);
void fuzz_folders(void);
void fuzz_channel(void);
void fuzz_channel_afresh(void);
void channel_statistics(void);

static void run(const char *name, u64 count, u64 seed)
{
    void (*target)(void) = strcmp(name, "pairs") == 0     ? fuzz_pairs
                           : strcmp(name, "heap") == 0    ? fuzz_heap
                           : strcmp(name, "zlib") == 0    ? fuzz_zlib
                           : strcmp(name, "folders") == 0 ? fuzz_folders
                           : strcmp(name, "channel") == 0 ? fuzz_channel
                                                          : NULL;
    if (!target) {
        fprintf(stderr, "no such fuzzer: %s (pairs, heap, zlib, folders, channel)\n", name);
        exit(2);
    }
    for (u64 i = 0; i < count; i++) {
        random_from_seed(seed + i);
        target();
    }
    printf("%s: %llu inputs, no finding\n", name, (unsigned long long)count);
    if (target == fuzz_channel)
        channel_statistics();
}

#ifdef LIBFUZZER
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return atexit(channel_statistics);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t len);
int LLVMFuzzerTestOneInput(const u8 *data, size_t len)
{
    if (!guest_memory)
        native_init();
    native_reset();
    random_from_bytes(data, len);
    switch (pick(10)) { /* mostly the channel */
    case 0:
        fuzz_pairs();
        break;
    case 1:
        fuzz_heap();
        break;
    case 2:
        fuzz_zlib();
        break;
    case 3:
        fuzz_folders();
        break;
    default:
        fuzz_channel_afresh();
    }
    return 0;
}
#else
int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: fuzz pairs|heap|zlib|folders|channel COUNT [SEED]\n");
        return 2;
    }
    native_init();
    tracing = getenv("FUZZ_TRACE") != NULL;
    run(argv[1], strtoull(argv[2], NULL, 10), argc > 3 ? strtoull(argv[3], NULL, 10) : 1);
    return 0;
}
#endif
