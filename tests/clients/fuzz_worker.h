/* What the files of the fuzzer share: one channel, with the hostile worker on one side and a client on the other. */
#ifndef FUZZ_WORKER_H
#define FUZZ_WORKER_H

#include "internal.h"
#include "numbers.h"

#define RING_BYTES MIN_RING_BYTES
#define SECRET "hidden-secret-value"
#define HIDDEN_PROPERTY "source\0address"
#define STREAMS 4
#define EVENTS 8

struct side {
    sbx_channel *channel;
    uint8_t *shared; /* the worker's own mapping */
    uint8_t *guard;
    uint32_t tail, generation;
    int vm_event_fd, client_event_fd;
    sbx_stream *streams[STREAMS];
    sbx_event *events[EVENTS];
    uint32_t answered[256]; /* numbers of events that got their verdict, by their low bits */
    bool wild; /* the worker breaks rules all the time; else now and then */
};

extern struct side side;
extern sbx_policy *policies[2]; /* that lets the plugin write, and that does not */
extern uint64_t breaks, verdicts, late, executions, taken;

_Noreturn void finding(const char *what);

/* fuzz_worker_side.c */
bool rarely(uint32_t percent); /* for what breaks the channel */
uint32_t *word(uint32_t offset);
void make_policies(void);
void open_side(void);
void close_side(void);
void on_notice(void *user, const sbx_notice *notice);
void fuzz_copied(const uint8_t *at, size_t len);

/* fuzz_worker_answers.c */
void begin_vm(void);
void worker_turn(void);

/* fuzz_worker_client.c */
void client_turn(void);
void check_effect(const sbx_effect *effect);
void check_event(sbx_event *event);
void check_hidden(void);

/* fuzz_worker_tcp.c */
void take_connection(sbx_stream *connection);
void submit_to_connection(sbx_stream *connection, sbx_event **event);

#endif
