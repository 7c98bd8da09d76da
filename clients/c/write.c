/* What may leave a plugin; as WriteRules in sandboxd/policy/write_rules.py. */
#include "internal.h"

#include <stdlib.h>

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

bool refuse(struct refusals *refusals, enum sbx_reason reason, sbx_bytes name)
{
    size_t len = name.len < SHOWN_NAME_BYTES ? name.len : SHOWN_NAME_BYTES;
    uint8_t *shown = arena_alloc(refusals->arena, len);
    if (!shown || !grow((void **)&refusals->list, refusals->count, &refusals->capacity, sizeof *refusals->list))
        return false;
    for (size_t i = 0; i < len; i++)
        shown[i] = name.data[i] < 0x21 || name.data[i] > 0x7e ? '?' : name.data[i];
    refusals->list[refusals->count++] = (sbx_refusal){reason, {shown, len}};
    return true;
}

/* ---- header maps ------------------------------------------------------------------------------------------------- */

/* What is left of the policy's counts and sizes for one map. */
struct room {
    uint64_t one, count, bytes;
};

static struct room full_room(const sbx_policy *policy)
{
    return (struct room){policy->max_header_bytes, policy->max_headers, policy->max_headers_bytes};
}

static enum sbx_reason take(struct room *room, uint64_t size)
{
    if (room->count < 1)
        return SBX_TOO_MANY;
    if (size > room->one || size > room->bytes)
        return SBX_TOO_LARGE;
    room->count--;
    room->bytes -= size;
    return SBX_ALLOWED;
}

static sbx_bytes trimmed(sbx_bytes value)
{
    while (value.len && (value.data[0] == ' ' || value.data[0] == '\t'))
        value = (sbx_bytes){value.data + 1, value.len - 1};
    while (value.len && (value.data[value.len - 1] == ' ' || value.data[value.len - 1] == '\t'))
        value.len--;
    return value;
}

/* Checks one entry with a lower-case name, and takes room for it. */
static enum sbx_reason admit(const sbx_policy *policy, enum section section, struct room *room, sbx_bytes name,
                             sbx_bytes value)
{
    enum sbx_reason reason = entry_problem(policy, name, value, section);
    return reason ? reason : take(room, (uint64_t)name.len + value.len);
}

static bool filter_removed(const sbx_policy *policy, sbx_changes *changes, struct room *room, struct refusals *refusals)
{
    sbx_bytes *removed = (sbx_bytes *)(uintptr_t)changes->removed;
    size_t kept = 0;
    for (size_t i = 0; i < changes->removed_count; i++) {
        sbx_bytes name = removed[i];
        enum sbx_reason reason = is_pseudo(name) ? SBX_ILLEGAL_PSEUDO_HEADER : name_problem(policy, name);
        if (!reason)
            reason = take(room, name.len);
        if (!reason)
            removed[kept++] = name;
        else if (!refuse(refusals, reason, name))
            return false;
    }
    changes->removed_count = kept;
    return true;
}

/* All values of a name, or none. */
static bool filter_set(const sbx_policy *policy, enum section section, sbx_changes *changes, struct room *room,
                       struct refusals *refusals)
{
    sbx_set *sets = (sbx_set *)(uintptr_t)changes->set;
    size_t kept = 0;
    for (size_t i = 0; i < changes->set_count; i++) {
        sbx_set set = sets[i];
        sbx_bytes *values = (sbx_bytes *)(uintptr_t)set.values;
        enum sbx_reason reason = SBX_ALLOWED;
        if (is_pseudo(set.name) && set.count > 1)
            reason = SBX_ILLEGAL_PSEUDO_HEADER;
        for (size_t n = 0; !reason && n < set.count; n++) {
            values[n] = trimmed(values[n]);
            reason = admit(policy, section, room, set.name, values[n]);
        }
        if (reason && !refuse(refusals, reason, set.name))
            return false;
        if (!reason && set.count)
            sets[kept++] = set;
    }
    changes->set_count = kept;
    return true;
}

static bool filter_added(const sbx_policy *policy, enum section section, sbx_changes *changes, struct room *room,
                         struct refusals *refusals)
{
    sbx_pair *added = (sbx_pair *)(uintptr_t)changes->added;
    size_t kept = 0;
    /* An added pseudo-header would stand beside the one that is there: it can only be set. */
    for (size_t i = 0; i < changes->added_count; i++)
        if (is_pseudo(added[i].name) && !refuse(refusals, SBX_ILLEGAL_PSEUDO_HEADER, added[i].name))
            return false;
    for (size_t i = 0; i < changes->added_count; i++) {
        sbx_pair pair = {added[i].name, trimmed(added[i].value)};
        if (is_pseudo(pair.name))
            continue;
        enum sbx_reason reason = admit(policy, section, room, pair.name, pair.value);
        if (!reason)
            added[kept++] = pair;
        else if (!refuse(refusals, reason, pair.name))
            return false;
    }
    changes->added_count = kept;
    return true;
}

/* The plugin can change no header map. */
static bool refuse_all(sbx_changes *changes, struct refusals *refusals)
{
    bool noted = true;
    for (size_t i = 0; noted && i < changes->removed_count; i++)
        noted = refuse(refusals, SBX_DENIED_BY_POLICY, changes->removed[i]);
    for (size_t i = 0; noted && i < changes->set_count; i++)
        noted = refuse(refusals, SBX_DENIED_BY_POLICY, changes->set[i].name);
    for (size_t i = 0; noted && i < changes->added_count; i++)
        noted = refuse(refusals, SBX_DENIED_BY_POLICY, changes->added[i].name);
    changes->removed_count = changes->set_count = changes->added_count = 0;
    return noted;
}

bool write_headers(const sbx_policy *policy, enum section section, sbx_changes *changes, struct arena *arena,
                   struct refusals *refusals)
{
    struct room room = full_room(policy);
    refusals->arena = arena;
    if (!(policy->write_flags & WRITE_HEADER_MAPS))
        return refuse_all(changes, refusals);
    return filter_removed(policy, changes, &room, refusals) &&
           filter_set(policy, section, changes, &room, refusals) &&
           filter_added(policy, section, changes, &room, refusals);
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

enum sbx_reason write_body(const sbx_policy *policy, uint64_t len)
{
    if (!may_write_body(policy))
        return SBX_DENIED_BY_POLICY;
    return len > policy->limits.body_buffer_bytes ? SBX_TOO_LARGE : SBX_ALLOWED;
}

static bool legal_segments(sbx_bytes path)
{
    size_t segments = 1, len = 0;
    if (path.len && path.data[path.len - 1] == 0)
        path.len--;
    for (size_t i = 0; i < path.len; i++) {
        if (path.data[i]) {
            len++;
            continue;
        }
        if (!len)
            return false;
        len = 0;
        segments++;
    }
    return len && segments <= MAX_PROPERTY_SEGMENTS;
}

enum sbx_reason write_property(const sbx_policy *policy, sbx_bytes path, sbx_bytes value)
{
    if (!(policy->write_flags & WRITE_PROPERTIES))
        return SBX_DENIED_BY_POLICY;
    if (path.len > MAX_PROPERTY_PATH_BYTES || value.len > MAX_PROPERTY_VALUE_BYTES)
        return SBX_TOO_LARGE;
    return legal_segments(path) && is_utf8(path) ? SBX_ALLOWED : SBX_ILLEGAL_PATH;
}

/* One printable word: log formats separate fields by white space. */
static bool safe_details(sbx_bytes *details, struct arena *arena)
{
    size_t len = details->len < MAX_DETAILS_BYTES ? details->len : MAX_DETAILS_BYTES;
    uint8_t *safe = arena_alloc(arena, len);
    for (size_t i = 0; safe && i < len; i++)
        safe[i] = details->data[i] < 0x21 || details->data[i] > 0x7e ? '_' : details->data[i];
    *details = (sbx_bytes){safe, len};
    return safe != NULL;
}

static bool local_headers(const sbx_policy *policy, sbx_local_response *local, struct arena *arena,
                          struct refusals *refusals)
{
    sbx_pair *kept = arena_array(arena, local->header_count, sizeof *kept);
    struct room room = full_room(policy);
    size_t count = 0;
    for (size_t i = 0; kept && i < local->header_count; i++) {
        sbx_pair pair = {local->headers[i].name, trimmed(local->headers[i].value)};
        if (equal_lower(pair.name, LITERAL("content-length")))
            continue;
        if (!lowered(arena, &pair.name))
            return false;
        /* No pseudo-header is legal here: the status is given as a number. */
        enum sbx_reason reason = admit(policy, SECTION_RESPONSE_TRAILERS, &room, pair.name, pair.value);
        if (!reason)
            kept[count++] = pair;
        else if (!refuse(refusals, reason, local->headers[i].name))
            return false;
    }
    local->headers = kept;
    local->header_count = count;
    return kept != NULL;
}

/*
 * Of a plugin that may send none: only what the VM answers on its own when more of a body is held than the policy
 * allows, and as it is written here.
 */
static int write_generated(sbx_local_response *local, struct arena *arena, struct refusals *refusals)
{
    bool request = equal(local->details, LITERAL("request_payload_too_large"));
    if (!request && !equal(local->details, LITERAL("response_payload_too_large")))
        return refuse(refusals, SBX_DENIED_BY_POLICY, LITERAL("local_response")) ? SBX_REFUSED : SBX_NO_MEMORY;
    uint32_t status = request ? 413 : 500;
    sbx_bytes body = request ? LITERAL("Payload Too Large") : LITERAL("Internal Server Error");
    bool same = local->status == status && equal(local->body, body);
    sbx_pair *header = arena_array(arena, 1, sizeof *header);
    if (!header || (!same && !refuse(refusals, SBX_DENIED_BY_POLICY, LITERAL("local_response"))))
        return SBX_NO_MEMORY;
    *header = (sbx_pair){LITERAL("content-type"), LITERAL("text/plain")};
    local->status = status;
    local->grpc_status = -1;
    local->headers = header;
    local->header_count = 1;
    local->body = body;
    return SBX_OK;
}

int write_local_response(const sbx_policy *policy, sbx_local_response *local, struct arena *arena,
                         struct refusals *refusals)
{
    static const sbx_bytes word = LITERAL_INIT("local_response");
    refusals->arena = arena;
    if (!(policy->write_flags & WRITE_LOCAL_RESPONSE))
        return write_generated(local, arena, refusals);
    if (local->status < 200 || local->status > 599) {
        if (!refuse(refusals, SBX_ILLEGAL_STATUS, word))
            return SBX_NO_MEMORY;
        local->status = 500;
    }
    if (local->body.len > MAX_LOCAL_RESPONSE_BODY_BYTES) {
        if (!refuse(refusals, SBX_TOO_LARGE, word))
            return SBX_NO_MEMORY;
        local->body.len = 0;
    }
    if (local->grpc_status < 0 || local->grpc_status > 16)
        local->grpc_status = -1;
    return safe_details(&local->details, arena) && local_headers(policy, local, arena, refusals) ? SBX_OK
                                                                                                : SBX_NO_MEMORY;
}
