/* The filter's configuration: a flat JSON object. Envoy writes a Struct so, and hands a StringValue on as it is. */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct text {
    const char *at, *end;
    char *error;
    size_t error_len;
};

enum { KEY_MAX = 32, VALUE_MAX = 512 };

static bool complain(struct text *text, const char *what, const char *about)
{
    snprintf(text->error, text->error_len, "%s%s%s", what, about[0] ? ": " : "", about);
    return false;
}

static void skip_space(struct text *text)
{
    while (text->at < text->end && strchr(" \t\r\n", *text->at))
        text->at++;
}

static bool take(struct text *text, char wanted)
{
    skip_space(text);
    if (text->at >= text->end || *text->at != wanted)
        return false;
    text->at++;
    return true;
}

static bool read_string(struct text *text, char *into, size_t room)
{
    size_t len = 0;
    if (!take(text, '"'))
        return complain(text, "expected a string", "");
    for (; text->at < text->end && *text->at != '"'; text->at++) {
        char c = *text->at;
        if (c == '\\') {
            /* Names and paths need no other escapes. */
            if (++text->at >= text->end || !strchr("\"\\/", *text->at))
                return complain(text, "escapes other than \\\" \\\\ \\/ are not read", "");
            c = *text->at;
        }
        if ((unsigned char)c < 0x20 || len + 1 >= room)
            return complain(text, "a string is too long or has control characters", "");
        into[len++] = c;
    }
    into[len] = 0;
    return take(text, '"') || complain(text, "a string does not end", "");
}

/* A number or a word, up to what ends it. */
static bool read_word(struct text *text, char *into, size_t room)
{
    size_t len = 0;
    skip_space(text);
    while (text->at < text->end && !strchr(",} \t\r\n", *text->at)) {
        if (len + 1 >= room)
            return complain(text, "a value is too long", "");
        into[len++] = *text->at++;
    }
    into[len] = 0;
    return len > 0 || complain(text, "a value is missing", "");
}

static bool copy_name(struct text *text, const char *key, const char *value, char *into, size_t room)
{
    size_t len = strlen(value);
    if (len >= room)
        return complain(text, "too long", key);
    memcpy(into, value, len + 1);
    return true;
}

static bool read_number(struct text *text, const char *key, const char *value, double max, double *into)
{
    char *end = NULL;
    *into = strtod(value, &end);
    if (!end || *end || !(*into >= 0 && *into <= max))
        return complain(text, "not a number in range", key);
    return true;
}

static bool set_target(struct text *text, struct target *target, const char *key, const char *value, bool *known)
{
    *known = true;
    if (!strcmp(key, "tenant"))
        return copy_name(text, key, value, target->tenant, sizeof target->tenant);
    if (!strcmp(key, "plugin"))
        return copy_name(text, key, value, target->plugin, sizeof target->plugin);
    *known = false;
    return true;
}

static bool set_config(struct text *text, struct config *config, const char *key, const char *value)
{
    bool known;
    double number;
    if (!set_target(text, &config->target, key, value, &known))
        return false;
    if (known)
        return true;
    if (!strcmp(key, "socket"))
        return copy_name(text, key, value, config->socket, sizeof config->socket);
    if (!strcmp(key, "failure")) {
        config->fail_open = !strcmp(value, "open");
        return config->fail_open || !strcmp(value, "closed") || complain(text, "must be \"open\" or \"closed\"", key);
    }
    if (!strcmp(key, "spin_us")) {
        if (!read_number(text, key, value, 10000, &number))
            return false;
        config->spin_ns = (int64_t)(number * 1000);
        return true;
    }
    if (!strcmp(key, "attach_timeout_ms")) {
        if (!read_number(text, key, value, 60000, &number))
            return false;
        config->attach_timeout_ns = (uint64_t)(number * (double)MS_NS);
        return true;
    }
    if (!strcmp(key, "daemon_uid")) {
        if (!read_number(text, key, value, UINT32_MAX, &number))
            return false;
        config->daemon_uid = (uint32_t)number;
        return true;
    }
    return complain(text, "unknown key (known: socket, tenant, plugin, failure, spin_us, attach_timeout_ms, daemon_uid)",
                    key);
}

static bool set_route(struct text *text, struct target *target, const char *key, const char *value)
{
    bool known;
    if (!set_target(text, target, key, value, &known))
        return false;
    return known || complain(text, "unknown key (known: tenant, plugin)", key);
}

static bool parse(struct text *text, struct config *config, struct target *target)
{
    char key[KEY_MAX], value[VALUE_MAX];
    if (!take(text, '{'))
        return complain(text, "expected an object", "");
    if (take(text, '}'))
        return true;
    do {
        if (!read_string(text, key, sizeof key) || !take(text, ':'))
            return complain(text, "expected \"key\": value", "");
        skip_space(text);
        bool is_string = text->at < text->end && *text->at == '"';
        if (!(is_string ? read_string(text, value, sizeof value) : read_word(text, value, sizeof value)))
            return false;
        if (!(config ? set_config(text, config, key, value) : set_route(text, target, key, value)))
            return false;
    } while (take(text, ','));
    return take(text, '}') || complain(text, "the object does not end", "");
}

bool config_parse(const char *at, size_t len, struct config *config, char *error, size_t error_len)
{
    struct text text = {at, at + len, error, error_len};
    *config = (struct config){.spin_ns = -1, .daemon_uid = SBX_ANY_UID, .attach_timeout_ns = 1000 * MS_NS};
    if (!parse(&text, config, NULL))
        return false;
    if (!config->socket[0])
        return complain(&text, "is missing", "socket");
    return true;
}

bool target_parse(const char *at, size_t len, struct target *target, char *error, size_t error_len)
{
    struct text text = {at, at + len, error, error_len};
    *target = (struct target){{0}, {0}};
    if (!parse(&text, NULL, target))
        return false;
    return target->tenant[0] || complain(&text, "is missing", "tenant");
}

/* ---- hooks ------------------------------------------------------------------------------------------------------- */

ENVOY_HOOK const char *HOOK(program_init)(void);
const char *HOOK(program_init)(void)
{
    return ENVOY_ABI_VERSION;
}

void complain_of(const char *what, const char *why)
{
    char text[400];
    int len = snprintf(text, sizeof text, "sandboxd: %s: %s", what, why);
    ENVOY_CALL(log)(ENVOY_LOG_ERROR, (struct envoy_bytes){text, len < 0 ? 0 : strlen(text)});
}

static bool define_counters(void *envoy, struct config *config)
{
    static const char *const names[COUNTERS] = {
        "sandboxd.streams",     "sandboxd.verdicts_at_once", "sandboxd.verdicts_later",   "sandboxd.failed_open",
        "sandboxd.failed_closed", "sandboxd.reset",          "sandboxd.local_responses", "sandboxd.refused",
    };
    for (size_t i = 0; i < COUNTERS; i++) {
        struct envoy_bytes name = {names[i], strlen(names[i])};
        if (ENVOY_CALL(http_filter_config_define_counter)(envoy, name, NULL, 0, &config->counters[i]))
            return false;
    }
    return true;
}

ENVOY_HOOK const void *HOOK(http_filter_config_new)(void *envoy, struct envoy_bytes name, struct envoy_bytes text);
const void *HOOK(http_filter_config_new)(void *envoy, struct envoy_bytes name, struct envoy_bytes text)
{
    char error[200];
    struct config *config = calloc(1, sizeof *config);
    (void)name;
    if (!config)
        return NULL;
    if (!config_parse(text.at, text.len, config, error, sizeof error)) {
        complain_of("filter_config", error);
    } else if (!define_counters(envoy, config)) {
        complain_of("filter_config", "Envoy takes no counters");
    } else {
        return config;
    }
    free(config);
    return NULL;
}

ENVOY_HOOK void HOOK(http_filter_config_destroy)(const void *config);
void HOOK(http_filter_config_destroy)(const void *config)
{
    free((void *)(uintptr_t)config);
}

ENVOY_HOOK const void *HOOK(http_filter_per_route_config_new)(struct envoy_bytes name, struct envoy_bytes text);
const void *HOOK(http_filter_per_route_config_new)(struct envoy_bytes name, struct envoy_bytes text)
{
    char error[200];
    struct target *target = calloc(1, sizeof *target);
    (void)name;
    if (!target)
        return NULL;
    if (target_parse(text.at, text.len, target, error, sizeof error))
        return target;
    complain_of("a route's filter_config", error);
    free(target);
    return NULL;
}

ENVOY_HOOK void HOOK(http_filter_per_route_config_destroy)(const void *target);
void HOOK(http_filter_per_route_config_destroy)(const void *target)
{
    free((void *)(uintptr_t)target);
}
