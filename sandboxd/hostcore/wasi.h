/* What the WASI files share. */
#ifndef SANDBOXD_WASI_H
#define SANDBOXD_WASI_H

#include "hostcore.h"

enum errno_code {
    SUCCESS = 0,
    BADF = 8,
    DQUOT = 19,
    EXIST = 20,
    FAULT = 21,
    FBIG = 22,
    INVAL = 28,
    ISDIR = 31,
    MFILE = 33,
    NAMETOOLONG = 37,
    NOENT = 44,
    NOSPC = 51,
    NOSYS = 52,
    NOTDIR = 54,
    NOTEMPTY = 55,
    NOTSUP = 58,
    ROFS = 69,
    XDEV = 75,
    NOTCAPABLE = 76,
};
#define STDOUT 1u
#define STDERR 2u
#define RIGHT_FD_READ 2u
#define RIGHT_FD_WRITE 64u
#define FLAG_APPEND 1u
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
