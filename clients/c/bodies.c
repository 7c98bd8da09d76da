/* Bodies that a plugin lets go. The bytes are its own only if it may write them, and can read what they take the place of. */
#include "verdict.h"

/* Takes what the VM has answered for. False: no memory. */
static bool take_kept(const struct turn *turn, struct body_side *side, sbx_bytes *taken)
{
    struct held *kept = &side->kept;
    size_t len = kept->len - side->undecided;
    *taken = (sbx_bytes){kept->data, len};
    if (!len)
        return true;
    if (!arena_copy(&turn->got->arena, taken))
        return false;
    if (side->undecided)
        memmove(kept->data, kept->data + len, side->undecided);
    kept->len = side->undecided;
    return true;
}

/*
 * The plugin may not write the body, or cannot read it: whatever bytes it names, those that were submitted go on, and all of
 * them that it was shown. An honest VM lets go all that it holds.
 */
static int only_as_submitted(const struct turn *turn, sbx_effect *effect)
{
    struct body_side *side = side_of(turn->stream, effect->kind);
    bool as_submitted = effect->flags & SBX_AS_SUBMITTED;
    sbx_bytes claimed = as_submitted ? (sbx_bytes){NULL, 0} : effect->data;
    size_t len = side->kept.len - side->undecided;
    if (as_submitted && len == effect->data.len && !side->undecided) {
        side->kept.len = 0;
        return SBX_OK;
    }
    bool same = as_submitted ? len == effect->data.len : equal(claimed, (sbx_bytes){side->kept.data, len});
    if (!take_kept(turn, side, &effect->data))
        return SBX_NO_MEMORY;
    effect->flags &= ~(uint32_t)SBX_AS_SUBMITTED;
    if (same || !needed(policy_of(turn), effect->kind))
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
    struct body_side *side = side_of(turn->stream, trailers->kind);
    if (!side->kept.len)
        return true;
    rest->kind = trailers->kind == SBX_RESPONSE_TRAILERS ? SBX_RESPONSE_BODY : SBX_REQUEST_BODY;
    rest->stream_id = trailers->stream_id;
    return take_kept(turn, side, &rest->data);
}

bool may_end(const sbx_stream *stream, unsigned kind)
{
    const struct body_side *side = is_of_response(kind) ? &stream->response : &stream->request;
    return side->over && !side->undecided;
}
