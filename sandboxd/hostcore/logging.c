/*
 * The plugin's log: proxy_log, and what the guest writes to standard output and standard error.
 *
 * A message is cut at `log_message_bytes`; lines and bytes of one event are bounded, the rest is counted and reported
 * as LOGS_DROPPED. Each line is published at once, so that the last words before a trap reach the client.
 */
#include "stream.h"

#define LINE_BYTES (8u * KIB)

/* Partial lines of fd 1 and fd 2. Runtimes write a panic in dozens of small pieces. */
STATE static struct line {
    u8 text[LINE_BYTES];
    u32 len;
    bool cut; /* the line was longer than the buffer; what follows up to its end is not kept */
} lines[2];

/* A record for a message of `len` bytes (cut already); NULL: filtered or over the limits. */
static u8 *log_record(u32 level, u16 flags, u32 len)
{
    const struct limits *limits = &vm.config.limits;
    if (level < vm.config.min_log_level)
        return NULL;
    if (vm.log_lines >= limits->log_lines_per_event || vm.log_bytes + len > limits->log_bytes_per_event) {
        vm.logs_dropped++;
        return NULL;
    }
    vm.log_lines++;
    vm.log_bytes += len;
    struct stream *stream = acting_stream();
    return ring_put(COMPLETE_LOG, flags, stream ? stream->id : 0, level, len);
}

static u32 longest_message(void)
{
    u64 most = vm.config.limits.log_message_bytes;
    return most < ring_max_payload() ? (u32)most : ring_max_payload();
}

static void log_text(u32 level, struct bytes text, bool cut)
{
    u32 most = longest_message();
    if (text.len > most) {
        text.len = most;
        cut = true;
    }
    u8 *to = log_record(level, cut ? RECORD_TRUNCATED : 0, text.len);
    if (!to)
        return;
    if (text.len)
        memcpy(to, text.at, text.len);
    ring_publish();
}

u32 EXPORT(proxy_log)(u32 level, u32 message, u32 message_len)
{
    host_call(ANYWHERE);
    if (level > LOG_CRITICAL)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(message, message_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    u32 most = longest_message();
    u32 len = message_len < most ? message_len : most;
    u8 *to = log_record(level, message_len > most ? RECORD_TRUNCATED : 0, len);
    if (to) {
        guest_read(message, to, len);
        ring_publish();
    }
    return STATUS_OK;
}

u32 EXPORT(proxy_get_log_level)(u32 level_out)
{
    host_call(IN_CALLBACKS);
    return guest_write_u32(level_out, vm.config.min_log_level) ? STATUS_OK : STATUS_INVALID_MEMORY_ACCESS;
}

static void line_flush(u32 which)
{
    struct line *line = &lines[which];
    if (line->len || line->cut)
        log_text(which == 0 ? LOG_INFO : LOG_ERROR, (struct bytes){line->text, line->len}, line->cut);
    line->len = 0;
    line->cut = false;
}

/* Lines that the guest has not ended go out when its callback ends. */
void log_lines_flush(void)
{
    if (UNLIKELY(lines[0].len | lines[1].len)) {
        line_flush(0);
        line_flush(1);
    }
}

static void line_add(u32 which, struct bytes text)
{
    struct line *line = &lines[which];
    u32 room = LINE_BYTES - line->len;
    if (text.len > room) {
        text.len = room;
        line->cut = true;
    }
    if (text.len)
        memcpy(line->text + line->len, text.at, text.len);
    line->len += text.len;
}

/* Append a range of the guest's memory to the fd's line; false: not a range of its memory. */
bool log_stdio(u32 fd, u32 address, u32 len)
{
    u32 which = fd - 1;
    while (len) {
        u32 part = len < SCRATCH_BYTES ? len : SCRATCH_BYTES;
        if (!guest_read(address, scratch, part))
            return false;
        const u8 *at = scratch, *end = scratch + part;
        while (at < end) {
            const u8 *stop = at;
            while (stop < end && *stop != '\n')
                stop++;
            line_add(which, (struct bytes){at, (u32)(stop - at)});
            if (stop == end)
                break;
            line_flush(which);
            at = stop + 1;
        }
        address += part;
        len -= part;
    }
    return true;
}
