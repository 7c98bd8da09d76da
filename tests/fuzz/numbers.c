#include "numbers.h"

static uint64_t state = 1;
static const uint8_t *input;
static size_t input_left;

void random_from_seed(uint64_t seed)
{
    state = seed * 0x9E3779B97F4A7C15ull + 1;
    input_left = 0;
}

void random_from_bytes(const uint8_t *data, size_t len)
{
    random_from_seed(1);
    input = data;
    input_left = len;
}

size_t random_bytes_left(void)
{
    return input_left;
}

uint32_t any(void)
{
    if (input_left) {
        uint32_t value = 0;
        for (int i = 0; i < 4 && input_left; i++, input_left--)
            value = value << 8 | *input++;
        return value;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

uint32_t pick(uint32_t below)
{
    return below ? any() % below : 0;
}

bool chance(uint32_t percent)
{
    return pick(100) < percent;
}
