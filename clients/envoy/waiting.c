/* Who waits for what, and how Envoy is asked to look after a filter outside its hooks. */
#include "module.h"

bool has_scheduler(struct filter *filter)
{
    if (!filter->scheduler)
        filter->scheduler = ENVOY_CALL(http_filter_scheduler_new)(filter->envoy);
    return filter->scheduler != NULL;
}

/* Outside any hook Envoy is to look after the filter again. */
void schedule(struct filter *filter)
{
    if (!has_scheduler(filter) || filter->scheduled)
        return;
    filter->scheduled = true;
    ENVOY_CALL(http_filter_scheduler_commit)(filter->scheduler, 0);
}

static void append(struct waiting *list, struct filter *filter)
{
    filter->next_waiting = NULL;
    filter->prev_waiting = list->last;
    *(list->last ? &list->last->next_waiting : &list->first) = filter;
    list->last = filter;
}

void wait_for_lane(struct filter *filter)
{
    struct worker *worker = filter->lane->link->worker;
    if (!filter->waits_for_lane && has_scheduler(filter)) {
        pthread_mutex_lock(&worker->lock);
        filter->waits_for_lane = true;
        append(&filter->lane->waiting, filter);
        pthread_mutex_unlock(&worker->lock);
    }
    lane_touched(filter->lane);
}

void wait_for_link(struct filter *filter)
{
    struct worker *worker = filter->link->worker;
    if (filter->waits_for_link || !has_scheduler(filter))
        return;
    pthread_mutex_lock(&worker->lock);
    filter->waits_for_link = true;
    append(&filter->link->waiting, filter);
    pthread_mutex_unlock(&worker->lock);
}

static void remove_from(struct waiting *list, struct filter **woken, struct filter *filter)
{
    *(filter->prev_waiting ? &filter->prev_waiting->next_waiting : &list->first) = filter->next_waiting;
    *(filter->next_waiting ? &filter->next_waiting->prev_waiting : &list->last) = filter->prev_waiting;
    if (*woken != filter)
        return;
    /* It was to look after the others too. */
    *woken = list->first;
    if (list->first)
        ENVOY_CALL(http_filter_scheduler_commit)(list->first->scheduler, 0);
}

void stop_waiting(struct filter *filter)
{
    if (!filter->waits_for_lane && !filter->waits_for_link)
        return;
    struct worker *worker = filter->link->worker;
    pthread_mutex_lock(&worker->lock);
    if (filter->waits_for_lane)
        remove_from(&filter->lane->waiting, &filter->lane->woken, filter);
    if (filter->waits_for_link)
        remove_from(&filter->link->waiting, &filter->link->woken, filter);
    filter->waits_for_lane = filter->waits_for_link = false;
    pthread_mutex_unlock(&worker->lock);
}
