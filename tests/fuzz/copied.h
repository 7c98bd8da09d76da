/* Told by libsandboxd after each copy out of shared memory; the fuzzer that plays the worker then changes what was copied. */
#include <stddef.h>
#include <stdint.h>

void fuzz_copied(const uint8_t *at, size_t len);
#define SBX_COPIED(shared, len) fuzz_copied(shared, len)
