/* Strings with a length, and words for people. */
#include "internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

bool equal_lower(sbx_bytes a, sbx_bytes b)
{
    if (a.len != b.len)
        return false;
    for (size_t i = 0; i < a.len; i++)
        if (lower(a.data[i]) != lower(b.data[i]))
            return false;
    return true;
}

/* FNV-1a. */
uint32_t hash_lower(sbx_bytes name)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < name.len; i++)
        hash = (hash ^ lower(name.data[i])) * 16777619u;
    return hash ^ hash >> 15;
}

static uint64_t rotate(uint64_t value, unsigned by)
{
    return value << by | value >> (64 - by);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

uint32_t hash_keyed(const uint8_t *key, sbx_bytes name)
{
    uint64_t a = get_u64(key), b = get_u64(key + 8), word = 0;
    uint64_t v[4] = {a ^ 0x736f6d6570736575u, b ^ 0x646f72616e646f6du, a ^ 0x6c7967656e657261u, b ^ 0x7465646279746573u};
    for (size_t i = 0; i <= name.len; i++) {
        uint64_t byte = i < name.len ? lower(name.data[i]) : name.len & 255;
        bool last = i == name.len;
        word |= byte << (last ? 56 : 8 * (i % 8));
        if (i % 8 == 7 || last) {
            v[3] ^= word;
            sip_round(v);
            v[0] ^= word;
            word = 0;
        }
    }
    v[2] ^= 255;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    uint64_t hash = v[0] ^ v[1] ^ v[2] ^ v[3];
    return (uint32_t)(hash ^ hash >> 32);
}

bool lowered(struct arena *arena, sbx_bytes *name)
{
    size_t i = 0;
    while (i < name->len && lower(name->data[i]) == name->data[i])
        i++;
    if (i == name->len)
        return true;
    uint8_t *copy = arena_alloc(arena, name->len);
    if (!copy)
        return false;
    for (i = 0; i < name->len; i++)
        copy[i] = lower(name->data[i]);
    name->data = copy;
    return true;
}

/* Bytes that must follow this one; -1: it begins no character. */
static int utf8_tail(uint8_t first)
{
    if (first < 0x80)
        return 0;
    if (first >= 0xC2 && first <= 0xDF)
        return 1;
    if (first >= 0xE0 && first <= 0xEF)
        return 2;
    return first >= 0xF0 && first <= 0xF4 ? 3 : -1;
}

/* Neither overlong forms nor surrogates nor anything past U+10FFFF. */
static bool utf8_second(uint8_t first, uint8_t second)
{
    uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    return second >= low && second <= high;
}

bool is_utf8(sbx_bytes text)
{
    for (size_t i = 0; i < text.len; i++) {
        uint8_t first = text.data[i];
        int tail = utf8_tail(first);
        if (tail < 0 || (size_t)tail > text.len - i - 1)
            return false;
        if (tail && !utf8_second(first, text.data[i + 1]))
            return false;
        for (int n = 2; n <= tail; n++)
            if ((text.data[i + (size_t)n] & 0xC0) != 0x80)
                return false;
        i += (size_t)tail;
    }
    return true;
}

static void printable(char *text)
{
    for (; *text; text++)
        if (*text < 0x20 || *text > 0x7e)
            *text = '?';
}

void put_text(char *to, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to, size, format, arguments);
    va_end(arguments);
    printable(to);
}

int fail(sbx_error *error, int status, const char *format, ...)
{
    if (error) {
        va_list arguments;
        *error = (sbx_error){.status = status};
        va_start(arguments, format);
        vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
        printable(error->text);
    }
    return status;
}

int fail_errno(sbx_error *error, const char *what)
{
    int number = errno;
    /* strerror is not safe with threads; the number says as much. */
    fail(error, SBX_SYSTEM, "%s failed (errno %d)", what, number);
    if (error)
        error->sys_errno = number;
    return SBX_SYSTEM;
}

uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

const char *sbx_status_name(int status)
{
    static const char *const names[] = {
        "ok",    "again", "timeout", "down",      "broken",         "detached",           "drain",
        "full",  "limit", "refused", "caller_bug", "out_of_memory", "system_call_failed", "bad_daemon",
    };
    return status >= 0 && (size_t)status < sizeof names / sizeof *names ? names[status] : "unknown";
}

const char *sbx_reason_name(uint32_t reason)
{
    static const char *const names[] = {
        "allowed",          "illegal_name", "illegal_value", "illegal_pseudo_header", "connection_header",
        "denied_by_policy", "too_many",     "too_large",     "illegal_status",        "illegal_path",
    };
    return reason < sizeof names / sizeof *names ? names[reason] : "unknown";
}
