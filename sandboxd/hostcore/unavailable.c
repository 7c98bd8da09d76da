/* What this version does not offer (Envoy's DNS look-ups), and the notices of old runtimes. */
#include "hostcore.h"

#define UNUSED __attribute__((unused)) u32

u32 EXPORT(envoy_resolve_dns)(UNUSED name, UNUSED name_len, UNUSED token_out)
{
    host_call(IN_CALLBACKS);
    return STATUS_INTERNAL_FAILURE;
}

/* Emscripten's notice that memory grew; guest.c looks at the size itself. */
void EXPORT(emscripten_notify_memory_growth)(UNUSED memory)
{
    host_call(ANYWHERE);
}

/* Old Emscripten */
u32 EXPORT(pthread_equal)(u32 left, u32 right)
{
    host_call(ANYWHERE);
    return left == right;
}
