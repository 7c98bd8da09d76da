/* The numbers of docs/channel.md, and the limits of what may come through it. hostcore has its own copy (sandboxd/hostcore/channel.h,
   memory.h): the two sides of a channel do not trust each other, so neither takes facts from the other. The golden vectors and
   tests/clients/test_three_sides.py hold them together. */
#ifndef SBX_LAYOUT_H
#define SBX_LAYOUT_H

#include "data.h"

/* ---- docs/channel.md --------------------------------------------------------------------------------------------- */

#define CHANNEL_MAGIC 0x43584253u
#define CHANNEL_VERSION 1u
#define PAGE_BYTES 4096u
#define MIN_RING_BYTES 65536u
#define MAX_RING_BYTES 4194304u
#define RECORD_BYTES 32u

/* Offsets in the header page. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_RING_BYTES = 8,
    AT_SQ_TAIL = 64,
    AT_SQ_HEAD = 128,
    AT_CQ_TAIL = 192,
    AT_CQ_HEAD = 256,
    AT_VM_NEED_WAKE = 320,
    AT_VM_WANTS_SPACE = 324,
    AT_CLIENT_NEED_WAKE = 384,
    AT_CLIENT_WANTS_SPACE = 388,
    AT_VM_STATE = 448,
    AT_VM_GENERATION = 452,
    AT_VM_FAILURE = 464,
};

/* What AT_VM_FAILURE may say; every other number counts as a trap. */
enum { FAILURE_CPU_LIMIT = 2, FAILURE_MEMORY_LIMIT = 3, FAILURE_HOST_CALL_LIMIT = 9 };

enum vm_state { VM_STARTING, VM_READY, VM_FAILED, VM_GONE };

enum {
    KIND_PAD = 0,
    SUBMIT_STREAM_OPEN = 1,
    SUBMIT_ATTRIBUTES = 8,
    SUBMIT_STREAM_CLOSE = 9,
    COMPLETE_VERDICT = 1,
    COMPLETE_LAST = SBX_UPSTREAM_DATA,
};

enum { FLAG_MORE = 1, FLAG_RESET = 32, FLAGS_ALL = 63 };

#define STATES_ALL 63u

struct record {
    uint16_t kind, flags;
    uint32_t event_seq, payload_len;
    uint64_t stream_id, arg;
};

/* ---- limits (the reasons are in sandboxd/limits.py) -------------------------------------------------------------- */

#define MAX_PAIRS_COUNT 1024u
#define MAX_PAIRS_BYTES (1u * MIB)
#define MAX_HEADER_NAME_BYTES 1024u
#define MAX_LOG_MESSAGE_BYTES (8u * KIB)
#define MAX_LOCAL_RESPONSE_BODY_BYTES (1u * MIB)
#define MAX_DETAILS_BYTES 256u
#define MAX_PROPERTY_PATH_BYTES (4u * KIB)
#define MAX_PROPERTY_SEGMENTS 32u
#define MAX_PROPERTY_VALUE_BYTES (64u * KIB)
#define MAX_WRITTEN_PROPERTIES 64u
#define SHOWN_NAME_BYTES 64u
#define MAX_MISSED_BYTES 256u

#endif
