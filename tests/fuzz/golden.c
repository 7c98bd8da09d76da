/*
 * Runs hostcore's record reader and writer on the golden vectors of the channel.
 *
 * Input, one vector: `write RING_BYTES START` and then a line per record (kind flags stream_id event_seq arg
 * payload-in-hex), or `read RING_BYTES START HEX`. Output: the ring's bytes from START to the new tail in hex, or a line
 * per record. An empty payload or ring is a dash.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "native.h"

#define MOST_LINE (3u * MIB)
enum { AT_SQ_TAIL = 64, AT_SQ_HEAD = 128, AT_CQ_TAIL = 192, AT_CQ_HEAD = 256, PAGE = 4096 };

static char line[MOST_LINE];
static u8 bytes[MOST_LINE / 2];

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "golden: %s\n", what);
    exit(2);
}

static u32 from_hex(const char *text)
{
    u32 len = 0;
    for (; *text && *text != '-' && *text != '\n'; text += 2) {
        char digits[3] = {text[0], text[1], 0};
        char *end;
        bytes[len++] = (u8)strtoul(digits, &end, 16);
        if (*end)
            fail("not hex");
    }
    return len;
}

static void print_hex(const u8 *at, u32 len)
{
    for (u32 i = 0; i < len; i++)
        printf("%02x", at[i]);
}

static void write_records(u32 ring_bytes, u32 start)
{
    unsigned kind, flags;
    u64 stream_id, arg;
    u32 seq;
    int used;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%u %u %" SCNu64 " %" SCNu32 " %" SCNu64 " %n", &kind, &flags, &stream_id, &seq, &arg, &used) < 5)
            fail("a record is: kind flags stream_id event_seq arg payload");
        u32 len = from_hex(line + used);
        if (len > ring_max_payload())
            fail("payload of more than one record");
        vm.event_seq = seq;
        memcpy(ring_put((u16)kind, (u16)flags, stream_id, arg, len), bytes, len);
    }
    ring_publish();
    u32 tail = load_u32(channel_window + AT_CQ_TAIL), len = tail - start;
    for (u32 i = 0; i < len; i++)
        print_hex(channel_window + PAGE + ring_bytes + (start + i) % ring_bytes, 1);
    printf("\n");
}

static void read_records(u32 ring_bytes, u32 start, const char *hex)
{
    struct record record;
    enum ring_state state;
    u32 len = from_hex(hex);
    for (u32 i = 0; i < len; i++)
        channel_window[PAGE + (start + i) % ring_bytes] = bytes[i];
    store_u32(channel_window + AT_SQ_TAIL, start + len);
    while ((state = ring_next(&record)) == RING_RECORD) {
        printf("%u %u %" PRIu64 " %" PRIu32 " %" PRIu64 " ", record.kind, record.flags, record.stream_id,
               record.event_seq, record.arg);
        print_hex(record.payload.at, record.payload.len);
        printf("%s\n", record.payload.len ? "" : "-");
        ring_done();
    }
    if (state == RING_BROKEN)
        printf("broken\n");
    else if (load_u32(channel_window + AT_SQ_HEAD) != start + len)
        fail("the head did not arrive at the tail");
}

int main(void)
{
    char command[8];
    u32 ring_bytes, start;
    int used;
    native_init();
    if (!fgets(line, sizeof line, stdin) ||
        sscanf(line, "%7s %" SCNu32 " %" SCNu32 " %n", command, &ring_bytes, &start, &used) < 3)
        fail("the first line is: write|read RING_BYTES START");
    channel_window = native_pages(PAGE + 2 * (size_t)ring_bytes);
    for (u32 at = AT_SQ_TAIL; at <= AT_CQ_HEAD; at += 64)
        store_u32(channel_window + at, start);
    ring_init(ring_bytes, 1);
    if (strcmp(command, "write") == 0)
        write_records(ring_bytes, start);
    else
        read_records(ring_bytes, start, line + used);
    return 0;
}
