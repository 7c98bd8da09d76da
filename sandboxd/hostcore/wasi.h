/* What the two WASI files share. */
#ifndef SANDBOXD_WASI_H
#define SANDBOXD_WASI_H

#include "hostcore.h"

enum errno_code {
    SUCCESS = 0,
    BADF = 8,
    FAULT = 21,
    INVAL = 28,
    NOENT = 44,
    NOSYS = 52,
    NOTDIR = 54,
    NOTSUP = 58,
};
#define STDOUT 1u
#define STDERR 2u
#define RIGHT_FD_WRITE 64u
#define UNUSED __attribute__((unused)) u32
#define UNUSED64 __attribute__((unused)) u64

static inline bool is_output(u32 fd)
{
    return fd == STDOUT || fd == STDERR;
}

/* A call that does nothing but answer. */
static inline u32 answer(enum errno_code code)
{
    host_call(AT_START);
    return code;
}

#endif
