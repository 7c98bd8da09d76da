// What a filter remembers of its streams: a table of fixed size, so that no number of streams makes it grow.
#ifndef STREAM_TABLE_H
#define STREAM_TABLE_H

#include "filter.h"

// Contexts are numbered one after the other, so a stream is found where its number points to, or within a few places.
enum { MAX_STREAMS = 4096, PLACES = 16 };

struct stream {
    uint32_t context;  // 0: free
    uint32_t call;     // the callout that it waits for
    uint64_t until_ns; // when it shall go on
    bool marked;
};

static struct stream streams[MAX_STREAMS];

// The stream's entry; NULL if it has none. `context` 0: a free place for the stream `near`.
static inline struct stream *stream_place(uint32_t context, uint32_t near) {
    for (uint32_t i = 0; i < PLACES; i++) {
        struct stream *stream = streams + (near + i) % MAX_STREAMS;
        if (stream->context == context) return stream;
    }
    return NULL;
}

static inline struct stream *find_stream(uint32_t context) {
    return stream_place(context, context);
}

// A new entry; NULL if there is no room.
static inline struct stream *add_stream(uint32_t context) {
    struct stream *stream = stream_place(0, context);
    if (stream) *stream = (struct stream){.context = context};
    return stream;
}

#endif
