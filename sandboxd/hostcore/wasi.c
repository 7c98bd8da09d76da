/*
 * WASI preview 1: the functions that SDK-built modules import, under both module names.
 *
 * Output, environment, clocks, randomness, exit; files and sockets are in the other wasi_*.c. Runtimes insist on
 * some of the answers: Go's on success of poll_oneoff, Rust's on one event per clock subscription.
 */
#include "files.h"

/* ---- output ------------------------------------------------------------------------------------------------------ */

static u32 write_vectors(u32 fd, u32 vectors, u32 count, u32 written_out)
{
    if (!is_output(fd))
        return BADF;
    if (count > MAX_IOVECS)
        return INVAL;
    if (!guest_ok(vectors, count * 8))
        return FAULT;
    u32 written = 0;
    for (u32 i = 0; i < count && written < MAX_WRITE_BYTES; i++) {
        u32 vector[2];
        guest_read(vectors + 8 * i, vector, sizeof vector);
        u32 len = vector[1] < MAX_WRITE_BYTES - written ? vector[1] : MAX_WRITE_BYTES - written;
        if (!guest_ok(vector[0], vector[1]) || !log_stdio(fd, vector[0], len))
            return FAULT;
        written += len;
    }
    return guest_write_u32(written_out, written) ? SUCCESS : FAULT;
}

u32 EXPORT(fd_write)(u32 fd, u32 vectors, u32 count, u32 written_out)
{
    host_call(ANYWHERE);
    struct open_file *file = file_at(fd);
    return file ? file_write(file, vectors, count, written_out) : write_vectors(fd, vectors, count, written_out);
}

u32 EXPORT(fd_pwrite)(u32 fd, u32 vectors, u32 count, u64 offset, u32 written_out)
{
    host_call(AT_START);
    const struct open_file *file = file_at(fd);
    if (file)
        return file_write_at(file, vectors, count, offset, written_out);
    return write_vectors(fd, vectors, count, written_out);
}

/* ---- environment and arguments ----------------------------------------------------------------------------------- */

u32 EXPORT(environ_sizes_get)(u32 count_out, u32 bytes_out)
{
    struct pairs_cursor cursor;
    struct bytes key, value;
    u32 count = 0, bytes = 0;
    host_call(AT_START);
    for (pairs_open(vm.config.environment, &cursor); pairs_next(&cursor, &key, &value); count++)
        bytes += key.len + value.len + 2;
    return guest_write_u32(count_out, count) && guest_write_u32(bytes_out, bytes) ? SUCCESS : FAULT;
}

/* KEY=VALUE and a NUL, one after the other at `text_out`; their addresses at `array_out`. */
u32 EXPORT(environ_get)(u32 array_out, u32 text_out)
{
    struct pairs_cursor cursor;
    struct bytes key, value;
    host_call(AT_START);
    for (pairs_open(vm.config.environment, &cursor); pairs_next(&cursor, &key, &value); array_out += 4) {
        u32 len = key.len + 1 + value.len + 1;
        if (!guest_ok(text_out, len) || !guest_write_u32(array_out, text_out))
            return FAULT;
        guest_write(text_out, key.at, key.len);
        guest_write(text_out + key.len, "=", 1);
        guest_write(text_out + key.len + 1, value.at, value.len);
        guest_write(text_out + len - 1, "", 1);
        text_out += len;
    }
    return SUCCESS;
}

u32 EXPORT(args_sizes_get)(u32 count_out, u32 bytes_out)
{
    host_call(AT_START);
    return guest_write_u32(count_out, 0) && guest_write_u32(bytes_out, 0) ? SUCCESS : FAULT;
}

u32 EXPORT(args_get)(UNUSED array_out, UNUSED text_out)
{
    return answer(SUCCESS);
}

/* ---- time, random, scheduling ------------------------------------------------------------------------------------ */

u32 EXPORT(clock_time_get)(u32 clock_id, UNUSED64 precision, u32 time_out)
{
    host_call(ANYWHERE);
    if (clock_id > 1)
        return NOTSUP;
    return guest_write_u64(time_out, clock_now(clock_id)) ? SUCCESS : FAULT;
}

u32 EXPORT(clock_res_get)(u32 clock_id, u32 resolution_out)
{
    host_call(AT_START);
    if (clock_id > 1)
        return NOTSUP;
    return guest_write_u64(resolution_out, 1) ? SUCCESS : FAULT;
}

u32 EXPORT(random_get)(u32 buffer, u32 len)
{
    host_call(AT_START);
    if (len > MAX_RANDOM_BYTES)
        return INVAL;
    if (!guest_ok(buffer, len))
        return FAULT;
    random_fill(scratch, len);
    guest_write(buffer, scratch, len);
    memset(scratch, 0, len);
    return SUCCESS;
}

u32 EXPORT(sched_yield)(void)
{
    host_call(ANYWHERE);
    return SUCCESS;
}

enum { SUBSCRIPTION_BYTES = 48, EVENT_BYTES = 32 };
enum { TAG_CLOCK = 0, TAG_FD_READ = 1, TAG_FD_WRITE = 2 };

/* How far the subscription moves the monotonic clock. */
static u64 sleep_ns(const u8 *subscription)
{
    u32 clock_id = load_u32(subscription + 16);
    u64 timeout = load_u64(subscription + 24);
    bool absolute = subscription[40] & 1;
    if (!absolute)
        return timeout;
    u64 now = clock_now(clock_id == 0 ? 0 : 1);
    return timeout > now ? timeout - now : 0;
}

/* Every clock subscription fires at once, and the clock shows that the longest time has passed. */
u32 EXPORT(poll_oneoff)(u32 subscriptions, u32 events_out, u32 count, u32 count_out)
{
    u64 longest_ns = 0;
    host_call(ANYWHERE);
    if (count == 0 || count > MAX_SUBSCRIPTIONS)
        return INVAL;
    if (!guest_ok(subscriptions, count * SUBSCRIPTION_BYTES) || !guest_ok(events_out, count * EVENT_BYTES))
        return FAULT;
    for (u32 i = 0; i < count; i++) {
        u8 subscription[SUBSCRIPTION_BYTES], event[EVENT_BYTES] = {0};
        guest_read(subscriptions + i * SUBSCRIPTION_BYTES, subscription, SUBSCRIPTION_BYTES);
        u8 tag = subscription[8];
        memcpy(event, subscription, 8); /* userdata */
        event[10] = tag;
        if (tag == TAG_CLOCK) {
            u64 ns = sleep_ns(subscription);
            longest_ns = ns > longest_ns ? ns : longest_ns;
        } else if (tag != TAG_FD_WRITE || !is_output(load_u32(subscription + 16))) {
            event[8] = BADF;
        }
        guest_write(events_out + i * EVENT_BYTES, event, EVENT_BYTES);
    }
    clock_advance(longest_ns);
    return guest_write_u32(count_out, count) ? SUCCESS : FAULT;
}

/* Never returns to the guest; the VM is over, whatever the code. */
void EXPORT(proc_exit)(u32 code)
{
    host_call(ANYWHERE);
    vm.status.exited = 1;
    vm.status.exit_code = code;
    log_lines_flush();
    trap();
}

u32 EXPORT(proc_raise)(UNUSED signal)
{
    return answer(NOSYS);
}
