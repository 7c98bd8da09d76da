/* Waiting for verdicts: a bounded look at the ring, then sleep on the eventfd. */
#include "internal.h"

#include <poll.h>
#include <time.h>

#define LOOKS 64u /* at the ring between two looks at the clock */
#define RETRY_SPINS 16u
#define MIN_SPIN_NS 1000u
#define ROUNDS 16u /* of sbx_arm, with a VM that always has something */
#define OVERDUE_NS 1000000000ull

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int told(sbx_event *event)
{
    event_told(event);
    return event->status;
}

/* Events whose time is over end here; a VM that is silent for long is taken for hung. */
static void expire(sbx_channel *channel, uint64_t now_ns)
{
    uint64_t limit_ns = channel->policy->limits.time_per_event_ns;
    for (sbx_event *event = channel->outstanding.first; event; event = event->next) {
        uint64_t age_ns = now_ns - event->submitted_ns;
        if (age_ns < limit_ns || age_ns > UINT64_MAX / 2)
            return;
        if (age_ns - limit_ns > OVERDUE_NS) {
            channel_break(channel, SBX_BROKEN, "no verdict on an event after %llu ms",
                          (unsigned long long)(age_ns / 1000000));
            return;
        }
        event_end(event, SBX_TIMEOUT);
    }
}

/* With few CPUs, looking takes the one that other streams need; alone, there is nobody to take it from. */
static uint64_t spin_budget_ns(const sbx_channel *channel)
{
    return channel->many_cpus || !channel->crowd ? channel->spin_now_ns : 0;
}

/* By and by, so that a busy machine, on which looking pays now and then, is not looked at for the whole time each time. */
static void spin_paid(sbx_channel *channel)
{
    uint64_t more_ns = 2 * channel->spin_now_ns + MIN_SPIN_NS;
    channel->spin_now_ns = more_ns < channel->spin_ns ? more_ns : channel->spin_ns;
}

int sbx_spin(sbx_event *event)
{
    sbx_channel *channel = event->channel;
    if (event->status != SBX_AGAIN)
        return told(event);
    ring_awake(&channel->ring);
    uint64_t budget_ns = spin_budget_ns(channel);
    if (!budget_ns) {
        if (ring_has_records(&channel->ring))
            channel_drain(channel);
        return event->status == SBX_AGAIN ? SBX_AGAIN : told(event);
    }
    ring_call(&channel->ring);
    uint64_t begin_ns = monotonic_ns();
    do {
        for (unsigned i = 0; i < LOOKS; i++) {
            if (ring_has_records(&channel->ring)) {
                channel_drain(channel);
                if (event->status != SBX_AGAIN) {
                    spin_paid(channel);
                    return told(event);
                }
                break; /* that may have taken its time */
            }
            pause_cpu();
        }
    } while (monotonic_ns() - begin_ns < budget_ns);
    /* In vain: spend less next time, so that a slow VM does not cost a core; but now and then look for the whole time
       again, else one slow phase would end it for good. */
    channel->spin_now_ns = ++channel->vain_spins % RETRY_SPINS ? channel->spin_now_ns / 2 : channel->spin_ns;
    return SBX_AGAIN;
}

/* Sleeps until the VM or the daemon has news, or `until_ns`. */
static void sleep_until(sbx_channel *channel, uint64_t now_ns, uint64_t until_ns)
{
    struct pollfd fds[2] = {
        {.fd = channel->ring.client_event_fd, .events = POLLIN},
        {.fd = channel->socket, .events = POLLIN}, /* -1 is skipped */
    };
    uint64_t left_ns = until_ns - now_ns;
    struct timespec timeout = {(time_t)(left_ns / 1000000000u), (long)(left_ns % 1000000000u)};
    int ready = ppoll(fds, 2, &timeout, NULL);
    ring_awake(&channel->ring);
    ring_clear_event(&channel->ring);
    if (ready > 0 && fds[1].revents)
        sbx_channel_check(channel, NULL);
}

static void sleep_once(sbx_channel *channel, uint64_t until_ns, bool *late)
{
    uint64_t now_ns = monotonic_ns();
    *late = now_ns >= until_ns;
    if (*late)
        return;
    switch (ring_prepare_sleep(&channel->ring)) {
    case SBX_OK: {
        /* Set before need_wake was, or followed by a write to the eventfd. */
        uint32_t state = ring_load(&channel->ring, AT_VM_STATE);
        if (state != VM_FAILED && state != VM_GONE)
            sleep_until(channel, now_ns, until_ns);
        else
            ring_awake(&channel->ring);
        break;
    }
    case SBX_BROKEN:
        channel_break(channel, SBX_BROKEN, "consumer's position does not fit the producer's");
        return;
    default:
        break;
    }
    channel_drain(channel);
}

int sbx_wait(sbx_event *event, uint64_t timeout_ns)
{
    sbx_channel *channel = event->channel;
    if (sbx_spin(event) != SBX_AGAIN)
        return event->status;
    uint64_t until_ns = timeout_ns ? monotonic_ns() + timeout_ns
                                   : event->submitted_ns + channel->policy->limits.time_per_event_ns;
    bool late = false;
    while (event->status == SBX_AGAIN && !late)
        sleep_once(channel, until_ns, &late);
    if (event->status == SBX_AGAIN) {
        event_end(event, SBX_TIMEOUT);
        expire(channel, monotonic_ns());
    }
    return told(event);
}

int sbx_next(sbx_channel *channel, sbx_event **event)
{
    *event = NULL;
    ring_call(&channel->ring);
    if (!channel->done.first && !channel_drain(channel) && channel->outstanding.first)
        expire(channel, monotonic_ns());
    sbx_event *first = channel->done.first;
    if (!first)
        return SBX_AGAIN;
    event_told(first);
    *event = first;
    return SBX_OK;
}

int sbx_arm(sbx_channel *channel)
{
    ring_clear_event(&channel->ring);
    return sbx_arm_edge(channel);
}

int sbx_arm_edge(sbx_channel *channel)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        if (channel->done.first)
            return SBX_AGAIN;
        if (channel->dead)
            return channel->dead;
        int status = ring_prepare_sleep(&channel->ring);
        if (status == SBX_BROKEN) {
            channel_break(channel, SBX_BROKEN, "consumer's position does not fit the producer's");
            continue; /* the events that end with it are told first */
        }
        if (status == SBX_OK && channel->outstanding.first) {
            uint32_t state = ring_load(&channel->ring, AT_VM_STATE);
            if (state == VM_FAILED || state == VM_GONE)
                channel_drain(channel); /* which loses them */
        }
        if (status == SBX_OK && !channel->done.first)
            return channel->dead ? channel->dead : SBX_OK;
        ring_awake(&channel->ring);
        channel_drain(channel);
    }
    /* It must not keep the caller's thread: come back after the others had their turn. */
    ring_raise_event(&channel->ring);
    return SBX_OK;
}

uint64_t sbx_next_deadline_ns(const sbx_channel *channel)
{
    uint64_t limit_ns = channel->policy->limits.time_per_event_ns, earliest_ns = 0;
    for (const sbx_event *event = channel->outstanding.first; event; event = event->next) {
        bool waits = event->owned && event->status == SBX_AGAIN;
        uint64_t at_ns = event->submitted_ns + limit_ns + (waits ? 0 : OVERDUE_NS + 1);
        if (!earliest_ns || at_ns < earliest_ns)
            earliest_ns = at_ns;
        if (waits)
            break; /* all others are younger */
    }
    return earliest_ns;
}
