"""The plan as data: order, what is missing, what is refused, and that it travels."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from sandboxd.errors import JailError
from sandboxd.jail import enter
from sandboxd.jail.cgroup import CgroupFacts
from sandboxd.jail.facts import MachineFacts
from sandboxd.jail.full_plan import (
    ORDER,
    JailPlan,
    JailRequest,
    Phase,
    Programs,
    decode,
    encode,
    plan,
)
from sandboxd.jail.layers import ALWAYS_REQUIRED, NAMESPACES, Layer, resolve
from sandboxd.jail.namespaces import CLONE_FLAGS

GOOD = MachineFacts(
    architecture="x86_64",
    kernel="6.18",
    privileged=True,
    namespaces=dict.fromkeys(CLONE_FLAGS, ""),
    seccomp=True,
    landlock_abi=7,
    mdwe=True,
    keyrings=True,
    core_scheduling=True,
    speculation={"store_bypass": "controllable", "indirect_branch": "not affected"},
    mount_point="/tmp",
    cgroup=CgroupFacts(),
)
REQUEST = JailRequest(Programs(b"1", b"2", b"3"), control_fd=5, uid=1000, gid=1001)
UNPRIVILEGED = dataclasses.replace(REQUEST, uid=0)


def names(jail_plan: JailPlan, phase: Phase) -> list[str]:
    return [step.name for step in jail_plan.phase(phase)]


BEFORE = {
    Phase.OUTSIDE: [
        ("close_fds", "namespace"),
        ("user_namespace", "single_id_map"),
        ("single_id_map", "namespace"),
    ],
    Phase.WAITER: [
        ("bounding_set", "change_uid"),
        ("change_uid", "drop_capabilities"),
        ("change_uid", "parent_death_signal"),
        ("change_uid", "non_dumpable"),
        ("no_new_privs", "seccomp"),
    ],
    Phase.INSIDE: [
        ("empty_root", "landlock"),
        ("empty_root", "drop_capabilities"),
        ("host_name", "drop_capabilities"),
        ("bounding_set", "change_uid"),
        ("change_uid", "drop_capabilities"),
        ("change_uid", "non_dumpable"),
        ("change_uid", "parent_death_signal"),
        ("no_new_privs", "landlock"),
        ("no_new_privs", "seccomp"),
        ("new_keyring", "seccomp"),
        ("speculation", "seccomp"),
        ("tsc", "seccomp"),
        ("own_core", "seccomp"),
        ("landlock", "seccomp"),
    ],
    Phase.LOADED: [("seal_executable", "mdwe"), ("mdwe", "no_new_exec")],
}


@pytest.mark.parametrize("request_", [REQUEST, UNPRIVILEGED], ids=["own uid", "user namespace"])
@pytest.mark.parametrize("extras", [False, True])
def test_the_order_constraints_hold(request_: JailRequest, extras: bool) -> None:
    wanted = dataclasses.replace(request_, disable_tsc=extras, own_core=extras)
    made = plan(wanted, GOOD)
    for phase, pairs in BEFORE.items():
        found = names(made, phase)
        for first, second in pairs:
            if first in found and second in found:
                last_first = max(i for i, name in enumerate(found) if name == first)
                assert last_first < found.index(second), (phase, first, second)
    assert names(made, Phase.INSIDE)[-1] == names(made, Phase.WAITER)[-1] == "seccomp"
    assert names(made, Phase.OUTSIDE)[0] == "close_fds"


def test_every_step_has_its_reason_and_its_function() -> None:
    wanted = dataclasses.replace(REQUEST, disable_tsc=True, own_core=True)
    steps = [*plan(wanted, GOOD).steps, *plan(UNPRIVILEGED, GOOD).steps]
    assert {step.name for step in steps} == set(ORDER) - {"fork"}
    for step in steps:
        table = {Phase.OUTSIDE: enter._OUTSIDE, Phase.LOADED: enter._LOADED}.get(step.phase, enter._STEPS)
        assert step.name in table or step.name == "parent_death_signal"


def test_the_two_identities() -> None:
    own, namespace = plan(REQUEST, GOOD), plan(UNPRIVILEGED, GOOD)
    assert "user_namespace" not in names(own, Phase.OUTSIDE)
    change = next(step for step in own.phase(Phase.INSIDE) if step.name == "change_uid")
    assert dict(change.arguments) == {"uid": 1000, "gid": 1001}
    assert names(namespace, Phase.OUTSIDE)[3:5] == ["user_namespace", "single_id_map"]
    assert "change_uid" not in names(namespace, Phase.INSIDE)
    # Whoever waits outside gives up as much as the worker.
    assert "change_uid" in names(own, Phase.WAITER)


def test_a_plan_travels() -> None:
    for request_ in (REQUEST, UNPRIVILEGED):
        made = plan(request_, GOOD)
        assert decode(encode(made)) == made


def test_limits_and_descriptors_of_a_compiler() -> None:
    request_ = dataclasses.replace(
        REQUEST, extra_fds=(8, 9), file_bytes=1 << 20, cpu_seconds=20, address_space_bytes=1 << 30
    )
    made = plan(request_, GOOD)
    keep = dict(made.phase(Phase.OUTSIDE)[0].arguments)["keep"]
    assert keep == (0, 1, 2, 5, 8, 9)
    step = next(step for step in made.phase(Phase.INSIDE) if step.name == "rlimits")
    limits = dict(dict(step.arguments)["limits"])  # type: ignore[arg-type]
    assert {name: limits[name] for name in ("FSIZE", "CPU", "AS", "CORE")} == {
        "FSIZE": 1 << 20,
        "CPU": 20,
        "AS": 1 << 30,
        "CORE": 0,
    }
    assert "CPU" not in str(plan(REQUEST, GOOD).phase(Phase.INSIDE))


LACKING = [
    ({"namespaces": {**GOOD.namespaces, "network": "no net"}}, Layer.NETWORK_NAMESPACE, "no net"),
    ({"namespaces": {**GOOD.namespaces, "pid": "no pid"}}, Layer.PID_NAMESPACE, "no pid"),
    ({"seccomp": False}, Layer.SECCOMP, "CONFIG_SECCOMP_FILTER"),
    ({"landlock_abi": 0}, Layer.LANDLOCK, r"Linux 5\.13"),
    ({"landlock_abi": 5}, Layer.LANDLOCK_SCOPES, r"Linux 6\.12"),
    ({"mdwe": False}, Layer.MDWE, r"Linux 6\.3"),
    ({"keyrings": False}, Layer.KEYRING, "no keyrings"),
    ({"speculation": {"store_bypass": "fixed on"}}, Layer.SPECULATION, "store_bypass: fixed on"),
]


@pytest.mark.parametrize(("facts", "layer", "reason"), LACKING)
def test_a_missing_layer(facts: dict[str, object], layer: Layer, reason: str) -> None:
    """Required: a refusal that says why. Not required: left out and said so, and everything else stays."""
    machine = dataclasses.replace(GOOD, **facts)  # type: ignore[arg-type]
    with pytest.raises(JailError, match=reason) as caught:
        plan(dataclasses.replace(REQUEST, require=frozenset({layer})), machine)
    assert caught.value.step == layer
    tolerant = dataclasses.replace(REQUEST, tolerate=frozenset(Layer))
    made = plan(tolerant, machine)
    gone = {found for found, _ in made.missing}
    assert layer in gone
    assert layer not in made.layers()
    kept = [step for step in plan(REQUEST, GOOD).steps if step.layer not in gone]
    assert [step.name for step in made.steps] == [step.name for step in kept] or layer is Layer.SPECULATION


@pytest.mark.parametrize("layer", sorted(ALWAYS_REQUIRED & {Layer.SECCOMP, *NAMESPACES}))
def test_the_core_is_required_unasked(layer: Layer) -> None:
    kinds = {
        Layer.PID_NAMESPACE: "pid",
        Layer.NETWORK_NAMESPACE: "network",
        Layer.MOUNT_NAMESPACE: "mount",
        Layer.IPC_NAMESPACE: "ipc",
        Layer.UTS_NAMESPACE: "uts",
    }
    if layer is Layer.SECCOMP:
        machine = dataclasses.replace(GOOD, seccomp=False)
    else:
        machine = dataclasses.replace(GOOD, namespaces={**GOOD.namespaces, kinds[layer]: "refused"})
    with pytest.raises(JailError):
        plan(REQUEST, machine)


def test_the_user_namespace_is_needed_only_without_a_uid() -> None:
    machine = dataclasses.replace(GOOD, namespaces={**GOOD.namespaces, "user": "forbidden here"})
    plan(REQUEST, machine)
    with pytest.raises(JailError, match="forbidden here"):
        plan(UNPRIVILEGED, machine)


def test_tsc_is_off_unless_asked_for_and_refused_on_arm() -> None:
    assert Layer.TSC not in plan(REQUEST, GOOD).layers()
    asked = dataclasses.replace(REQUEST, disable_tsc=True, require=frozenset({Layer.TSC}))
    assert Layer.TSC in plan(asked, GOOD).layers()
    with pytest.raises(JailError, match="only x86"):
        plan(asked, dataclasses.replace(GOOD, architecture="aarch64"))


def test_names_of_a_policy() -> None:
    assert resolve(("namespaces", "seccomp")) == {*NAMESPACES, Layer.SECCOMP}
    with pytest.raises(ValueError, match="chroot"):
        resolve(("chroot",))


def test_no_constraint_contradicts_another() -> None:
    for pairs in BEFORE.values():
        for (a, b), (c, d) in itertools.combinations(pairs, 2):
            assert (a, b) != (d, c)
