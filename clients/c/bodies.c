/* Bodies that a plugin lets go. The bytes are its own only if it may write them, and can read what they take the place of. */
#include "verdict.h"

/* Takes bytes of a body that was kept, from its beginning. False: no memory. */
static bool take_kept(const struct turn *turn, struct held *held, size_t len, sbx_bytes *taken)
{
    *taken = (sbx_bytes){held->data, len};
    if (!arena_copy(&turn->got->arena, taken))
        return false;
    if (len)
        memmove(held->data, held->data + len, held->len - len);
    held->len -= len;
    return true;
}

/* The plugin may not write the body, or cannot read it: whatever bytes it names, those that were submitted go on. */
static int only_as_submitted(const struct turn *turn, sbx_effect *effect)
{
    struct held *held = &turn->stream->held[effect->kind == SBX_RESPONSE_BODY];
    bool as_submitted = effect->flags & SBX_AS_SUBMITTED;
    size_t len = effect->data.len;
    if (effect->flags & SBX_END_OF_STREAM || len > held->len)
        len = held->len;
    if (as_submitted && len == held->len && len == effect->data.len) {
        held->len = 0;
        return SBX_OK;
    }
    sbx_bytes claimed = as_submitted ? (sbx_bytes){NULL, 0} : effect->data, submitted = {held->data, len};
    bool same = !needed(policy_of(turn), effect->kind) ||
                (as_submitted ? len == effect->data.len : equal(claimed, submitted));
    if (!take_kept(turn, held, len, &effect->data))
        return SBX_NO_MEMORY;
    effect->flags &= ~(uint32_t)SBX_AS_SUBMITTED;
    if (same)
        return SBX_OK;
    turn->got->refusals.arena = &turn->got->arena;
    return refuse(&turn->got->refusals, SBX_DENIED_BY_POLICY, LITERAL("body")) ? SBX_OK : SBX_NO_MEMORY;
}

int interpret_body(const struct turn *turn, sbx_effect *effect)
{
    static const sbx_bytes word = LITERAL_INIT("body");
    if (!hears_body(policy_of(turn), effect->kind)) {
        /* The VM was told of nothing: whatever it says stands for the caller's own body. */
        effect->data = (sbx_bytes){NULL, 0};
        effect->flags |= SBX_AS_SUBMITTED;
        return SBX_OK;
    }
    if (keeps_body(policy_of(turn), effect->kind))
        return only_as_submitted(turn, effect);
    enum sbx_reason reason = SBX_ALLOWED;
    if (!(effect->flags & SBX_AS_SUBMITTED))
        reason = write_body(policy_of(turn), effect->data.len);
    return !reason || refuse_effect(turn, effect, reason, word) ? SBX_OK : SBX_NO_MEMORY;
}

bool rest_of_body(const struct turn *turn, const sbx_effect *trailers, sbx_effect *rest)
{
    bool response = trailers->kind == SBX_RESPONSE_TRAILERS;
    struct held *held = &turn->stream->held[response];
    if (!held->len)
        return true;
    *rest = (sbx_effect){.kind = response ? SBX_RESPONSE_BODY : SBX_REQUEST_BODY, .stream_id = trailers->stream_id};
    return take_kept(turn, held, held->len, &rest->data);
}
