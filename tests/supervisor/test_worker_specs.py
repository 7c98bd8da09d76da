"""What a worker is started with: a uid that no other tenant has."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from sandboxd import limits
from sandboxd.policy.model import Isolation, TenantPolicy
from sandboxd.supervisor.worker_specs import WorkerSpecs


class Daemon:
    """What gives tenants their uids, from `base` on."""

    def __init__(self, base: int) -> None:
        self.tenants: set[str] = set()
        config = Mock(worker=Mock(uid_base=base))
        self._specs = WorkerSpecs(config, Mock(), Mock(), Mock(), lambda: self.tenants)

    def uid(self, tenant: str) -> int:
        self.tenants.add(tenant)
        return self._specs.of(TenantPolicy(tenant, (), Isolation())).wishes.uid


def test_each_tenant_has_its_own() -> None:
    daemon = Daemon(200_000)

    assert [daemon.uid(name) for name in ("a", "b", "a", "c", "b")] == [200_000, 200_001, 200_000, 200_002, 200_001]


def test_that_of_a_tenant_without_workers_is_free_again() -> None:
    daemon = Daemon(200_000)
    first = [daemon.uid(name) for name in ("a", "b", "c")]

    daemon.tenants.remove("b")

    assert daemon.uid("d") == first[1]
    assert [daemon.uid(name) for name in ("a", "c")] == [first[0], first[2]]
    assert daemon.uid("b") == 200_003


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_none_gets_one_of_ours(ahead: int) -> None:
    """Whatever the daemon's file says: fronts, compilers and spare workers run as these."""
    daemon = Daemon(limits.OUR_UIDS.start - ahead)
    uids = [daemon.uid(str(number)) for number in range(20)]

    assert len({*uids}) == 20
    assert not {*uids} & {*limits.OUR_UIDS}
