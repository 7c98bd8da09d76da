/* What a failure means for a stream; as decide in sandboxd/policy/failure.py. */
#include "internal.h"

static const char *const details[] = {
    [SBX_CAUSE_TRAP] = "sandboxd_vm_trap",
    [SBX_CAUSE_CPU_LIMIT] = "sandboxd_cpu_limit",
    [SBX_CAUSE_TIMEOUT] = "sandboxd_timeout",
    [SBX_CAUSE_WORKER_GONE] = "sandboxd_worker_gone",
    [SBX_CAUSE_VM_DOWN] = "sandboxd_vm_down",
    [SBX_CAUSE_UNKNOWN_PLUGIN] = "sandboxd_unknown_plugin",
    [SBX_CAUSE_LIMIT] = "sandboxd_limit",
    [SBX_CAUSE_PROTOCOL] = "sandboxd_worker_protocol",
    [SBX_CAUSE_MEMORY_LIMIT] = "sandboxd_memory_limit",
    [SBX_CAUSE_HOST_CALL_LIMIT] = "sandboxd_host_call_limit",
};

#define DEFAULT_STATUS 503u

static bool is_body(enum sbx_phase phase)
{
    return phase == SBX_PHASE_REQUEST_BODY || phase == SBX_PHASE_RESPONSE_BODY;
}

/* A client could choose to send an oversized body: that never gets past its filter. */
static bool never_open(enum sbx_phase phase, enum sbx_cause cause)
{
    return cause == SBX_CAUSE_UNKNOWN_PLUGIN || (cause == SBX_CAUSE_LIMIT && is_body(phase));
}

static uint32_t status_of(uint32_t chosen, enum sbx_phase phase, enum sbx_cause cause)
{
    switch (cause) {
    case SBX_CAUSE_LIMIT:
        return phase == SBX_PHASE_REQUEST_BODY ? 413 : phase == SBX_PHASE_RESPONSE_BODY ? 500 : chosen;
    case SBX_CAUSE_TIMEOUT:
        return 504;
    case SBX_CAUSE_UNKNOWN_PLUGIN:
    case SBX_CAUSE_PROTOCOL:
        return 500;
    default:
        return chosen;
    }
}

sbx_failure sbx_failure_decide(const sbx_policy *policy, enum sbx_phase phase, enum sbx_cause cause,
                               bool response_started)
{
    const char *word = (size_t)cause < sizeof details / sizeof *details ? details[cause] : "sandboxd_failure";
    if (phase == SBX_PHASE_END)
        return (sbx_failure){SBX_CONTINUE, 0, ""};
    if (policy && policy->failure == ON_FAILURE_OPEN && !never_open(phase, cause))
        return (sbx_failure){SBX_CONTINUE, 0, ""};
    if (response_started)
        return (sbx_failure){SBX_RESET, 0, word};
    uint32_t chosen = policy ? (uint32_t)policy->failure_status : DEFAULT_STATUS;
    return (sbx_failure){SBX_RESPOND, status_of(chosen, phase, cause), word};
}
