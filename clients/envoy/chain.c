/*
 * Filters of this module in one chain of Envoy's.
 *
 * Envoy remembers for the whole chain whether a request or response has ended, and a filter that goes on outside its hooks
 * tells the later ones so, even if an earlier one still holds the end. So a filter that waits goes on by itself only if it has
 * seen the end too, or nobody has; else the earlier one brings it the rest, in a hook.
 *
 * They find each other by Envoy's filter state: a pointer and a number. The memory of a chain is used again and never given
 * back while its thread lives, so that a stale pointer is told by the number. Most filters are alone and need not look:
 * Envoy makes all filters of a chain one after the other, and runs none in between.
 */
#include "module.h"

#include <stdlib.h>
#include <string.h>

struct chain {
    struct chain *next; /* of those that are free */
    uint64_t id;
    unsigned filters;
    bool ended[2];
    const struct filter *keeper[2]; /* has bytes in Envoy's buffer, since its headers have not gone; NULL: none */
};

struct reference {
    struct chain *chain;
    uint64_t id;
};

static const struct envoy_bytes key = {"sandboxd.chain", sizeof "sandboxd.chain" - 1};
static _Thread_local struct filter *newest; /* no filter of this thread has run since it was made; NULL: one has */

void chain_made(struct filter *filter)
{
    if (newest)
        newest->has_neighbours = filter->has_neighbours = true;
    newest = filter;
}

void chain_runs(void)
{
    newest = NULL;
}

static struct chain *find(const struct filter *filter)
{
    struct reference found;
    struct envoy_bytes value = {NULL, 0};
    if (!ENVOY_CALL(http_get_filter_state_bytes)(filter->envoy, key, &value) || value.len != sizeof found)
        return NULL;
    memcpy(&found, value.at, sizeof found);
    return found.chain->id == found.id ? found.chain : NULL;
}

static struct chain *begin_chain(struct filter *filter, struct worker *worker)
{
    struct chain *chain = worker->free_chains ? worker->free_chains : calloc(1, sizeof *chain);
    if (!chain)
        return NULL;
    worker->free_chains = chain->next;
    *chain = (struct chain){.id = chain->id + 1};
    struct reference reference = {chain, chain->id};
    struct envoy_bytes value = {(const char *)&reference, sizeof reference};
    if (!ENVOY_CALL(http_set_filter_state_bytes)(filter->envoy, key, value)) {
        chain->next = worker->free_chains;
        worker->free_chains = chain;
        return NULL;
    }
    return chain;
}

void chain_join(struct filter *filter)
{
    if (!filter->has_neighbours)
        return;
    filter->chain = find(filter);
    if (!filter->chain)
        filter->chain = begin_chain(filter, filter->link->worker);
    if (filter->chain)
        filter->chain->filters++;
}

void chain_leave(struct filter *filter)
{
    struct chain *chain = filter->chain;
    if (!chain)
        return;
    for (int direction = REQUEST; direction <= RESPONSE; direction++)
        chain_keeps(filter, direction, false);
    filter->chain = NULL;
    if (--chain->filters)
        return;
    chain->id++;
    chain->next = filter->link->worker->free_chains;
    filter->link->worker->free_chains = chain;
}

void chains_free(struct worker *worker)
{
    for (struct chain *chain = worker->free_chains, *next; chain; chain = next) {
        next = chain->next;
        free(chain);
    }
}

void chain_ends(const struct filter *filter, enum direction direction)
{
    if (filter->chain)
        filter->chain->ended[direction] = true;
}

bool chain_has_more(const struct filter *filter, enum direction direction)
{
    const struct way *way = &filter->ways[direction];
    return filter->chain && filter->chain->ended[direction] && !way->ending && !way->has_trailers;
}

void chain_keeps(const struct filter *filter, enum direction direction, bool keeps)
{
    struct chain *chain = filter->chain;
    if (chain && (keeps || chain->keeper[direction] == filter))
        chain->keeper[direction] = keeps ? filter : NULL;
}

bool chain_has_keeper(const struct filter *filter, enum direction direction)
{
    return filter->chain && filter->chain->keeper[direction];
}
