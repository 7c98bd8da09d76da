/*
 * Metrics: define, increment, record, get, with Envoy's meaning of each (a record on a counter adds).
 *
 * An id holds the type in its low two bits and counts up in steps of four, per type. The same name and type is the same
 * metric and gets the same id.
 */
#include "hostcore.h"
#include "outbox.h"

enum metric_type { COUNTER = 0, GAUGE = 1, HISTOGRAM = 2, METRIC_TYPES = 3 };
#define TYPE_BITS 2
#define FIRST_CAP 16u

struct metric {
    u64 value;    /* counter, gauge; sum of a histogram's samples */
    u64 *buckets; /* of a histogram: samples of 0, then of 2^(n-1) to 2^n - 1 */
    u32 name_len;
    u8 name[];
};
#define BUCKETS 65u

STATE static struct family {
    struct metric **metrics; /* the metric of id (n << 2 | type) is metrics[n - 1] */
    u32 count, cap;
    struct table by_name; /* hash of the name -> metric number of the first one, chained by trying hash + 1 */
} families[METRIC_TYPES];

static u64 hash_name(const u8 *name, u32 len)
{
    u64 hash = 0xcbf29ce484222325ull; /* FNV-1a */
    for (u32 i = 0; i < len; i++)
        hash = (hash ^ name[i]) * 0x100000001b3ull;
    return hash;
}

static struct metric *metric_of(u32 id)
{
    u32 type = id & 3, number = id >> TYPE_BITS;
    if (type == METRIC_TYPES || number == 0 || number > families[type].count)
        return NULL;
    return families[type].metrics[number - 1];
}

static u32 add_metric(struct family *family, u64 hash, const u8 *name, u32 len)
{
    if (vm.status.metrics >= vm.config.limits.metrics) {
        note(NULL, NOTE_METRICS_LIMIT);
        return 0;
    }
    if (family->count == family->cap) {
        u32 cap = family->cap ? family->cap * 2 : FIRST_CAP;
        struct metric **metrics = heap_grow(family->metrics, family->count * (u32)sizeof *metrics,
                                            cap * (u32)sizeof *metrics);
        if (!metrics)
            return 0;
        family->metrics = metrics;
        family->cap = cap;
    }
    bool histogram = family == &families[HISTOGRAM];
    u32 size = (u32)sizeof(struct metric) + ((len + 7) & ~7u);
    struct metric *metric = heap_alloc(size + (histogram ? BUCKETS * 8 : 0));
    if (!metric)
        return 0;
    *metric = (struct metric){.name_len = len};
    memcpy(metric->name, name, len);
    if (histogram) {
        metric->buckets = (u64 *)(void *)((u8 *)metric + size);
        memset(metric->buckets, 0, BUCKETS * 8);
    }
    if (!table_put(&family->by_name, hash, (void *)(uintptr_t)(family->count + 1))) {
        heap_free(metric);
        return 0;
    }
    family->metrics[family->count++] = metric;
    vm.status.metrics++;
    return family->count;
}

u32 EXPORT(proxy_define_metric)(u32 type, u32 name, u32 name_len, u32 id_out)
{
    host_call(IN_CALLBACKS);
    if (type >= METRIC_TYPES)
        return STATUS_BAD_ARGUMENT;
    if (!guest_ok(name, name_len))
        return STATUS_INVALID_MEMORY_ACCESS;
    if (name_len > MAX_METRIC_NAME_BYTES)
        return STATUS_BAD_ARGUMENT;
    struct family *family = &families[type];
    guest_read(name, scratch, name_len);
    u64 hash = hash_name(scratch, name_len);
    u32 number;
    for (;; hash++) {
        number = (u32)(uintptr_t)table_get(&family->by_name, hash);
        if (!number)
            break;
        const struct metric *metric = family->metrics[number - 1];
        if (bytes_equal((struct bytes){metric->name, metric->name_len}, (struct bytes){scratch, name_len}))
            break;
    }
    if (!number)
        number = add_metric(family, hash, scratch, name_len);
    if (!number)
        return STATUS_INTERNAL_FAILURE;
    return guest_write_u32(id_out, number << TYPE_BITS | type) ? STATUS_OK : STATUS_INVALID_MEMORY_ACCESS;
}

u32 EXPORT(proxy_increment_metric)(u32 id, i64 delta)
{
    host_call(IN_CALLBACKS);
    struct metric *metric = metric_of(id);
    if (!metric)
        return (id & 3) == METRIC_TYPES ? STATUS_BAD_ARGUMENT : STATUS_NOT_FOUND;
    switch (id & 3) {
    case COUNTER:
        if (delta <= 0)
            return STATUS_BAD_ARGUMENT;
        metric->value += (u64)delta;
        return STATUS_OK;
    case GAUGE: {
        u64 down = 0 - (u64)delta; /* for delta <= 0; well defined for the lowest number as well */
        if (delta > 0)
            metric->value += (u64)delta;
        else
            metric->value -= down < metric->value ? down : metric->value;
        return STATUS_OK;
    }
    default:
        return STATUS_BAD_ARGUMENT;
    }
}

static void sample(struct metric *metric, u64 value)
{
    metric->value += value;
    metric->buckets[value ? 64 - (u32)__builtin_clzll(value) : 0]++;
}

u32 EXPORT(proxy_record_metric)(u32 id, u64 value)
{
    host_call(IN_CALLBACKS);
    struct metric *metric = metric_of(id);
    if (!metric)
        return STATUS_NOT_FOUND;
    if ((id & 3) == COUNTER)
        metric->value += value;
    else if ((id & 3) == GAUGE)
        metric->value = value;
    else
        sample(metric, value);
    return STATUS_OK;
}

u32 EXPORT(proxy_get_metric)(u32 id, u32 value_out)
{
    host_call(IN_CALLBACKS);
    const struct metric *metric = metric_of(id);
    if (!metric)
        return (id & 3) == METRIC_TYPES ? STATUS_BAD_ARGUMENT : STATUS_NOT_FOUND;
    if ((id & 3) == HISTOGRAM)
        return STATUS_BAD_ARGUMENT;
    return guest_write_u64(value_out, metric->value) ? STATUS_OK : STATUS_INVALID_MEMORY_ACCESS;
}

/* ---- for the outside --------------------------------------------------------------------------------------------- */

static u32 buckets_used(const struct metric *metric)
{
    u32 used = metric->buckets ? BUCKETS : 0;
    while (used && !metric->buckets[used - 1])
        used--;
    return used;
}

#define METRIC_HEAD_BYTES 20u

static u32 encoded_size(const struct metric *metric)
{
    return METRIC_HEAD_BYTES + metric->name_len + 8 * buckets_used(metric);
}

static u8 *encode(const struct metric *metric, u32 type, u8 *to)
{
    u32 used = buckets_used(metric);
    store_u32(to, type);
    store_u32(to + 4, metric->name_len);
    store_u32(to + 8, used);
    store_u64(to + 12, metric->value);
    to += METRIC_HEAD_BYTES;
    memcpy(to, metric->name, metric->name_len);
    to += metric->name_len;
    for (u32 i = 0; i < used; i++, to += 8)
        store_u64(to, metric->buckets[i]);
    return to;
}

/* Each as u32 type, length of the name, number of buckets; u64 value; name; u64 buckets. Too many are not sent at all. */
void metrics_send(void)
{
    u32 lens[OUT_PARTS] = {0};
    for (u32 type = COUNTER; type < METRIC_TYPES; type++)
        for (u32 i = 0; i < families[type].count; i++)
            lens[0] += encoded_size(families[type].metrics[i]);
    struct message *message = outbox_make(OUT_METRICS, 0, 0, lens);
    if (!message)
        return;
    u8 *to = outbox_parts(message);
    for (u32 type = COUNTER; type < METRIC_TYPES; type++)
        for (u32 i = 0; i < families[type].count; i++)
            to = encode(families[type].metrics[i], type, to);
    outbox_send(message);
}
