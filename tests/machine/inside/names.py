"""The proofs by name, in their order; one that never reports is a failure. Pure: the host reads it too."""

from __future__ import annotations

from typing import Final

FIRST_BOOT: Final = (
    "machine_has_systemd_and_cgroup_v2",
    "unit_verifies",
    "service_installs_as_the_readme_says",
    "service_is_hardened",
    "fronts_have_nothing_left",
    "jail_holds_under_the_units_hardening",
    "commands_work",
    "requests_are_filtered",
    "workers_are_in_cgroups_with_the_policys_limits",
    "status_shows_usage_and_pressure",
    "memory_limit_kills_a_greedy_guest_alone",
    "memory_limit_kills_native_code_with_its_group_and_without_swap",
    "cpu_limit_throttles",
    "pids_limit_stops_a_fork_bomb",
    "compilers_have_cgroups_of_their_own",
    "reload_moves_the_changed_tenant_alone",
    "reload_keeps_the_last_good_version",
    "removed_tenant_leaves_no_process",
    "hung_daemon_is_replaced_by_the_watchdog",
    "killed_daemon_leaves_no_worker",
    "service_restarts",
    "without_delegation_a_policy_that_requires_it_is_refused",
)
SECOND_BOOT: Final = ("service_is_back_after_reboot",)
ESSENTIAL: Final = "service_installs_as_the_readme_says"
"""Without it nothing else can be proven; the run ends."""
PROOFS: Final = FIRST_BOOT + SECOND_BOOT
