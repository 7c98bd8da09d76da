// What the example filters share: texts with a length, header values, lists of headers, settings in JSON, counters in
// shared data, and a table of streams. Included once, after nothing else; it brings the ABI along.
#ifndef FILTER_H
#define FILTER_H

#include "proxy_wasm.h"

enum { STATUS_CAS_MISMATCH = 8 };
enum { PLUGIN_CONFIGURATION = 7 };
enum { METRIC_COUNTER = 0 };
#define NS_PER_MS 1000000ull
#define NS_PER_SECOND 1000000000ull
#define NO_GRPC_STATUS UINT32_MAX

// ---- texts

struct text {
    const char *at;
    size_t size;
};

#define LITERAL(literal) ((struct text){(literal), sizeof(literal) - 1})
// A text as the two arguments (address, length) that the ABI wants.
#define SPREAD(text) (text).at, (text).size

static inline bool same(struct text a, struct text b) {
    if (a.size != b.size) return false;
    for (size_t i = 0; i < a.size; i++)
        if (a.at[i] != b.at[i]) return false;
    return true;
}

static inline bool begins_with(struct text text, struct text beginning) {
    return text.size >= beginning.size && same((struct text){text.at, beginning.size}, beginning);
}

static inline bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// Decimal digits of a number; `buffer` holds them.
enum { NUMBER_DIGITS = 20 };
static inline struct text number_text(char buffer[NUMBER_DIGITS], uint64_t number) {
    size_t at = NUMBER_DIGITS;
    do {
        buffer[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    return (struct text){buffer + at, NUMBER_DIGITS - at};
}

// The whole number that a text is; false if it is none, or does not fit.
static inline bool text_number(struct text text, uint64_t *number) {
    *number = 0;
    for (size_t i = 0; i < text.size; i++) {
        if (!is_digit(text.at[i]) || *number > (UINT64_MAX - 9) / 10) return false;
        *number = *number * 10 + (uint64_t)(text.at[i] - '0');
    }
    return text.size > 0;
}

// ---- headers

// A header's value; no value if it is not there. Lives until the callback returns.
static inline bool header(uint32_t map, struct text name, struct text *value) {
    char *at = NULL;
    size_t size = 0;
    if (proxy_get_header_map_value(map, SPREAD(name), &at, &size) != STATUS_OK) return false;
    *value = (struct text){at, size};
    return true;
}

static inline void set_header(uint32_t map, struct text name, struct text value) {
    proxy_replace_header_map_value(map, SPREAD(name), SPREAD(value));
}

static inline uint64_t now_ns(void) {
    uint64_t now = 0;
    proxy_get_current_time_nanoseconds(&now);
    return now;
}

// A list of headers in the ABI's form: how many, the sizes of each, then each name and value with a NUL behind it.
enum { MAX_LISTED = 16, MAX_LIST_BYTES = 16384 };

struct header_list {
    struct text names[MAX_LISTED], values[MAX_LISTED];
    uint32_t count;
};

// What does not fit is left out; false then.
static inline bool list_header(struct header_list *list, struct text name, struct text value) {
    if (list->count == MAX_LISTED) return false;
    list->names[list->count] = name;
    list->values[list->count++] = value;
    return true;
}

static inline char *put_bytes(char *to, const void *from, size_t size) {
    for (size_t i = 0; i < size; i++) to[i] = ((const char *)from)[i];
    return to + size;
}

static inline char *put_number(char *to, size_t number) {
    uint32_t word = (uint32_t)number;
    return put_bytes(to, &word, sizeof word); // wasm is little-endian, as the ABI wants
}

static inline char *put_text(char *to, struct text text) {
    to = put_bytes(to, text.at, text.size);
    *to = 0;
    return to + 1;
}

// The list's bytes; none if they are too many. Valid until the next call.
static inline struct text encoded(const struct header_list *list) {
    static char bytes[MAX_LIST_BYTES];
    size_t size = 4;
    for (uint32_t i = 0; i < list->count; i++) size += 10 + list->names[i].size + list->values[i].size;
    if (size > sizeof bytes) return (struct text){NULL, 0};
    char *to = put_number(bytes, list->count);
    for (uint32_t i = 0; i < list->count; i++)
        to = put_number(put_number(to, list->names[i].size), list->values[i].size);
    for (uint32_t i = 0; i < list->count; i++) to = put_text(put_text(to, list->names[i]), list->values[i]);
    return (struct text){bytes, size};
}

// Calls `visit` for each header of a map, as often as it occurs. False if the map cannot be had or makes no sense.
typedef void visit_header(struct text name, struct text value);

static inline uint32_t word_at(const char *bytes) {
    uint32_t word;
    put_bytes((char *)&word, bytes, sizeof word);
    return word;
}

static inline bool each_header(uint32_t map, visit_header *visit) {
    char *bytes = NULL;
    size_t size = 0;
    if (proxy_get_header_map_pairs(map, &bytes, &size) != STATUS_OK) return false;
    if (size < 4) return size == 0;
    uint32_t count = word_at(bytes);
    if (count > (size - 4) / 10) return false;
    size_t at = 4 + 8 * (size_t)count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t name = word_at(bytes + 4 + 8 * i), value = word_at(bytes + 8 + 8 * i);
        if (name > size - at || value > size - at - name || 2 > size - at - name - value) return false;
        visit((struct text){bytes + at, name}, (struct text){bytes + at + name + 1, value});
        at += (size_t)name + value + 2;
    }
    return true;
}

// How often a header occurs. `header` gives the first value alone, and who comes later may look at the last: a filter
// that judges by a value has to know that there is no other.
static struct text counted_name;
static uint32_t counted;

static inline void count_header(struct text name, struct text value) {
    (void)value;
    counted += same(name, counted_name);
}

static inline uint32_t header_count(uint32_t map, struct text name) {
    counted_name = name;
    counted = 0;
    return each_header(map, count_header) ? counted : UINT32_MAX;
}

// Removes all request headers whose names begin with `prefix`: what a client sends there could be taken for the
// filter's own word. False if there are too many.
enum { MAX_REMOVED = 32 };
static struct text removed_prefix, removed[MAX_REMOVED];
static uint32_t removed_count;

static inline void note_prefixed(struct text name, struct text value) {
    (void)value;
    if (!begins_with(name, removed_prefix) || removed_count > MAX_REMOVED) return;
    if (removed_count < MAX_REMOVED) removed[removed_count] = name;
    removed_count++;
}

static inline bool remove_prefixed(struct text prefix) {
    removed_prefix = prefix;
    removed_count = 0;
    if (prefix.size == 0) return true;
    if (!each_header(REQUEST_HEADERS, note_prefixed) || removed_count > MAX_REMOVED) return false;
    for (uint32_t i = 0; i < removed_count; i++) proxy_remove_header_map_value(REQUEST_HEADERS, SPREAD(removed[i]));
    return true;
}

// Answers the request. The plugin's policy may refuse it; the request goes on then.
static inline void answer(uint32_t status, struct text details, struct header_list *headers, struct text body) {
    struct text list = encoded(headers);
    proxy_send_local_response(status, SPREAD(details), SPREAD(body), SPREAD(list), NO_GRPC_STATUS);
}

// ---- settings: a flat JSON object of whole numbers and strings

enum { MAX_SETTINGS_BYTES = 4096, MAX_SETTING_TEXT = 256 };

// A text setting, with room of its own: the configuration's bytes are gone after the callback.
struct setting_text {
    size_t size;
    char bytes[MAX_SETTING_TEXT];
};

struct setting {
    struct text name;
    uint64_t *number; // one of the two
    struct setting_text *text;
    uint64_t least, most; // of a number
};

static inline struct text setting_value(const struct setting_text *setting) {
    return (struct text){setting->bytes, setting->size};
}

static inline char skip_space(struct text *json) {
    while (json->size && (*json->at == ' ' || *json->at == '\n' || *json->at == '\t' || *json->at == '\r'))
        json->at++, json->size--;
    return json->size ? *json->at : 0;
}

static inline bool take_char(struct text *json, char wanted) {
    if (skip_space(json) != wanted) return false;
    json->at++, json->size--;
    return true;
}

// A string without escapes: what settings need.
static inline bool take_string(struct text *json, struct text *string) {
    if (!take_char(json, '"')) return false;
    *string = (struct text){json->at, 0};
    while (json->size && *json->at != '"') {
        if (*json->at == '\\' || (unsigned char)*json->at < ' ') return false;
        json->at++, json->size--, string->size++;
    }
    return take_char(json, '"');
}

static inline bool take_number(struct text *json, uint64_t *number) {
    skip_space(json);
    struct text digits = {json->at, 0};
    while (json->size && is_digit(*json->at)) json->at++, json->size--, digits.size++;
    return text_number(digits, number);
}

static inline bool take_setting(struct text *json, const struct setting *known, size_t count) {
    struct text name, value;
    if (!take_string(json, &name) || !take_char(json, ':')) return false;
    for (size_t i = 0; i < count; i++) {
        const struct setting *setting = known + i;
        if (!same(name, setting->name)) continue;
        if (setting->number)
            return take_number(json, setting->number) && *setting->number >= setting->least &&
                   *setting->number <= setting->most;
        if (!take_string(json, &value) || value.size > MAX_SETTING_TEXT) return false;
        put_bytes(setting->text->bytes, value.at, value.size);
        setting->text->size = value.size;
        return true;
    }
    return false;
}

static inline bool take_settings(struct text json, const struct setting *known, size_t count) {
    if (skip_space(&json) == 0) return true;
    if (!take_char(&json, '{')) return false;
    if (!take_char(&json, '}')) {
        do
            if (!take_setting(&json, known, count)) return false;
        while (take_char(&json, ','));
        if (!take_char(&json, '}')) return false;
    }
    return skip_space(&json) == 0;
}

// Reads the plugin's configuration of `size` bytes. What is absent stays as it is; anything unknown is an error, so
// that a word that was mistyped in a policy is found when it is loaded.
static inline bool configure(size_t size, const struct setting *known, size_t count) {
    char *json = NULL;
    size_t got = 0;
    bool ok = size <= MAX_SETTINGS_BYTES;
    if (ok && size) ok = proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &json, &got) == STATUS_OK;
    ok = ok && take_settings((struct text){json, got}, known, count);
    if (!ok) proxy_log(LOG_ERROR, TEXT("the configuration is no JSON object of this filter's settings, in range"));
    return ok;
}

#endif
