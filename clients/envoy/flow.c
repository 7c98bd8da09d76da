/* The course of an exchange: events go to the plugin, verdicts come back, and Envoy goes on or waits. */
#include "module.h"

/* Applies a verdict. Returns why the exchange fails, or NO_FAILURE. */
static int conclude_verdict(struct filter *filter, enum direction direction, enum sbx_kind kind, const sbx_verdict *verdict)
{
    struct way *way = &filter->ways[direction];
    uint32_t stopped = direction == REQUEST ? SBX_REQUEST_ALL_STOPPED : SBX_RESPONSE_ALL_STOPPED;
    bool is_body = kind == SBX_REQUEST_BODY || kind == SBX_RESPONSE_BODY;
    bool told = is_body && hears_of_body(filter, direction);
    if (told)
        way->held += way->submitted;
    way->shown = way->shown || is_body;
    for (size_t i = 0; i < verdict->effect_count; i++)
        take_effect(filter, &verdict->effects[i]);
    /* Nothing but a hostile worker holds a body that its plugin has no callback for. */
    if (is_body && !told && way->shown && !filter->local && !filter->local_refused && !filter->close)
        return SBX_CAUSE_PROTOCOL;
    for (size_t i = 0; i < verdict->notice_count; i++)
        take_notice(filter->lane, &verdict->notices[i]);
    for (size_t i = 0; i < verdict->refusal_count; i++)
        count(filter, COUNT_REFUSED);
    way->all_stopped = (verdict->state & stopped) != 0;
    if (is_body && !way->same) {
        body_drop(filter, direction, way->submitted);
        way->submitted = 0;
    }
    return NO_FAILURE;
}

static int conclude_event(struct filter *filter, enum direction direction, const sbx_event *event, int status)
{
    const sbx_verdict *verdict = sbx_event_verdict(event);
    if (status != SBX_OK || !verdict)
        return (int)event_cause(filter, status);
    switch (verdict->code) {
    case SBX_VERDICT_LIMIT: return SBX_CAUSE_LIMIT;
    case SBX_VERDICT_UNKNOWN_STREAM: return SBX_CAUSE_TRAP;
    case SBX_VERDICT_OUT_OF_ORDER: return SBX_CAUSE_PROTOCOL;
    default: return conclude_verdict(filter, direction, sbx_event_kind(event), verdict);
    }
}

/* The event ended. Its memory goes with it, before Envoy is told of a failure and may end all that it belongs to. */
static void conclude(struct filter *filter, enum direction direction, sbx_event *event, int status)
{
    struct way *way = &filter->ways[direction];
    int failure;
    way->event = NULL;
    if (!way->concluded)
        failure = conclude_event(filter, direction, event, status);
    else
        failure = --way->concluded ? NO_FAILURE : way->failure;
    sbx_event_free(event);
    if (failure != NO_FAILURE)
        exchange_fail(filter, direction, (enum sbx_cause)failure);
}

static bool is_failing(const struct way *way)
{
    return way->concluded && way->failure != NO_FAILURE;
}

/*
 * Something late is about to be applied. What the VM said before it comes first, though nobody has looked at those events yet.
 * They stay until somebody does, and a failure waits for that as well: this runs in a hook of libsandboxd's.
 */
bool conclude_ended(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    const sbx_event *event, *const events[] = {way->event, way->queued, NULL};
    while (!is_failing(way) && (event = events[way->concluded])) {
        int status = sbx_event_status(event);
        if (status == SBX_AGAIN)
            break;
        way->concluded++;
        way->failure = conclude_event(filter, direction, event, status);
    }
    return !is_failing(way);
}

/* Looks for a verdict for as long as the budget allows; the filter waits if there is none. */
void event_run(struct filter *filter, enum direction direction, sbx_event *event)
{
    filter->ways[direction].event = event; /* before anything late comes behind its verdict */
    int status = sbx_spin(event);
    if (status == SBX_AGAIN) {
        count(filter, COUNT_LATER);
        wait_for_lane(filter);
        return;
    }
    count(filter, COUNT_AT_ONCE);
    conclude(filter, direction, event, status);
    if (filter->lane)
        lane_touched(filter->lane);
}

/* What was let go as it is, but cannot go yet, makes room for what comes behind. */
void set_aside(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    if (!way->same)
        return;
    way->same = false;
    if (!body_let_go(filter, direction, way->submitted))
        filter->close = true;
    way->submitted = 0;
}

/* Whether everything that Envoy showed may go on. */
bool may_go(const struct filter *filter, enum direction direction)
{
    const struct way *way = &filter->ways[direction];
    if (filter->bypass)
        return true;
    if (way->event || !way->headers_go)
        return false;
    if (way->has_trailers)
        return way->trailers_go;
    return !way->ending || way->end_go || way->bodyless;
}

/*
 * Whether there is anything to go on for. While the plugin holds what came of the body so far, and more of it may come, Envoy
 * stays where it is and brings that all the same: outside its hooks it could not be stopped again, and as long as it is not
 * stopped it leaves behind what is put into its buffer.
 */
static bool something_goes(const struct filter *filter, enum direction direction)
{
    const struct way *way = &filter->ways[direction];
    if (way->same || way->out.len || way->ending || way->has_trailers || filter->bypass)
        return true;
    return way->gone ? body_size(filter, direction) > 0 : !way->held;
}

/* Lets Envoy go on in a direction where it waits. Not within a hook of that direction. */
void finish(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    if (filter->over || !way->stopped || !may_go(filter, direction) || !something_goes(filter, direction) ||
        chain_has_more(filter, direction))
        return;
    if (!body_hand_over(filter, direction))
        filter->close = true;
    if (flush(filter))
        return;
    if (direction == REQUEST)
        ENVOY_CALL(http_filter_continue_decoding)(filter->envoy);
    else
        ENVOY_CALL(http_filter_continue_encoding)(filter->envoy);
}

static void open_stream(struct filter *filter)
{
    struct attributes found;
    filter_join(filter, filter->link->lane);
    request_attributes(filter, &found);
    int status = sbx_stream_open(filter->lane->channel, found.pairs, found.count, wall_ns(), filter, &filter->stream);
    if (status != SBX_OK) {
        filter->stream = NULL;
        submission_fail(filter, REQUEST, status);
        return;
    }
    filter->lane->vm_down = false; /* nobody may have looked since it came back */
    submit_headers(filter, REQUEST, filter->ways[REQUEST].bodyless);
}

/* Finds a channel for an exchange that has none. */
void begin(struct filter *filter)
{
    enum link_state state = link_use(filter->link, filter->config);
    if (state == LINK_WAIT && (!filter->wait_until_ns || now_ns() < filter->wait_until_ns)) {
        if (!filter->wait_until_ns)
            filter->wait_until_ns = now_ns() + filter->config->attach_timeout_ns;
        wait_for_link(filter);
        return;
    }
    stop_waiting(filter);
    if (state == LINK_READY)
        open_stream(filter);
    else if (state == LINK_DOWN)
        exchange_fail(filter, REQUEST, SBX_CAUSE_VM_DOWN);
    else if (state == LINK_UNKNOWN)
        exchange_fail(filter, REQUEST, SBX_CAUSE_UNKNOWN_PLUGIN);
    else
        fail_away(filter);
}

static void look_at_event(struct filter *filter, enum direction direction)
{
    struct way *way = &filter->ways[direction];
    while (way->event && !filter->over) {
        sbx_event *event = way->event;
        int status = sbx_event_status(event);
        if (status == SBX_AGAIN)
            return;
        conclude(filter, direction, event, status);
        if (!way->event) {
            way->event = way->queued;
            way->queued = NULL;
        }
    }
}

/* Returns whether it was woken to look after its lane. */
bool forget_wake(struct filter *filter)
{
    struct worker *worker = filter->link->worker;
    struct lane *lane = filter->lane;
    bool looks = lane && lane->looker == filter;
    pthread_mutex_lock(&worker->lock);
    if (filter->link->woken == filter)
        filter->link->woken = NULL;
    if (lane && lane->woken == filter) {
        lane->woken = NULL;
        looks = true;
    }
    pthread_mutex_unlock(&worker->lock);
    return looks;
}

static void wake_others(struct link *link)
{
    for (struct filter *other = link->waiting.first; other; other = other->next_waiting)
        ENVOY_CALL(http_filter_scheduler_commit)(other->scheduler, 0);
}

/* Scheduled, outside any hook: looks at what came meanwhile. */
void resume(struct filter *filter)
{
    if (!filter->link)
        return;
    if (forget_wake(filter))
        lane_look(filter->lane, filter);
    if (filter->over)
        return; /* it was woken for the others */
    if (!filter->lane && !filter->bypass && filter->ways[REQUEST].has_headers) {
        begin(filter);
        if (!filter->waits_for_link)
            wake_others(filter->link);
    }
    look_at_event(filter, REQUEST);
    look_at_event(filter, RESPONSE);
    advance(filter, REQUEST);
    advance(filter, RESPONSE);
    orphan_check(filter);
    pause_check(filter);
    if (!flush(filter))
        finish(filter, REQUEST);
    if (!filter->gone)
        finish(filter, RESPONSE);
    pause_watch(filter);
}
