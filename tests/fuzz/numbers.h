/* The fuzzers' choices: random numbers, or the bytes of an input. */
#ifndef SANDBOXD_FUZZ_NUMBERS_H
#define SANDBOXD_FUZZ_NUMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void random_from_seed(uint64_t seed);
/* Four bytes a number. Behind the last of them come random numbers, the same each time: nothing waits for ever. */
void random_from_bytes(const uint8_t *data, size_t len);
size_t random_bytes_left(void);
uint32_t any(void);
uint32_t pick(uint32_t below); /* 0 to below - 1 */
bool chance(uint32_t percent);

#endif
