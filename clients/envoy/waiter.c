/* The thread that waits for channels in the place of Envoy's worker thread, and schedules a filter back onto it. */
#include "module.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { TICK_MS = 50, MAX_EVENTS = 16 };

/* Schedules the first filter that waits; the worker thread looks after the others. Under the lock. */
static void wake(struct filter *first, struct filter **woken)
{
    if (!first || *woken)
        return;
    *woken = first;
    ENVOY_CALL(http_filter_scheduler_commit)(first->scheduler, 0);
}

static void told(struct worker *worker, uint64_t id)
{
    for (struct link *link = worker->links; link; link = link->next) {
        if (link->id == id)
            wake(link->waiting.first, &link->woken);
        for (struct lane *lane = link->lanes; lane; lane = lane->next) {
            if (lane->id != (id & ~(uint64_t)LANE_NEWS))
                continue;
            if (id & LANE_NEWS)
                atomic_store(&lane->news, true);
            wake(lane->waiting.first, &lane->woken);
        }
    }
}

static void end_pauses(struct lane *lane, uint64_t now)
{
    for (struct filter *filter = lane->waiting.first; filter; filter = filter->next_waiting) {
        if (!filter->pause_ends_ns || filter->pause_ends_ns > now || filter->pause_over)
            continue;
        filter->pause_over = true;
        ENVOY_CALL(http_filter_scheduler_commit)(filter->scheduler, 0);
    }
}

static void check_deadlines(struct worker *worker)
{
    uint64_t now = now_ns();
    for (struct link *link = worker->links; link; link = link->next) {
        if (link->waiting.first && link->waiting.first->wait_until_ns <= now)
            wake(link->waiting.first, &link->woken);
        for (struct lane *lane = link->lanes; lane; lane = lane->next) {
            if (lane->deadline_ns && lane->deadline_ns <= now)
                wake(lane->waiting.first, &lane->woken);
            end_pauses(lane, now);
        }
    }
}

static void *wait_for_events(void *argument)
{
    struct worker *worker = argument;
    struct epoll_event events[MAX_EVENTS];
    /* Otherwise it has the name of Envoy's worker that made it, and nobody can tell whose CPU time it is. */
    prctl(PR_SET_NAME, "sandboxd:wait");
    for (;;) {
        int found = epoll_wait(worker->epoll, events, MAX_EVENTS, TICK_MS);
        pthread_mutex_lock(&worker->lock);
        bool stop = false;
        for (int i = 0; i < found; i++) {
            stop = stop || events[i].data.u64 == 0;
            told(worker, events[i].data.u64);
        }
        check_deadlines(worker);
        pthread_mutex_unlock(&worker->lock);
        if (stop)
            return NULL;
    }
}

/* Reported each time that it is written to, so that nobody has to read it. */
void waiter_watch_edges(struct worker *worker, int fd, uint64_t id)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = id};
    epoll_ctl(worker->epoll, EPOLL_CTL_ADD, fd, &event);
}

/* Reported once, until it is watched again. */
void waiter_watch(struct worker *worker, int fd, uint64_t id, bool first)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = id};
    /* A channel's socket is that of its attachment, which is in the set already. */
    if (first && !epoll_ctl(worker->epoll, EPOLL_CTL_ADD, fd, &event))
        return;
    epoll_ctl(worker->epoll, EPOLL_CTL_MOD, fd, &event);
}

bool waiter_start(struct worker *worker)
{
    worker->epoll = epoll_create1(EPOLL_CLOEXEC);
    worker->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->epoll >= 0 && worker->stop >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
        if (!epoll_ctl(worker->epoll, EPOLL_CTL_ADD, worker->stop, &event) &&
            !pthread_create(&worker->waiter, NULL, wait_for_events, worker))
            return true;
    }
    if (worker->epoll >= 0)
        close(worker->epoll);
    if (worker->stop >= 0)
        close(worker->stop);
    return false;
}

void waiter_stop(struct worker *worker)
{
    uint64_t one = 1;
    if (write(worker->stop, &one, sizeof one) == (ssize_t)sizeof one)
        pthread_join(worker->waiter, NULL);
    close(worker->epoll);
    close(worker->stop);
}
