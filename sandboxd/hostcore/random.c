/*
 * The VM's random generator: ChaCha20 with fast key erasure.
 *
 * Every refill makes one run of blocks; its first 32 bytes become the next key and the rest is output, erased as it is
 * handed out. What a guest has read can thus never be computed from the generator's later state.
 */
#include "hostcore.h"

#define KEY_BYTES 32u
#define BLOCK_BYTES 64u
#define POOL_BYTES (12 * BLOCK_BYTES)

STATE static u8 key[KEY_BYTES];
STATE static u8 pool[POOL_BYTES];
STATE static u32 used; /* set by random_seed */

static u32 rotate(u32 value, u32 bits)
{
    return value << bits | value >> (32 - bits);
}

static void quarter_round(u32 *state, u32 a, u32 b, u32 c, u32 d)
{
    state[a] += state[b], state[d] = rotate(state[d] ^ state[a], 16);
    state[c] += state[d], state[b] = rotate(state[b] ^ state[c], 12);
    state[a] += state[b], state[d] = rotate(state[d] ^ state[a], 8);
    state[c] += state[d], state[b] = rotate(state[b] ^ state[c], 7);
}

void chacha20_block(const u8 *from_key, u32 counter, u8 *to)
{
    u32 start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}; /* "expand 32-byte k" */
    u32 state[16];
    memcpy(start + 4, from_key, KEY_BYTES);
    start[12] = counter; /* the nonce is 0: every key is used for one run only */
    memcpy(state, start, sizeof state);
    for (int round = 0; round < 10; round++) {
        quarter_round(state, 0, 4, 8, 12);
        quarter_round(state, 1, 5, 9, 13);
        quarter_round(state, 2, 6, 10, 14);
        quarter_round(state, 3, 7, 11, 15);
        quarter_round(state, 0, 5, 10, 15);
        quarter_round(state, 1, 6, 11, 12);
        quarter_round(state, 2, 7, 8, 13);
        quarter_round(state, 3, 4, 9, 14);
    }
    for (int i = 0; i < 16; i++)
        store_u32(to + 4 * i, state[i] + start[i]);
}

static void refill(void)
{
    for (u32 block = 0; block < POOL_BYTES / BLOCK_BYTES; block++)
        chacha20_block(key, block, pool + block * BLOCK_BYTES);
    memcpy(key, pool, KEY_BYTES);
    memset(pool, 0, KEY_BYTES);
    used = KEY_BYTES;
}

void random_seed(const u8 *from)
{
    memcpy(key, from, KEY_BYTES);
    used = POOL_BYTES;
}

void random_fill(u8 *to, u32 len)
{
    while (len) {
        if (used == POOL_BYTES)
            refill();
        u32 part = POOL_BYTES - used < len ? POOL_BYTES - used : len;
        memcpy(to, pool + used, part);
        memset(pool + used, 0, part);
        used += part;
        to += part;
        len -= part;
    }
}
