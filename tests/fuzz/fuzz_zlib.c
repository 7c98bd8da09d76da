/*
 * Fuzzer of zlib's packer and unpacker: streams made here from the rules of RFC 1950 and 1951, of every kind of block,
 * whose contents are known; the packer's own; and both damaged.
 */
#include <stdlib.h>

#include "native.h"
#include "zlib.h"

#define MOST_PLAIN (32u * KIB)
#define MOST_PACKED (96u * KIB)
#define LITERALS 286u
#define DISTANCES 30u

static u8 plain[MOST_PLAIN + 300], packed[MOST_PACKED];
static u32 plain_len, packed_bits;

/* ---- bits -------------------------------------------------------------------------------------------------------- */

static void put_bits(u32 value, u32 count)
{
    for (u32 i = 0; i < count && packed_bits < 8 * (MOST_PACKED - 8); i++, packed_bits++) {
        if (packed_bits % 8 == 0)
            packed[packed_bits / 8] = 0;
        packed[packed_bits / 8] |= (u8)((value >> i & 1) << packed_bits % 8);
    }
}

static void to_next_byte(void)
{
    packed_bits = (packed_bits + 7) & ~7u;
}

/* ---- Huffman codes ----------------------------------------------------------------------------------------------- */

struct book {
    u8 lengths[LITERALS + 2];
    u16 codes[LITERALS + 2];
    u32 count;
};

static void number_codes(struct book *book)
{
    u32 next = 0;
    for (u32 bits = 1; bits <= 15; bits++, next <<= 1)
        for (u32 i = 0; i < book->count; i++)
            if (book->lengths[i] == bits)
                book->codes[i] = (u16)next++;
}

/* Lengths of a complete code for some of the symbols, `must` among them; none longer than `most` bits. */
static void random_book(struct book *book, u32 count, u32 must, u32 most)
{
    u8 leaves[LITERALS] = {0};
    u32 used = 1, wanted = 2 + pick(chance(50) ? 8 : count - 2);
    memset(book, 0, sizeof *book);
    book->count = count;
    for (u32 tries = 0; used < wanted && tries < 4 * wanted; tries++) {
        u32 which = chance(20) ? used - 1 : pick(used);
        if (leaves[which] == most)
            continue;
        leaves[which]++;
        leaves[used++] = leaves[which];
    }
    u32 first = pick(count);
    bool has_must = false;
    for (u32 i = 0; i < used; i++) {
        u32 symbol = (first + i) % count;
        book->lengths[symbol] = leaves[i];
        has_must |= symbol == must;
    }
    if (!has_must) { /* it gets the place of another one */
        book->lengths[must] = book->lengths[first];
        book->lengths[first] = 0;
    }
    number_codes(book);
}

static void put_symbol(const struct book *book, u32 symbol)
{
    for (u32 bits = book->lengths[symbol]; bits; bits--) /* codes go highest bit first */
        put_bits(book->codes[symbol] >> (bits - 1) & 1, 1);
}

/* A symbol that has a code, and is below `below`; the first from a random place on. */
static u32 random_symbol(const struct book *book, u32 from, u32 below)
{
    u32 span = below - from, start = pick(span);
    for (u32 i = 0; i < span; i++)
        if (book->lengths[from + (start + i) % span])
            return from + (start + i) % span;
    return below;
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static void put_literal(const struct book *literals)
{
    u32 symbol = random_symbol(literals, 0, 256);
    if (symbol == 256)
        return;
    put_symbol(literals, symbol);
    plain[plain_len++] = (u8)symbol;
}

static void put_match(const struct book *literals, const struct book *distances)
{
    u32 symbol = random_symbol(literals, 257, LITERALS), kind = symbol - 257;
    if (symbol == LITERALS)
        return;
    u32 extra = kind < 8 || kind == 28 ? 0 : kind / 4 - 1;
    u32 base = kind < 8 ? 3 + kind : kind == 28 ? 258 : 3 + ((4 + kind % 4) << extra);
    u32 more = pick(1u << extra);
    u32 far = random_symbol(distances, 0, DISTANCES);
    if (far == DISTANCES)
        return;
    u32 far_extra = far < 2 ? 0 : far / 2 - 1, far_base = far < 2 ? 1 + far : 1 + ((2 + far % 2) << far_extra);
    u32 far_more = pick(1u << far_extra), distance = far_base + far_more;
    if (distance > plain_len)
        return;
    put_symbol(literals, symbol);
    put_bits(more, extra);
    put_symbol(distances, far);
    put_bits(far_more, far_extra);
    for (u32 i = 0; i < base + more; i++, plain_len++)
        plain[plain_len] = plain[plain_len - distance];
}

static void put_contents(const struct book *literals, const struct book *distances)
{
    for (u32 i = pick(chance(10) ? 900 : 60); i && plain_len < MOST_PLAIN; i--)
        chance(40) ? put_match(literals, distances) : put_literal(literals);
    put_symbol(literals, 256);
}

/* The lengths of both codes with one code more; runs are written as such now and then. */
static void put_lengths(const u8 *lengths, u32 count)
{
    static const u8 order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    struct book book = {.count = 19};
    for (u32 i = 0; i < 19; i++) /* complete: 13 codes of 4 bits and 6 of 5 */
        book.lengths[i] = i < 13 ? 4 : 5;
    number_codes(&book);
    put_bits(15, 4);
    for (u32 i = 0; i < 19; i++)
        put_bits(book.lengths[order[i]], 3);
    for (u32 i = 0; i < count;) {
        u32 run = 1;
        while (i + run < count && lengths[i + run] == lengths[i])
            run++;
        if (!lengths[i] && run >= 11 && chance(80)) {
            run = run > 138 ? 138 : run;
            put_symbol(&book, 18);
            put_bits(run - 11, 7);
        } else if (!lengths[i] && run >= 3 && chance(80)) {
            run = run > 10 ? 10 : run;
            put_symbol(&book, 17);
            put_bits(run - 3, 3);
        } else if (i && lengths[i] == lengths[i - 1] && run >= 3 && chance(80)) {
            run = run > 6 ? 6 : run;
            put_symbol(&book, 16);
            put_bits(run - 3, 2);
        } else {
            run = 1;
            put_symbol(&book, lengths[i]);
        }
        i += run;
    }
}

static void put_dynamic(void)
{
    struct book literals, distances;
    u8 lengths[LITERALS + DISTANCES];
    random_book(&literals, LITERALS, 256, 9 + pick(7));
    random_book(&distances, DISTANCES, 0, 5 + pick(11));
    memcpy(lengths, literals.lengths, LITERALS);
    memcpy(lengths + LITERALS, distances.lengths, DISTANCES);
    put_bits(LITERALS - 257, 5);
    put_bits(DISTANCES - 1, 5);
    put_lengths(lengths, LITERALS + DISTANCES);
    put_contents(&literals, &distances);
}

static void put_fixed(void)
{
    struct book literals = {.count = LITERALS + 2}, distances = {.count = DISTANCES};
    for (u32 i = 0; i < literals.count; i++)
        literals.lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    memset(distances.lengths, 5, DISTANCES);
    number_codes(&literals);
    number_codes(&distances);
    put_contents(&literals, &distances);
}

static void put_stored(void)
{
    u32 len = pick(chance(10) ? 3000 : 40), room = plain_len < MOST_PLAIN ? MOST_PLAIN - plain_len : 0;
    len = len < room ? len : room;
    to_next_byte();
    put_bits(len | (len ^ 0xffff) << 16, 16);
    put_bits(len ^ 0xffff, 16);
    for (u32 i = 0; i < len; i++) {
        plain[plain_len] = (u8)pick(256);
        put_bits(plain[plain_len++], 8);
    }
}

static u32 sum_of(const u8 *at, u32 len)
{
    u32 low = 1, high = 0;
    for (u32 i = 0; i < len; i++) {
        low = (low + at[i]) % 65521;
        high = (high + low) % 65521;
    }
    return high << 16 | low;
}

static u32 random_stream(void)
{
    plain_len = packed_bits = 0;
    put_bits(0x9c78, 16);
    for (u32 blocks = pick(4);; blocks--) {
        u32 kind = pick(4);
        put_bits(!blocks, 1);
        put_bits(kind > 2 ? 2 : kind, 2);
        kind == 0 ? put_stored() : kind == 1 ? put_fixed() : put_dynamic();
        if (!blocks)
            break;
    }
    to_next_byte();
    u32 sum = sum_of(plain, plain_len);
    for (u32 shift = 32; shift; shift -= 8)
        put_bits(sum >> (shift - 8) & 0xff, 8);
    return packed_bits / 8;
}

/* ---- both ways --------------------------------------------------------------------------------------------------- */

static void unpack(const u8 *from, u32 len, bool intact)
{
    u8 *exact = malloc(len ? len : 1); /* the sanitizer sees every byte read past the end */
    if (!exact)
        abort();
    memcpy(exact, from, len);
    struct sink sink = {.most = chance(80) ? 1 * MIB : pick(2000)};
    bool fits = sink.most >= plain_len;
    bool good = zlib_uncompress((struct bytes){exact, len}, &sink);
    if (sink.len > sink.most || sink.len > sink.cap)
        finding("more was unpacked than there is room for");
    if (intact && good != fits)
        finding(fits ? "a good stream is not unpacked" : "more was unpacked than may be");
    if (intact && good && (sink.len != plain_len || (plain_len && memcmp(sink.at, plain, plain_len) != 0)))
        finding("a stream is unpacked to something else");
    if (good && sink.len && sum_of(sink.at, sink.len) != adler32((struct bytes){sink.at, sink.len}))
        finding("the checksum is wrong");
    heap_free(sink.at);
    free(exact);
}

static u32 damage(u32 len)
{
    for (u32 times = 1 + pick(4); times; times--) {
        if (chance(20))
            len -= pick(len < 64 ? len + 1 : 64);
        else if (len)
            packed[chance(50) ? pick(len) : pick(len < 80 ? len : 80)] ^= (u8)(1u << pick(8));
    }
    return len;
}

static u32 own_stream(void)
{
    plain_len = pick(chance(10) ? MOST_PLAIN : 400);
    u32 letters = 1 + pick(chance(50) ? 3 : 256);
    for (u32 i = 0; i < plain_len; i++)
        plain[i] = i > 40 && chance(70) ? plain[i - 1 - pick(40)] : (u8)pick(letters);
    struct sink sink = {.most = chance(90) ? MOST_PACKED : pick(300)};
    zlib_compress((struct bytes){plain, plain_len}, &sink);
    if (sink.len > sink.most)
        finding("more was packed than there is room for");
    bool full = sink.full;
    if (full && sink.most == MOST_PACKED)
        finding("what was packed does not fit");
    u32 len = sink.len;
    if (len)
        memcpy(packed, sink.at, len);
    heap_free(sink.at);
    return full ? 0 : len;
}

void fuzz_zlib(void)
{
    u32 len = chance(30) ? own_stream() : random_stream();
    bool intact = len > 0;
    if (chance(50)) {
        len = damage(len);
        intact = false;
    } else if (chance(5)) {
        for (len = 2; len < 64; len++)
            packed[len] = (u8)pick(256);
        intact = false;
    }
    if (chance(5))
        heap_fail_after = pick(4);
    unpack(packed, len, intact && heap_fail_after < 0);
    heap_fail_after = -1;
    if (heap_used)
        finding("an unpacked stream leaks");
}
