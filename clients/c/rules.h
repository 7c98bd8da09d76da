/* The compiled policy, and what is shown and written by it. */
#ifndef SBX_RULES_H
#define SBX_RULES_H

#include "data.h"

/* ---- policy.c, rules.c ------------------------------------------------------------------------------------------- */

enum section { SECTION_REQUEST_HEADERS, SECTION_REQUEST_TRAILERS, SECTION_RESPONSE_HEADERS, SECTION_RESPONSE_TRAILERS,
               SECTIONS };
enum mode { MODE_SHOW, MODE_DROP, MODE_MASK, MODE_HASH, MODE_PRESENCE, MODES };
enum { WRITE_LOCAL_RESPONSE = 1, WRITE_BODY = 2, WRITE_PROPERTIES = 4, WRITE_HEADER_MAPS = 8 };
enum on_failure { ON_FAILURE_CLOSED, ON_FAILURE_OPEN, ON_FAILURE_RELOAD };

struct pattern {
    sbx_bytes name; /* lower case */
    uint8_t mode;
};

/* An exact name first, then the first prefix that fits. */
struct rules {
    struct pattern *exact; /* a hash table, name.data NULL: empty */
    uint32_t exact_mask;   /* slots - 1 */
    uint32_t exact_count;
    struct pattern *prefixes;
    uint32_t prefix_count;
    bool hides; /* any mode but SHOW */
};

struct sbx_policy {
    uint32_t owners;
    uint8_t *blob; /* all names point into it */
    sbx_bytes tenant, plugin, key, imports;
    uint64_t needs;
    sbx_limits limits;
    uint64_t loose_per_window; /* records outside events in a tenth of a second, in the long run */
    uint64_t failure, failure_status;
    uint64_t write_flags, max_headers, max_header_bytes, max_headers_bytes;
    struct rules redact[SECTIONS], denied, allowed;
    bool has_allowed;
    struct pattern *properties; /* name: path joined by NUL; mode 0 hidden, 1 shown */
    uint32_t property_count;
};

/* Reads one entry of a list at *at. False: malformed. */
bool rules_read(sbx_bytes list, size_t *at, uint8_t max_mode, struct pattern *pattern, bool *is_prefix);
bool rules_build(struct rules *rules, sbx_bytes list, uint8_t max_mode); /* false: malformed or no memory */
void rules_free(struct rules *rules);
const struct pattern *rules_find(const struct rules *rules, sbx_bytes name); /* any case; NULL: none fits */

static inline bool may_write_body(const sbx_policy *policy)
{
    return policy->write_flags & WRITE_BODY;
}

static inline enum mode header_mode(const sbx_policy *policy, enum section section, sbx_bytes name)
{
    const struct pattern *found = rules_find(&policy->redact[section], name);
    return found ? (enum mode)found->mode : MODE_SHOW;
}

/* ---- view.c, diff.c, restore.c, legal.c, write.c ----------------------------------------------------------------- */

/* What the plugin sees. *hidden false: `view` is `headers` itself. False: no memory. */
bool view_of(const sbx_policy *policy, enum section section, struct map headers, struct arena *arena, struct map *view,
             bool *hidden);
/* `mode` is MODE_MASK or MODE_HASH. `to` has 32 bytes. */
sbx_bytes placeholder(const sbx_policy *policy, enum mode mode, sbx_bytes value, uint8_t *to);

/* What differs between the plugin's view and what it made of it, with hidden values put back in the place of what it was
   shown of them. `out` holds the result, `scratch` is used in between. False: no memory. */
bool changes_of(const sbx_policy *policy, enum section section, struct map headers, struct map view, bool hidden,
                struct map after, struct arena *out, struct arena *scratch, sbx_changes *changes);

/* Puts the hidden values of the proxy's map in the place of what the plugin was shown of them. False: no memory. */
bool restore_hidden(const sbx_policy *policy, enum section section, struct map headers, sbx_set *set, struct arena *out,
                    struct arena *scratch);

/* Of one name, and of an entry: SBX_ALLOWED, or why it must be left out. */
enum sbx_reason name_problem(const sbx_policy *policy, sbx_bytes name);
enum sbx_reason entry_problem(const sbx_policy *policy, sbx_bytes name, sbx_bytes value, enum section section);

struct refusals {
    sbx_refusal *list;
    size_t count, capacity;
    struct arena *arena;
};

bool refuse(struct refusals *refusals, enum sbx_reason reason, sbx_bytes name);
/* Leaves in `changes` what may be made. False: no memory. */
bool write_headers(const sbx_policy *policy, enum section section, sbx_changes *changes, struct arena *arena,
                   struct refusals *refusals);
/* SBX_ALLOWED, or why it must be left out. */
enum sbx_reason write_body(const sbx_policy *policy, uint64_t len);
enum sbx_reason write_property(const sbx_policy *policy, sbx_bytes path, sbx_bytes value);
/* Rewrites `local` to what may leave. SBX_OK, SBX_REFUSED (none may), SBX_NO_MEMORY. */
int write_local_response(const sbx_policy *policy, sbx_local_response *local, struct arena *arena,
                         struct refusals *refusals);

#endif
