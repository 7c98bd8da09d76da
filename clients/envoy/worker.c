/* What one of Envoy's worker threads keeps, and its links to plugins. */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FIRST_RETRY_MS = 10, LAST_RETRY_MS = 1000 };

static _Thread_local struct worker *mine;
static pthread_key_t at_exit_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

uint64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t wall_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

static void worker_end(void *argument)
{
    struct worker *worker = argument;
    waiter_stop(worker);
    while (worker->links) {
        struct link *link = worker->links;
        while (link->lanes)
            lane_free(link->lanes);
        if (link->attachment)
            sbx_attach_cancel(link->attachment);
        if (link->policy)
            sbx_policy_release(link->policy);
        worker->links = link->next;
        free(link);
    }
    chains_free(worker);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
}

static void make_key(void)
{
    (void)pthread_key_create(&at_exit_key, worker_end);
}

static struct worker *worker_of_thread(void)
{
    if (mine)
        return mine;
    pthread_once(&once, make_key);
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker)
        return NULL;
    pthread_mutex_init(&worker->lock, NULL);
    if (!waiter_start(worker)) {
        free(worker);
        return NULL;
    }
    pthread_setspecific(at_exit_key, worker);
    mine = worker;
    return worker;
}

struct link *link_of(const struct config *config, const struct target *target)
{
    struct worker *worker = worker_of_thread();
    if (!worker)
        return NULL;
    for (struct link *link = worker->links; link; link = link->next) {
        if (!strcmp(link->target.plugin, target->plugin) && !strcmp(link->target.tenant, target->tenant) &&
            !strcmp(link->path, config->socket) && link->daemon_uid == config->daemon_uid)
            return link;
    }
    struct link *link = calloc(1, sizeof *link);
    if (!link)
        return NULL;
    link->worker = worker;
    link->target = *target;
    memcpy(link->path, config->socket, sizeof link->path);
    link->daemon_uid = config->daemon_uid;
    link->asked = attributes_asked(link);
    if (!link->asked) {
        free(link);
        return NULL;
    }
    pthread_mutex_lock(&worker->lock);
    link->next = worker->links;
    worker->links = link;
    pthread_mutex_unlock(&worker->lock);
    return link;
}

static void say(const struct link *link, const char *what, const char *why)
{
    char text[700];
    int len = snprintf(text, sizeof text, "sandboxd: %s/%s: %s%s%s", link->target.tenant, link->target.plugin, what,
                       why[0] ? ": " : "", why);
    size_t shown = len < 0 ? 0 : (size_t)len < sizeof text ? (size_t)len : sizeof text - 1;
    ENVOY_CALL(log)(ENVOY_LOG_WARNING, (struct envoy_bytes){text, shown});
}

static void keep_policy(struct link *link, sbx_policy *policy)
{
    if (!policy || policy == link->policy)
        return;
    if (link->policy)
        sbx_policy_release(link->policy);
    link->policy = sbx_policy_keep(policy);
}

static void try_later(struct link *link, uint64_t now)
{
    link->backoff_ns = link->backoff_ns ? link->backoff_ns * 2 : FIRST_RETRY_MS * MS_NS;
    if (link->backoff_ns > LAST_RETRY_MS * MS_NS)
        link->backoff_ns = LAST_RETRY_MS * MS_NS;
    link->retry_ns = now + link->backoff_ns;
}

static void link_step(struct link *link, const struct config *config)
{
    sbx_channel *channel = NULL;
    sbx_error error = {0};
    int fd = sbx_attachment_fd(link->attachment);
    int status = sbx_attach_step(link->attachment, &channel, &error);
    if (status == SBX_AGAIN) {
        sbx_policy *policy = sbx_attachment_policy(link->attachment);
        if (policy && !link->down)
            say(link, "is down", sbx_attachment_reason(link->attachment));
        link->down = policy != NULL;
        keep_policy(link, policy);
        waiter_watch(link->worker, fd, link->id, false);
        return;
    }
    link->attachment = NULL;
    link->id = 0;
    if (status == SBX_OK) {
        keep_policy(link, sbx_channel_policy(channel));
        lane_new(link, channel, config);
        return;
    }
    link->down = false;
    link->unknown = status == SBX_REFUSED && error.code == SBX_REFUSED_UNKNOWN;
    say(link, "no channel", error.text);
    try_later(link, now_ns());
}

static bool link_begin(struct link *link, uint64_t now)
{
    sbx_attach_options options = {
        .socket_path = link->path,
        .tenant = link->target.tenant,
        .plugin = link->target.plugin,
        .daemon_uid = link->daemon_uid,
    };
    sbx_error error = {0};
    if (now < link->retry_ns)
        return false;
    if (sbx_attach_begin(&options, &link->attachment, &error) != SBX_OK) {
        link->attachment = NULL;
        if (!link->backoff_ns)
            say(link, "the daemon is away", error.text);
        try_later(link, now);
        return false;
    }
    link->id = link->worker->ids += ID_STEP;
    waiter_watch(link->worker, sbx_attachment_fd(link->attachment), link->id, true);
    return true;
}

enum link_state link_use(struct link *link, const struct config *config)
{
    if (link->lane && atomic_load_explicit(&link->lane->news, memory_order_relaxed)) {
        lane_news(link->lane);
        lanes_free_unused(link);
    }
    if (link->lane && *sbx_channel_reason(link->lane->channel)) {
        say(link, "the channel is lost", sbx_channel_reason(link->lane->channel));
        link->lane->dead = true;
        link->lane = NULL;
        lanes_free_unused(link);
    }
    if (link->lane)
        return LINK_READY;
    if (!link->attachment && !link_begin(link, now_ns()))
        return link->unknown ? LINK_UNKNOWN : LINK_AWAY;
    link_step(link, config);
    if (link->lane)
        return LINK_READY;
    if (!link->attachment)
        return link->unknown ? LINK_UNKNOWN : LINK_AWAY;
    return link->down ? LINK_DOWN : LINK_WAIT;
}
