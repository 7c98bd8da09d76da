/* From what a hostile VM said to what the caller may do: redaction undone, write rules applied. */
#include "verdict.h"

#include <stdlib.h>

#define LOCAL_HEAD 24u

/* ---- header maps ------------------------------------------------------------------------------------------------- */

static bool find_changes(const struct turn *turn, unsigned kind, struct map after, sbx_changes *changes)
{
    const struct snapshot *snapshot = &turn->stream->maps[section_of(kind)];
    struct map view = {NULL, 0};
    bool hidden = snapshot->present;
    if (snapshot->present && snapshot->seen &&
        !view_of(policy_of(turn), section_of(kind), snapshot->map, &turn->channel->scratch, &view, &hidden))
        return false;
    struct map headers = snapshot->present ? snapshot->map : view;
    return changes_of(policy_of(turn), section_of(kind), headers, view, hidden, after, &turn->got->arena,
                      &turn->channel->scratch, changes);
}

static int interpret_map(const struct turn *turn, sbx_effect *effect)
{
    sbx_bytes payload = effect->data;
    effect->data = (sbx_bytes){NULL, 0};
    if (!(effect->flags & SBX_MODIFIED))
        return SBX_OK;
    struct map after;
    sbx_changes found, *changes;
    arena_reset(&turn->channel->scratch);
    int status = pairs_decode(payload, &turn->channel->scratch, &after);
    if (status)
        return status;
    if (!find_changes(turn, effect->kind, after, &found) ||
        !write_headers(policy_of(turn), section_of(effect->kind), &found, &turn->got->arena, &turn->got->refusals))
        return SBX_NO_MEMORY;
    if (!found.removed_count && !found.set_count && !found.added_count)
        return SBX_OK;
    if (!(changes = arena_alloc(&turn->got->arena, sizeof *changes)))
        return SBX_NO_MEMORY;
    *changes = found;
    effect->changes = changes;
    return SBX_OK;
}

bool refuse_effect(const struct turn *turn, sbx_effect *effect, enum sbx_reason reason, sbx_bytes word)
{
    effect->refused = reason;
    turn->got->refusals.arena = &turn->got->arena;
    return refuse(&turn->got->refusals, reason, word);
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

/* Reads the payload; SBX_BROKEN: it is malformed. */
static int read_local(sbx_bytes payload, struct arena *arena, sbx_local_response *local)
{
    if (payload.len < LOCAL_HEAD)
        return SBX_BROKEN;
    const uint8_t *at = payload.data;
    uint64_t details = get_u32(at + 8), headers = get_u32(at + 12), body = get_u32(at + 16);
    uint32_t flags = get_u32(at + 20);
    if (LOCAL_HEAD + details + headers + body != payload.len || flags > 1)
        return SBX_BROKEN;
    struct map map;
    int status = pairs_decode((sbx_bytes){at + LOCAL_HEAD + details, headers}, arena, &map);
    if (status)
        return status;
    *local = (sbx_local_response){
        .status = get_u32(at),
        .grpc_status = (int32_t)get_u32(at + 4),
        .already_begun = flags,
        .details = {at + LOCAL_HEAD, details},
        .headers = map.entries,
        .header_count = map.count,
        .body = {at + LOCAL_HEAD + details + headers, body},
    };
    return SBX_OK;
}

static int interpret_local(const struct turn *turn, sbx_effect *effect)
{
    sbx_bytes payload = effect->data;
    effect->data = (sbx_bytes){NULL, 0};
    sbx_local_response *local = arena_alloc(&turn->got->arena, sizeof *local);
    if (!local)
        return SBX_NO_MEMORY;
    int status = read_local(payload, &turn->got->arena, local);
    if (!status)
        status = write_local_response(policy_of(turn), local, &turn->got->arena, &turn->got->refusals);
    if (status == SBX_REFUSED) {
        effect->refused = SBX_DENIED_BY_POLICY;
        return SBX_OK;
    }
    effect->local = local;
    return status;
}

static int interpret_property(struct turn *turn, sbx_effect *effect)
{
    struct map map;
    sbx_bytes payload = effect->data;
    effect->data = (sbx_bytes){NULL, 0};
    int status = pairs_decode(payload, &turn->got->arena, &map);
    if (!status && map.count != 1)
        status = SBX_BROKEN;
    if (status)
        return status;
    effect->property = map.entries[0];
    enum sbx_reason reason = write_property(policy_of(turn), effect->property.name, effect->property.value);
    if (!reason && ++turn->properties > MAX_WRITTEN_PROPERTIES)
        reason = SBX_TOO_MANY;
    return !reason || refuse_effect(turn, effect, reason, LITERAL("property")) ? SBX_OK : SBX_NO_MEMORY;
}

static bool refuse_data(const void *from, enum sbx_reason reason)
{
    const struct turn *turn = from;
    turn->got->refusals.arena = &turn->got->arena;
    return refuse(&turn->got->refusals, reason, LITERAL("data"));
}

static int interpret_tcp(struct turn *turn, sbx_effect *effect)
{
    struct tcp_turn given = {policy_of(turn), turn->late, refuse_data, turn};
    if (effect->kind == SBX_PROPERTY_SET)
        return interpret_property(turn, effect);
    return tcp_effect(&given, turn->stream, effect);
}

static int interpret_trailers(const struct turn *turn, sbx_effect *effect, sbx_effect *rest)
{
    return rest_of_body(turn, effect, rest) ? interpret_map(turn, effect) : SBX_NO_MEMORY;
}

static int interpret_effect(struct turn *turn, sbx_effect *effect, sbx_effect *rest)
{
    uint64_t before = turn->got->arena.total + turn->got->refusals.count * RECORD_OVERHEAD_BYTES;
    int status = SBX_OK;
    *rest = (sbx_effect){0};
    if (!turn->stream->tcp && !may_end(turn->stream, effect->kind))
        effect->flags &= ~(uint32_t)SBX_END_OF_STREAM;
    if (turn->stream->tcp)
        status = interpret_tcp(turn, effect);
    else if (is_trailers_kind(effect->kind))
        status = interpret_trailers(turn, effect, rest);
    else if (is_map_kind(effect->kind))
        status = interpret_map(turn, effect);
    else if (is_body_kind(effect->kind))
        status = interpret_body(turn, effect);
    else if (effect->kind == SBX_LOCAL_RESPONSE)
        status = interpret_local(turn, effect);
    else if (effect->kind == SBX_PROPERTY_SET)
        status = interpret_property(turn, effect);
    uint64_t after = turn->got->arena.total + turn->got->refusals.count * RECORD_OVERHEAD_BYTES;
    if (!status && !charge(turn->got, 0, after - before))
        status = SBX_BROKEN; /* many times what was told once */
    return status;
}

/* The stream of an effect; NULL: it is over, or its map went on before, or trailers before all of the body is decided. */
static sbx_stream *stream_of(sbx_channel *channel, const sbx_effect *effect)
{
    sbx_stream *stream = sbx_stream_find(channel, effect->stream_id);
    if (stream && is_trailers_kind(effect->kind) && !may_end(stream, effect->kind))
        stream = NULL;
    if (stream && !stream->lost && is_map_kind(effect->kind)) {
        struct snapshot *snapshot = &stream->maps[section_of(effect->kind)];
        if (!snapshot->went_on) {
            snapshot->went_on = true;
            return stream;
        }
        stream = NULL; /* comparing maps costs time: once for each that was submitted */
    }
    if (stream && (stream->lost || tcp_over(stream)))
        stream = NULL;
    if (!stream)
        channel->dropped++;
    return stream;
}

static void tell_late(const struct turn *turn, const sbx_effect *rest, const sbx_effect *effect)
{
    const sbx_hooks *hooks = &turn->channel->hooks;
    if (rest->kind && hooks->late)
        hooks->late(hooks->user, turn->stream, rest);
    if (hooks->late)
        hooks->late(hooks->user, turn->stream, effect);
}

int interpret_loose(sbx_channel *channel, const sbx_effect *effect)
{
    sbx_effect made = *effect, rest;
    sbx_stream *stream = stream_of(channel, effect);
    if (!stream)
        return SBX_OK;
    struct turn turn = {channel, stream, &channel->loose, stream->late_properties, true};
    int status = interpret_effect(&turn, &made, &rest);
    stream->late_properties = turn.properties;
    if (!status)
        tell_late(&turn, &rest, &made);
    return status;
}

/* Puts an effect in front of the i-th. */
static bool insert(struct collected *got, size_t i, const sbx_effect *effect)
{
    if (!grow((void **)&got->effects, got->effect_count, &got->effect_capacity, sizeof *got->effects))
        return false;
    memmove(got->effects + i + 1, got->effects + i, (got->effect_count++ - i) * sizeof *got->effects);
    got->effects[i] = *effect;
    return true;
}

/* Sorts effects: the event's own stay, those on other streams are handed out at once. */
static int interpret_effects(struct turn *turn, uint64_t own_stream_id)
{
    struct collected *got = turn->got;
    size_t kept = 0;
    for (size_t i = 0; i < got->effect_count; i++) {
        sbx_effect effect = got->effects[i], rest;
        bool own = effect.stream_id == own_stream_id;
        turn->stream = stream_of(turn->channel, &effect);
        if (!turn->stream)
            continue;
        turn->late = !own;
        int status = interpret_effect(turn, &effect, &rest);
        if (status)
            return status;
        if (own && rest.kind && !insert(got, kept++, &rest))
            return SBX_NO_MEMORY;
        i += own && rest.kind;
        if (own && turn->stream->tcp && effect.kind != SBX_PROPERTY_SET)
            continue; /* sbx_connection_take says what came of it */
        if (own)
            got->effects[kept++] = effect;
        else
            tell_late(turn, &rest, &effect);
    }
    got->effect_count = kept;
    return SBX_OK;
}

int interpret(sbx_channel *channel, sbx_event *event)
{
    struct collected *got = &event->got;
    struct turn turn = {.channel = channel, .got = got};
    sbx_stream *stream = sbx_stream_find(channel, event->stream_id);
    if (stream && is_body_kind(event->kind) && keeps_body(channel->policy, event->kind))
        side_of(stream, event->kind)->undecided -= event->body_len;
    if (event->deaf)
        return interpret_effects(&turn, event->stream_id);
    if (stream && event->connection && event->kind != SUBMIT_STREAM_CLOSE)
        tcp_verdict(stream, event->verdict.code, event->verdict.state);
    int status = interpret_effects(&turn, event->stream_id);
    if (status)
        return status;
    if (!event->owned && channel->hooks.notice)
        for (size_t i = 0; i < got->notice_count; i++)
            channel->hooks.notice(channel->hooks.user, &got->notices[i]);
    event->verdict.effects = got->effects;
    event->verdict.effect_count = got->effect_count;
    event->verdict.notices = got->notices;
    event->verdict.notice_count = got->notice_count;
    event->verdict.refusals = got->refusals.list;
    event->verdict.refusal_count = got->refusals.count;
    return SBX_OK;
}
