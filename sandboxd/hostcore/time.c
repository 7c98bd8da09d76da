/*
 * The guest's clocks. Unless the policy asks for a live clock there is one instant per event: a coarse clock takes the
 * stop-watch away from a guest that would time caches.
 *
 * The monotonic clock is virtual. It never goes back, it follows the events, and it moves by a microsecond with every
 * look, so that loops that wait for it end; a sleep moves it on without sleeping.
 */
#include "hostcore.h"

#define TICK_NS 1000u
#define FAR_FUTURE_NS (1ull << 62)
#define CLOCK_REALTIME 0u
#define CLOCK_MONOTONIC 1u

IMPORT(host, clock_ns) i64 host_clock_ns(i32 clock_id);

STATE static u64 slept_ns; /* what sleeps have added to a live monotonic clock */

u64 clock_now(u32 clock_id)
{
    bool live = vm.config.flags & FLAG_LIVE_CLOCK;
    if (clock_id == CLOCK_REALTIME)
        return live ? (u64)host_clock_ns(CLOCK_REALTIME) : vm.now_ns;
    if (live)
        return (u64)host_clock_ns(CLOCK_MONOTONIC) + slept_ns;
    if (vm.monotonic_ns < vm.now_ns)
        vm.monotonic_ns = vm.now_ns;
    if (vm.monotonic_ns < FAR_FUTURE_NS)
        vm.monotonic_ns += TICK_NS;
    return vm.monotonic_ns;
}

void clock_advance(u64 ns)
{
    if (ns > FAR_FUTURE_NS)
        ns = FAR_FUTURE_NS;
    if (slept_ns < FAR_FUTURE_NS)
        slept_ns += ns;
    if (vm.monotonic_ns < FAR_FUTURE_NS)
        vm.monotonic_ns += ns;
}

u32 EXPORT(proxy_get_current_time_nanoseconds)(u32 time_out)
{
    host_call(IN_CALLBACKS);
    return guest_write_u64(time_out, clock_now(CLOCK_REALTIME)) ? STATUS_OK : STATUS_INVALID_MEMORY_ACCESS;
}
