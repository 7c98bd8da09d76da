/* Packing into a zlib stream. */
#include "zlib.h"

#define END_OF_BLOCK 256u
#define HASH_BITS 13u
#define WINDOW 32768u
#define MIN_MATCH 3u
#define MAX_MATCH 258u
#define MAX_TRIES 16u

struct writer {
    struct sink *to;
    u32 bits, count;
};

static void put_byte(struct sink *to, u8 byte)
{
    if (sink_reserve(to, 1))
        to->at[to->len++] = byte;
}

static void put_bits(struct writer *writer, u32 value, u32 count)
{
    writer->bits |= value << writer->count;
    writer->count += count;
    while (writer->count >= 8) {
        put_byte(writer->to, (u8)writer->bits);
        writer->bits >>= 8;
        writer->count -= 8;
    }
}

/* Huffman codes go out with their highest bit first. */
static void put_code(struct writer *writer, u32 code, u32 count)
{
    u32 turned = 0;
    for (u32 i = 0; i < count; i++)
        turned |= (code >> i & 1) << (count - 1 - i);
    put_bits(writer, turned, count);
}

static void put_literal(struct writer *writer, u32 symbol)
{
    if (symbol < 144)
        put_code(writer, 0x30 + symbol, 8);
    else if (symbol < 256)
        put_code(writer, 0x190 + symbol - 144, 9);
    else if (symbol < 280)
        put_code(writer, symbol - 256, 7);
    else
        put_code(writer, 0xc0 + symbol - 280, 8);
}

/* The base and number of extra bits of lengths (from 3, in steps of four) and distances (from 1, in steps of two). */
static void put_match(struct writer *writer, u32 len, u32 distance)
{
    u32 extra = 0, value = len - 3;
    if (len == MAX_MATCH) {
        put_literal(writer, 285);
    } else if (value < 8) {
        put_literal(writer, 257 + value);
    } else {
        while (value >> extra >= 8)
            extra++;
        put_literal(writer, 257 + 4 * extra + (value >> extra));
        put_bits(writer, value & ((1u << extra) - 1), extra);
    }
    value = distance - 1;
    extra = 0;
    while (value >> extra >= 4)
        extra++;
    put_code(writer, value < 4 ? value : 2 * extra + (value >> extra), 5);
    put_bits(writer, value & ((1u << extra) - 1), extra);
}

static u32 match_len(const u8 *a, const u8 *b, u32 most)
{
    u32 len = 0;
    while (len < most && a[len] == b[len])
        len++;
    return len;
}

static u32 hash_of(const u8 *at)
{
    return (at[0] | (u32)at[1] << 8 | (u32)at[2] << 16) * 2654435761u >> (32 - HASH_BITS);
}

/* Where each hash was seen last, and for each place of the window where its hash was before; plus one, 0: never. */
struct chains {
    u32 heads[1u << HASH_BITS];
    u32 before[WINDOW];
};

static void remember(struct chains *chains, struct bytes data, u32 place)
{
    if (data.len - place < MIN_MATCH)
        return;
    u32 *head = &chains->heads[hash_of(data.at + place)];
    chains->before[place % WINDOW] = *head;
    *head = place + 1;
}

static u32 find_match(const struct chains *chains, struct bytes data, u32 place, u32 *distance)
{
    u32 best = 0, left = data.len - place, most = left < MAX_MATCH ? left : MAX_MATCH;
    if (most < MIN_MATCH)
        return 0;
    u32 found = chains->heads[hash_of(data.at + place)];
    for (u32 tries = 0; found && tries < MAX_TRIES; tries++) {
        u32 at = found - 1;
        if (at >= place || place - at > WINDOW - MAX_MATCH)
            break;
        u32 len = match_len(data.at + at, data.at + place, most);
        if (len > best) {
            best = len;
            *distance = place - at;
        }
        found = chains->before[at % WINDOW];
    }
    return best >= MIN_MATCH ? best : 0;
}

/* One block of the fixed code: simple, and never much longer than the data. */
void zlib_compress(struct bytes data, struct sink *to)
{
    struct writer writer = {.to = to};
    struct chains *chains = heap_alloc(sizeof *chains);
    if (!chains) {
        to->full = true;
        return;
    }
    memset(chains, 0, sizeof *chains);
    put_byte(to, 0x78);
    put_byte(to, 0x9c);
    put_bits(&writer, 3, 3); /* the last block, of the fixed code */
    for (u32 place = 0; place < data.len && !to->full;) {
        u32 distance = 0, len = find_match(chains, data, place, &distance);
        if (len)
            put_match(&writer, len, distance);
        else
            put_literal(&writer, data.at[place]);
        for (u32 end = place + (len ? len : 1); place < end; place++)
            remember(chains, data, place);
    }
    put_literal(&writer, END_OF_BLOCK);
    put_bits(&writer, 0, 7); /* to a whole byte */
    u32 sum = adler32(data);
    for (u32 shift = 32; shift; shift -= 8)
        put_byte(to, (u8)(sum >> (shift - 8)));
    heap_free(chains);
}
