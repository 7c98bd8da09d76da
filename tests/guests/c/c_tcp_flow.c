// Flow control for TCP by the downstream address: connections a second, connections at a time, and bytes a second.
// Counts stand in shared data, so all VMs of the plugin count together.
//
// Configuration (all optional, 0 or absent: no limit):
//   {"connections_per_second": 5, "connections": 10, "bytes_per_second": 1000000, "total_connections": 1000}
//
// A connection over a limit is closed at its beginning, one that has sent more than its bytes of this second at that
// moment. Counts per address live in `flow:<address>`, those of all together in `flow:*`, each 40 bytes. A host that
// dies takes no count with it that matters: what is a second old counts as nothing, and connections at a time are
// counted down when their stream ends, however it ends.
#include "proxy_wasm.h"

enum { DOWNSTREAM = 2 };
enum { PLUGIN_CONFIGURATION = 7 };
enum { STATUS_CAS_MISMATCH = 8 };
enum { COUNTER = 0, GAUGE = 1 };
enum { MAX_CONFIGURATION = 1024, MAX_KEY = 80, MAX_OPEN = 4096, TRIES = 64 };
#define SECOND_NS 1000000000ull

struct limits {
    uint64_t per_second, at_once, bytes, total;
};

struct counts {
    uint64_t second;      // the second that the next two are of
    uint64_t connections; // begun in it
    uint64_t bytes;       // sent in it
    int64_t open;         // connections at the moment
    uint64_t reserved;
};

struct connection {
    uint32_t context; // 0: free
    bool counted;     // it is in `open`
    uint8_t key_size;
    char key[MAX_KEY];
};

static struct limits allowed;
static struct connection connections[MAX_OPEN];
static uint32_t refused_metric, passed_metric;

void WASM_EXPORT(proxy_abi_version_0_2_1)(void) {}

// ---- configuration: a flat JSON object of whole numbers

static bool space(char c) {
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

struct text {
    const char *at, *end;
};

static char next(struct text *text) {
    while (text->at < text->end && space(*text->at)) text->at++;
    return text->at < text->end ? *text->at : 0;
}

static bool take(struct text *text, char wanted) {
    if (next(text) != wanted) return false;
    text->at++;
    return true;
}

static uint64_t *limit_named(const char *name, size_t size) {
    static const struct {
        const char *name;
        size_t size;
        uint64_t *value;
    } known[] = {
        {TEXT("connections_per_second"), &allowed.per_second},
        {TEXT("connections"), &allowed.at_once},
        {TEXT("bytes_per_second"), &allowed.bytes},
        {TEXT("total_connections"), &allowed.total},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t at = 0;
        while (at < size && size == known[i].size && name[at] == known[i].name[at]) at++;
        if (size == known[i].size && at == size) return known[i].value;
    }
    return NULL;
}

static bool entry(struct text *text) {
    if (!take(text, '"')) return false;
    const char *name = text->at;
    while (text->at < text->end && *text->at != '"') text->at++;
    uint64_t *value = limit_named(name, (size_t)(text->at - name));
    if (!value || !take(text, '"') || !take(text, ':')) return false;
    char digit = next(text);
    if (digit < '0' || digit > '9') return false;
    *value = 0;
    for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
        if (*value > UINT64_MAX / 20) return false;
        *value = *value * 10 + (uint64_t)(*text->at - '0');
    }
    return true;
}

static bool parse(struct text text) {
    if (next(&text) == 0) return true;
    if (!take(&text, '{')) return false;
    if (take(&text, '}')) return next(&text) == 0;
    do
        if (!entry(&text)) return false;
    while (take(&text, ','));
    return take(&text, '}') && next(&text) == 0;
}

uint32_t WASM_EXPORT(proxy_on_configure)(uint32_t context, uint32_t size) {
    (void)context;
    char *text = NULL;
    size_t length = 0;
    arena_reset();
    if (size > MAX_CONFIGURATION) return 0;
    if (size != 0 && proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &text, &length) != STATUS_OK) return 0;
    if (!parse((struct text){text, text + length})) {
        proxy_log(LOG_ERROR, TEXT("the configuration is no JSON object of the known limits as whole numbers"));
        return 0;
    }
    uint32_t failed = proxy_define_metric(COUNTER, TEXT("tcp_flow.refused"), &refused_metric);
    failed |= proxy_define_metric(COUNTER, TEXT("tcp_flow.passed"), &passed_metric);
    return failed == STATUS_OK;
}

// ---- counts

// What happens to the counts of one key. Returns whether the limits allow it; then, and only then, it is counted.
typedef bool change(struct counts *counts, uint64_t amount);

static bool begin_one(struct counts *counts, uint64_t per_address) {
    uint64_t at_once = per_address ? allowed.at_once : allowed.total;
    if (per_address && allowed.per_second && counts->connections >= allowed.per_second) return false;
    if (at_once && counts->open >= 0 && (uint64_t)counts->open >= at_once) return false;
    counts->connections++;
    counts->open++;
    return true;
}

static bool end_one(struct counts *counts, uint64_t amount) {
    (void)amount;
    if (counts->open > 0) counts->open--;
    return true;
}

static bool add_bytes(struct counts *counts, uint64_t amount) {
    counts->bytes += amount;
    return !allowed.bytes || counts->bytes <= allowed.bytes;
}

static bool with_counts(const char *key, size_t key_size, change *apply, uint64_t amount) {
    uint64_t now = 0;
    proxy_get_current_time_nanoseconds(&now);
    for (int attempt = 0; attempt < TRIES; attempt++) {
        struct counts counts = {0};
        char *value = NULL;
        size_t size = 0;
        uint32_t cas = 0;
        arena_reset();
        if (proxy_get_shared_data(key, key_size, &value, &size, &cas) == STATUS_OK && size == sizeof counts)
            __builtin_memcpy(&counts, value, sizeof counts);
        if (counts.second != now / SECOND_NS) {
            counts.second = now / SECOND_NS;
            counts.connections = counts.bytes = 0;
        }
        bool fits = apply(&counts, amount);
        uint32_t status = proxy_set_shared_data(key, key_size, (const char *)&counts, sizeof counts, cas);
        if (status == STATUS_OK) return fits;
        if (status != STATUS_CAS_MISMATCH) break;
    }
    // No room in shared data, or others were always faster: refuse rather than not count.
    return false;
}

// ---- connections

static struct connection *find(uint32_t context) {
    for (uint32_t step = 0; step < MAX_OPEN; step++) {
        struct connection *found = &connections[(context + step) % MAX_OPEN];
        if (found->context == context) return found;
    }
    return NULL;
}

// `flow:` and the address without its port; an address that the host does not tell is one like any other.
static void set_key(struct connection *made) {
    static const char prefix[] = "flow:";
    char *address = NULL;
    size_t size = 0, length = 0;
    arena_reset();
    if (proxy_get_property(TEXT("source\0address"), &address, &size) != STATUS_OK) size = 0;
    for (size_t at = size; at > 0; at--)
        if (address[at - 1] == ':') {
            size = at - 1;
            break;
        }
    for (; length < sizeof prefix - 1; length++) made->key[length] = prefix[length];
    for (size_t at = 0; at < size && length < MAX_KEY; at++) made->key[length++] = address[at];
    made->key_size = (uint8_t)length;
}

static void refuse(const char *why, size_t size) {
    proxy_increment_metric(refused_metric, 1);
    proxy_log(LOG_WARN, why, size);
    proxy_close_stream(DOWNSTREAM);
}

uint32_t WASM_EXPORT(proxy_on_new_connection)(uint32_t context) {
    struct connection *made = find(0);
    if (!made) {
        refuse(TEXT("refused: too many connections in one VM"));
        return ACTION_CONTINUE;
    }
    // Linear probing wants the first free place behind the context's own.
    for (uint32_t step = 0; step < MAX_OPEN; step++) {
        made = &connections[(context + step) % MAX_OPEN];
        if (made->context == 0) break;
    }
    made->context = context;
    made->counted = false;
    set_key(made);
    if (!with_counts(made->key, made->key_size, begin_one, 1)) {
        refuse(TEXT("refused: too many connections of one address"));
        return ACTION_CONTINUE;
    }
    if (!with_counts(TEXT("flow:*"), begin_one, 0)) {
        with_counts(made->key, made->key_size, end_one, 0);
        refuse(TEXT("refused: too many connections"));
        return ACTION_CONTINUE;
    }
    made->counted = true;
    proxy_increment_metric(passed_metric, 1);
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_downstream_data)(uint32_t context, uint32_t size, uint32_t end) {
    (void)end;
    struct connection *found = find(context);
    if (found && found->counted && allowed.bytes && !with_counts(found->key, found->key_size, add_bytes, size))
        refuse(TEXT("closed: too many bytes a second of one address"));
    return ACTION_CONTINUE;
}

uint32_t WASM_EXPORT(proxy_on_done)(uint32_t context) {
    struct connection *found = context ? find(context) : NULL;
    if (!found) return 1;
    if (found->counted) {
        with_counts(found->key, found->key_size, end_one, 0);
        with_counts(TEXT("flow:*"), end_one, 0);
    }
    found->context = 0;
    return 1;
}
