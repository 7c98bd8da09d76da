/* The VM as a whole: configuration, start, status, traps. */
#include "files.h"
#include "stream.h"

#define FOLDERS_MALFORMED 1018u /* as a bad entry of the configuration */

STATE struct vm vm;
u8 scratch[SCRATCH_BYTES];

#ifdef SANDBOXD_NATIVE
_Noreturn void native_trap(void); /* the harness jumps out */
#define TRAP native_trap
#else
#define TRAP __builtin_trap
#endif

/* The client still learns what was said before the end. */
_Noreturn void trap(void)
{
    ring_publish();
    TRAP();
}

_Noreturn void violate(enum violation reason)
{
    vm.status.violation = reason;
    TRAP();
}

/* Room for the configuration blob, which stays where it is for the VM's life. */
u8 *EXPORT(config_buffer)(u32 len)
{
    heap_init();
    return heap_alloc(len ? len : 1);
}

u32 EXPORT(vm_configure)(u8 *blob, u32 len)
{
    u32 bad = config_parse((struct bytes){blob, len}, &vm.config);
    if (bad)
        return bad;
    heap_set_limit(vm.config.limits.heap_bytes);
    random_seed(vm.config.entropy.at);
    memset((u8 *)(uintptr_t)vm.config.entropy.at, 0, vm.config.entropy.len);
    vm.next_context_id = ROOT_CONTEXT_ID;
    vm.now_ns = vm.monotonic_ns = vm.config.start_time_ns;
    return folders_start(vm.config.folders, vm.config.open_files) ? 0 : FOLDERS_MALFORMED;
}

static u32 start(void)
{
    call_guest(CALLBACK_INITIALIZE, NULL, 0, 0);
    vm.starting = true;
    if (callback_granted(CALLBACK_CONTEXT_CREATE))
        call_guest(CALLBACK_CONTEXT_CREATE, NULL, 0, 0);
    if (callback_granted(CALLBACK_VM_START) && !call_guest(CALLBACK_VM_START, NULL, vm.config.vm_configuration.len, 0))
        return 1;
    vm.configuring = true;
    if (callback_granted(CALLBACK_CONFIGURE) &&
        !call_guest(CALLBACK_CONFIGURE, NULL, vm.config.plugin_configuration.len, 0))
        return 2;
    return 0;
}

/* 0: ready; 1: proxy_on_vm_start refused; 2: proxy_on_configure refused. */
u32 EXPORT(vm_start)(void)
{
    ring_init(vm.config.ring_bytes, vm.config.generation);
    shared_start();
    struct record none = {.arg = vm.config.start_time_ns};
    event_begin(&none);
    ring_put(COMPLETE_VM_STARTED, 0, 0, vm.config.generation, 0);
    ring_publish();
    u32 result = start();
    vm.starting = vm.configuring = false;
    event_end();
    ring_publish();
    return result;
}

struct vm_status *EXPORT(status_ptr)(void)
{
    return &vm.status;
}

/* A call that the policy does not grant; the stub that made it gives the guest its answer. */
#define MAX_IMPORTS 1024u
STATE static u32 denied_calls[MAX_IMPORTS];

void EXPORT(denied)(u32 import_index)
{
    host_call(ANYWHERE);
    u32 calls = ++denied_calls[import_index < MAX_IMPORTS ? import_index : MAX_IMPORTS - 1];
    if ((calls & (calls - 1)) == 0) /* the 1st, 2nd, 4th, 8th, ... time */
        ring_put(COMPLETE_DENIED, 0, vm.effective ? vm.effective->id : 0, import_index, 0);
}
