// A reader for JSON that somebody else wrote: walks the members of one object, checks the whole text, keeps nothing.
#ifndef JSON_H
#define JSON_H

#include "filter.h"

enum { MAX_JSON_DEPTH = 8 };

// A member's value: the text between the quotes of a string (escapes as they stand), or the text of anything else.
struct json_value {
    struct text text;
    char kind; // '"' string, '0' number, 'l' true, false or null, '[' or '{'
    bool escaped;
};

static inline bool json_string(struct text *json, struct json_value *value) {
    if (!take_char(json, '"')) return false;
    *value = (struct json_value){{json->at, 0}, '"', false};
    for (; json->size && *json->at != '"'; json->at++, json->size--, value->text.size++) {
        if ((unsigned char)*json->at < ' ') return false;
        if (*json->at != '\\') continue;
        if (json->size < 2) return false;
        value->escaped = true;
        json->at++, json->size--, value->text.size++;
    }
    return take_char(json, '"');
}

static inline bool json_value(struct text *json, struct json_value *value, int depth);

// The inside of an array or object, after its first character.
static inline bool json_items(struct text *json, char end, int depth) {
    struct json_value ignored;
    if (take_char(json, end)) return true;
    do {
        if (end == '}' && (!json_string(json, &ignored) || !take_char(json, ':'))) return false;
        if (!json_value(json, &ignored, depth)) return false;
    } while (take_char(json, ','));
    return take_char(json, end);
}

static inline bool json_word(struct text *json) {
    static const struct text words[] = {{TEXT("true")}, {TEXT("false")}, {TEXT("null")}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (begins_with(*json, words[i])) {
            json->at += words[i].size, json->size -= words[i].size;
            return true;
        }
    return false;
}

static inline bool json_number(struct text *json) {
    size_t before = json->size;
    while (json->size && (is_digit(*json->at) || *json->at == '-' || *json->at == '+' || *json->at == '.' ||
                          *json->at == 'e' || *json->at == 'E'))
        json->at++, json->size--;
    return json->size != before;
}

static inline bool json_value(struct text *json, struct json_value *value, int depth) {
    char first = skip_space(json);
    const char *begin = json->at;
    bool ok;
    if (first == '"') return json_string(json, value);
    if (first == '{' || first == '[') {
        ok = depth < MAX_JSON_DEPTH && take_char(json, first) && json_items(json, first == '{' ? '}' : ']', depth + 1);
        value->kind = first;
    } else if (first == '-' || is_digit(first)) {
        ok = json_number(json);
        value->kind = '0';
    } else {
        ok = json_word(json);
        value->kind = 'l';
    }
    value->text = (struct text){begin, (size_t)(json->at - begin)};
    value->escaped = false;
    return ok;
}

// Calls `visit` for each member of an object; false if one of them says so, or if the text is no object.
typedef bool visit_member(struct text name, const struct json_value *value);

static inline bool each_member(struct text json, visit_member *visit) {
    struct json_value name, value;
    if (!take_char(&json, '{')) return false;
    if (!take_char(&json, '}')) {
        do {
            // A name in escapes could be any name: whoever writes tokens does not need them.
            if (!json_string(&json, &name) || name.escaped || !take_char(&json, ':')) return false;
            if (!json_value(&json, &value, 0) || !visit(name.text, &value)) return false;
        } while (take_char(&json, ','));
        if (!take_char(&json, '}')) return false;
    }
    return skip_space(&json) == 0;
}

#endif
