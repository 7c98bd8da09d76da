/* Shared data that is kept outside this machine (remote.c). Addresses are the guest's, and have been checked. */
#ifndef SANDBOXD_REMOTE_H
#define SANDBOXD_REMOTE_H

#include "hostcore.h"

#define MAX_REMOTE_KEY_BYTES KIB

bool remote_shared(void);
u32 remote_get(u32 key, u32 key_len, u32 value_out, u32 size_out, u32 cas_out);
u32 remote_set(u32 key, u32 key_len, u32 value, u32 value_len, u32 cas);

#endif
