// SHA-256 (FIPS 180-4) and HMAC-SHA-256 (RFC 2104) for short messages, and a comparison that takes as long for any
// answer. Small rather than quick.
#ifndef SHA256_H
#define SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SHA256_BYTES = 32, SHA256_BLOCK_BYTES = 64 };

struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[SHA256_BLOCK_BYTES];
};

static inline uint32_t rotated(uint32_t word, unsigned bits) {
    return word >> bits | word << (32 - bits);
}

static inline void sha256_block(struct sha256 *hash) {
    static const uint32_t constants[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };
    uint32_t words[64], s[8];
    for (int i = 0; i < 16; i++) {
        const uint8_t *at = hash->block + 4 * i;
        words[i] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
    }
    for (int i = 16; i < 64; i++) {
        uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) +
                   (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
    }
    for (int i = 0; i < 8; i++) s[i] = hash->state[i];
    for (int i = 0; i < 64; i++) {
        uint32_t one = s[7] + (rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25)) +
                       ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + words[i];
        uint32_t two = (rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22)) +
                       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        for (int k = 7; k > 0; k--) s[k] = s[k - 1];
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++) hash->state[i] += s[i];
}

static inline void sha256_begin(struct sha256 *hash) {
    *hash = (struct sha256){.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
                                      0x1f83d9ab, 0x5be0cd19}};
}

static inline void sha256_add(struct sha256 *hash, const void *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        hash->block[hash->bytes++ % SHA256_BLOCK_BYTES] = ((const uint8_t *)bytes)[i];
        if (hash->bytes % SHA256_BLOCK_BYTES == 0) sha256_block(hash);
    }
}

static inline void sha256_end(struct sha256 *hash, uint8_t digest[SHA256_BYTES]) {
    uint64_t bits = hash->bytes * 8;
    uint8_t byte = 0x80;
    do {
        sha256_add(hash, &byte, 1);
        byte = 0;
    } while (hash->bytes % SHA256_BLOCK_BYTES != SHA256_BLOCK_BYTES - 8);
    for (int shift = 56; shift >= 0; shift -= 8) {
        byte = (uint8_t)(bits >> shift);
        sha256_add(hash, &byte, 1);
    }
    for (int i = 0; i < SHA256_BYTES; i++) digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

// Keys of more than a block are hashed first, as the RFC says.
static inline void hmac_sha256(const void *key, size_t key_size, const void *message, size_t size,
                               uint8_t digest[SHA256_BYTES]) {
    struct sha256 hash;
    uint8_t block[SHA256_BLOCK_BYTES] = {0};
    if (key_size > sizeof block) {
        sha256_begin(&hash);
        sha256_add(&hash, key, key_size);
        sha256_end(&hash, block);
    } else {
        for (size_t i = 0; i < key_size; i++) block[i] = ((const uint8_t *)key)[i];
    }
    for (size_t i = 0; i < sizeof block; i++) block[i] ^= 0x36;
    sha256_begin(&hash);
    sha256_add(&hash, block, sizeof block);
    sha256_add(&hash, message, size);
    sha256_end(&hash, digest);
    for (size_t i = 0; i < sizeof block; i++) block[i] ^= 0x36 ^ 0x5c;
    sha256_begin(&hash);
    sha256_add(&hash, block, sizeof block);
    sha256_add(&hash, digest, SHA256_BYTES);
    sha256_end(&hash, digest);
}

// Looks at every byte, whatever the first ones are.
static inline bool equal_digests(const uint8_t *a, const uint8_t *b) {
    volatile uint8_t difference = 0;
    for (int i = 0; i < SHA256_BYTES; i++) difference |= a[i] ^ b[i];
    return difference == 0;
}

#endif
