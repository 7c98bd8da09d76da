/* Unpacking a zlib stream. Every index is checked against what it reads or writes: the data is the guest's. */
#include "zlib.h"

#define MAX_BITS 15u
#define MAX_LITERALS 288u
#define MAX_DISTANCES 32u
#define END_OF_BLOCK 256u
#define MIN_CAP 1024u

struct source {
    const u8 *at, *end;
    u32 bits, count; /* bits that were read ahead, the next one lowest */
    bool short_of_data;
};

/* A canonical Huffman code: how many codes have each length, and the symbols in their order. */
struct code {
    u16 counts[MAX_BITS + 1];
    u16 symbols[MAX_LITERALS];
};

bool sink_reserve(struct sink *to, u32 more)
{
    if (to->full || more > to->most - to->len) {
        to->full = true;
        return false;
    }
    if (to->len + more <= to->cap)
        return true;
    u32 wanted = to->cap < MIN_CAP ? MIN_CAP : to->cap;
    while (wanted < to->len + more)
        wanted = wanted > to->most / 2 ? to->most : 2 * wanted;
    u8 *grown = heap_grow(to->at, to->len, wanted);
    if (!grown) {
        to->full = true;
        return false;
    }
    to->at = grown;
    to->cap = wanted;
    return true;
}

static u32 take_bits(struct source *from, u32 count)
{
    while (from->count < count) {
        if (from->at == from->end) {
            from->short_of_data = true;
            return 0;
        }
        from->bits |= (u32)*from->at++ << from->count;
        from->count += 8;
    }
    u32 value = from->bits & ((1u << count) - 1);
    from->bits >>= count;
    from->count -= count;
    return value;
}

/* False: more codes than the lengths leave room for. */
static bool code_build(struct code *code, const u8 *lengths, u32 count)
{
    u16 places[MAX_BITS + 2] = {0};
    memset(code, 0, sizeof *code);
    for (u32 i = 0; i < count; i++)
        code->counts[lengths[i]]++;
    code->counts[0] = 0;
    u32 room = 1;
    for (u32 bits = 1; bits <= MAX_BITS; bits++) {
        room <<= 1;
        if (code->counts[bits] > room)
            return false;
        room -= code->counts[bits];
        places[bits + 1] = (u16)(places[bits] + code->counts[bits]);
    }
    for (u32 i = 0; i < count; i++)
        if (lengths[i])
            code->symbols[places[lengths[i]]++] = (u16)i;
    return true;
}

/* The next symbol; -1: no such code, or the data ends. */
static i32 take_symbol(struct source *from, const struct code *code)
{
    u32 value = 0, first = 0, index = 0;
    for (u32 bits = 1; bits <= MAX_BITS; bits++) {
        value |= take_bits(from, 1);
        if (from->short_of_data)
            return -1;
        u32 count = code->counts[bits];
        if (value - first < count)
            return code->symbols[index + value - first];
        index += count;
        first = (first + count) << 1;
        value <<= 1;
    }
    return -1;
}

static bool take_stored(struct source *from, struct sink *to)
{
    from->bits = from->count = 0; /* never holds a whole byte here: bits are read as they are needed */
    if (from->end - from->at < 4)
        return false;
    u32 len = from->at[0] | (u32)from->at[1] << 8, check = from->at[2] | (u32)from->at[3] << 8;
    from->at += 4;
    if (len != (check ^ 0xffff) || (u32)(from->end - from->at) < len || !sink_reserve(to, len))
        return false;
    if (len) /* else there may be no block yet */
        memcpy(to->at + to->len, from->at, len);
    to->len += len;
    from->at += len;
    return true;
}

static bool copy_back(struct sink *to, u32 distance, u32 len)
{
    if (distance == 0 || distance > to->len || !sink_reserve(to, len))
        return false;
    for (u32 i = 0; i < len; i++) /* may overlap itself */
        to->at[to->len + i] = to->at[to->len + i - distance];
    to->len += len;
    return true;
}

static bool take_coded(struct source *from, struct sink *to, const struct code *literals, const struct code *distances)
{
    static const u16 length_base[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                      31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const u8 length_extra[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                      2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const u16 distance_base[] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,   97,    129,
                                        193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385,
                                        24577};
    for (;;) {
        i32 symbol = take_symbol(from, literals);
        if (symbol < 0)
            return false;
        if (symbol == (i32)END_OF_BLOCK)
            return true;
        if (symbol < (i32)END_OF_BLOCK) {
            if (!sink_reserve(to, 1))
                return false;
            to->at[to->len++] = (u8)symbol;
            continue;
        }
        u32 kind = (u32)symbol - END_OF_BLOCK - 1;
        if (kind >= sizeof length_extra)
            return false;
        u32 len = length_base[kind] + take_bits(from, length_extra[kind]);
        i32 far = take_symbol(from, distances);
        if (far < 0 || far >= 30)
            return false;
        u32 distance = distance_base[far] + take_bits(from, far < 2 ? 0 : (u32)far / 2 - 1);
        if (from->short_of_data || !copy_back(to, distance, len))
            return false;
    }
}

static bool take_fixed(struct source *from, struct sink *to)
{
    struct code literals, distances;
    u8 lengths[MAX_LITERALS];
    for (u32 i = 0; i < MAX_LITERALS; i++)
        lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    code_build(&literals, lengths, MAX_LITERALS);
    memset(lengths, 5, MAX_DISTANCES);
    code_build(&distances, lengths, MAX_DISTANCES);
    return take_coded(from, to, &literals, &distances);
}

/* The lengths of both codes, themselves coded. */
static bool take_lengths(struct source *from, u8 *lengths, u32 count)
{
    static const u8 order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    struct code code;
    u8 own[19] = {0};
    u32 given = take_bits(from, 4) + 4;
    for (u32 i = 0; i < given; i++)
        own[order[i]] = (u8)take_bits(from, 3);
    if (from->short_of_data || !code_build(&code, own, sizeof own))
        return false;
    for (u32 i = 0; i < count;) {
        i32 symbol = take_symbol(from, &code);
        if (symbol < 0)
            return false;
        if (symbol < 16) {
            lengths[i++] = (u8)symbol;
            continue;
        }
        if (symbol == 16 && i == 0)
            return false;
        u8 repeated = symbol == 16 ? lengths[i - 1] : 0;
        u32 times = symbol == 16   ? 3 + take_bits(from, 2)
                    : symbol == 17 ? 3 + take_bits(from, 3)
                                   : 11 + take_bits(from, 7);
        if (from->short_of_data || times > count - i)
            return false;
        memset(lengths + i, repeated, times);
        i += times;
    }
    return true;
}

static bool take_dynamic(struct source *from, struct sink *to)
{
    struct code literals, distances;
    u8 lengths[MAX_LITERALS + MAX_DISTANCES];
    u32 literal_count = take_bits(from, 5) + 257, distance_count = take_bits(from, 5) + 1;
    if (from->short_of_data || literal_count > 286 || distance_count > 30)
        return false;
    if (!take_lengths(from, lengths, literal_count + distance_count) || lengths[END_OF_BLOCK] == 0)
        return false;
    return code_build(&literals, lengths, literal_count) &&
           code_build(&distances, lengths + literal_count, distance_count) &&
           take_coded(from, to, &literals, &distances);
}

u32 adler32(struct bytes data)
{
    u32 low = 1, high = 0;
    for (u32 i = 0; i < data.len; i++) {
        low = (low + data.at[i]) % 65521;
        high = (high + low) % 65521;
    }
    return high << 16 | low;
}

bool zlib_uncompress(struct bytes data, struct sink *to)
{
    if (data.len < 6 || (data.at[0] & 0x0f) != 8 || data.at[0] >> 4 > 7 || data.at[1] & 0x20 ||
        ((u32)data.at[0] << 8 | data.at[1]) % 31)
        return false;
    struct source from = {.at = data.at + 2, .end = data.at + data.len};
    for (bool last = false; !last;) {
        last = take_bits(&from, 1);
        u32 kind = take_bits(&from, 2);
        bool taken = kind == 0 ? take_stored(&from, to) : kind == 1 ? take_fixed(&from, to) : take_dynamic(&from, to);
        if (kind == 3 || from.short_of_data || !taken)
            return false;
    }
    if (from.end - from.at < 4)
        return false;
    u32 sum = (u32)from.at[0] << 24 | (u32)from.at[1] << 16 | (u32)from.at[2] << 8 | from.at[3];
    return sum == adler32((struct bytes){to->at, to->len});
}
