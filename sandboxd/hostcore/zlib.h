/* RFC 1950 and 1951, for the foreign functions `compress` and `uncompress`. */
#ifndef SANDBOXD_ZLIB_H
#define SANDBOXD_ZLIB_H

#include "memory.h"

/* A growing block on the heap. */
struct sink {
    u8 *at;
    u32 len, cap;
    u32 most; /* it does not grow beyond */
    bool full; /* something did not fit: over `most`, or no memory */
};

bool sink_reserve(struct sink *to, u32 more); /* room for so many bytes at its end; false: full */
u32 adler32(struct bytes data);
void zlib_compress(struct bytes data, struct sink *to);    /* `to->full`: did not fit */
bool zlib_uncompress(struct bytes data, struct sink *to);  /* false: malformed, or did not fit */

#endif
