/*
 * hostcore: the Proxy-Wasm host in C, compiled to WebAssembly and linked to the guest inside one store.
 *
 * The VM, and what nearly every file needs. Numbers and caps are in contract.h, streams in stream.h. The contract with
 * the linker, the worker and the channel's clients is docs/hostcore.md and docs/channel.md; function and enumeration
 * names are Proxy-Wasm's own.
 *
 * Everything that comes from the guest is an address and a length in the guest's memory and is reached through guest.c
 * alone. Everything that comes from the channel is read through ring.c alone.
 */
#ifndef SANDBOXD_HOSTCORE_H
#define SANDBOXD_HOSTCORE_H

#include "channel.h"
#include "contract.h"
#include "maps.h"
#include "memory.h"

/* `EXPORT(name)` defines hc_name, exported to WebAssembly as plain `name`. */
#ifdef SANDBOXD_NATIVE
#define EXPORT(name) hc_##name
#define IMPORT(module, name)
#else
#define EXPORT(name) __attribute__((export_name(#name))) hc_##name
#define IMPORT(module, name) __attribute__((import_module(#module), import_name(#name)))
#endif

/* Marks what changes while the VM runs, so that a native harness can set it back. */
#ifdef SANDBOXD_NATIVE
#define STATE __attribute__((section("hostcore_state")))
#else
#define STATE
#endif

/* Read by the worker at `status_ptr()`. */
struct vm_status {
    u32 in_callback, context_id, event_seq, stream_id_low, stream_id_high, streams_open, heap_used_bytes,
        heap_peak_bytes, exited, exit_code, violation, host_calls, metrics, next_tick_low, next_tick_high,
        queues_watched;
};

struct limits {
    u64 heap_bytes, body_buffer_bytes, open_streams, log_message_bytes, log_bytes_per_event, log_lines_per_event,
        metrics, host_calls_per_event, local_response_bytes, property_bytes, min_tick_ms, callouts,
        callout_bytes, shared_value_bytes, queue_items;
};

struct config {
    struct bytes plugin_name, root_id, vm_id, vm_configuration, plugin_configuration, environment, denied_properties,
        entropy, upstreams, folders;
    struct limits limits;
    u64 flags, callbacks, start_time_ns;
    u32 abi, generation, ring_bytes, min_log_level;
    u32 open_files;
    u32 shared_bytes, vm_number; /* size of the shared region, 0: none; this VM's name in it */
};

/* What host calls the guest may make now; each host function names the phases it is allowed in. */
enum phase { PHASE_CALLBACK = 1, PHASE_INITIALIZE = 2, PHASE_ALLOC = 4 };

struct stream;

struct vm {
    struct vm_status status;
    struct config config;
    u32 phase;
    bool starting, stopped, configuring;
    struct stream *current;   /* of the running callback; NULL: the root context or none */
    struct stream *effective; /* what host calls act on */
    struct table streams;     /* by the client's stream id */
    struct table contexts;    /* stream contexts by context id */
    struct stream *last_stream;
    u32 crowd; /* streams that have yet to come one by one before there counts as one alone */
    struct stream *first_touched;
    u32 next_context_id;
    u64 now_ns;       /* the event's instant */
    u64 monotonic_ns; /* virtual, moves a little with every look */
    u64 calls_left;   /* host calls of this event */
    u64 log_bytes, log_lines, logs_dropped; /* of this event */
    u32 notes;        /* bits of the notes sent in this event */
    u32 turn;         /* counts events and what runs outside them */
    u64 tick_ns, next_tick_ns; /* period, and wall clock of the next tick; 0: none */
    u32 event_seq;
    u64 event_stream;
};

extern struct vm vm;
extern u8 scratch[SCRATCH_BYTES]; /* for the duration of one host call; never across a call into the guest */

#define ROOT_CONTEXT_ID 1u

_Noreturn void violate(enum violation reason);
_Noreturn void trap(void);

/* First line of every host function. */
static inline void host_call(u32 allowed_phases)
{
    vm.status.host_calls++;
    if (UNLIKELY(!(vm.phase & allowed_phases)))
        violate(VIOLATION_RESTRICTED_CALL);
    if (UNLIKELY(vm.calls_left-- == 0))
        violate(VIOLATION_HOST_CALLS);
}
#define IN_CALLBACKS PHASE_CALLBACK
#define AT_START (PHASE_CALLBACK | PHASE_INITIALIZE)
#define ANYWHERE (PHASE_CALLBACK | PHASE_INITIALIZE | PHASE_ALLOC)

/* config.c */
u32 config_parse(struct bytes blob, struct config *config);

/* guest.c: the guest's memory, and calls into the guest */
bool guest_ok(u32 address, u32 len);
bool guest_read(u32 address, void *to, u32 len);
bool guest_write(u32 address, const void *from, u32 len);
bool guest_write_u32(u32 address, u32 value);
bool guest_write_u64(u32 address, u64 value);
u32 return_bytes(struct bytes data, u32 data_out, u32 size_out);
struct arguments {
    u32 a, b, c, d;
};
u32 call_guest_with(enum callback callback, struct stream *stream, struct arguments arguments);
static inline u32 call_guest(enum callback callback, struct stream *stream, u32 a, u32 b)
{
    return call_guest_with(callback, stream, (struct arguments){a, b, 0, 0});
}
static inline bool callback_granted(enum callback callback)
{
    return vm.config.callbacks >> callback & 1;
}

/* poll.c */
void event_begin(const struct record *record);
void event_end(void);
void note(const struct stream *stream, enum note_code code);

/* shared.c, queues.c */
void shared_start(void);
bool queues_deliver(void); /* true: there is more */

/* logging.c */
void log_lines_flush(void);
void log_write(u32 level, u32 address, u32 len); /* guest memory, checked before */
bool log_stdio(u32 fd, u32 address, u32 len);

/* metrics.c */
void metrics_send(void); /* all metrics and their values, to the outbox */

/* time.c, random.c */
u64 clock_now(u32 clock_id);
void clock_advance(u64 ns);
void random_seed(const u8 *key);
void random_fill(u8 *to, u32 len);

#endif
