"""A tenant's `shared`: sizes, and the address of a store."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import from_url

from sandboxd.policy.model import SharedPolicy
from tests.support.policy_files import document, error, parse


def test_shared_memory() -> None:
    assert parse(document()).shared == SharedPolicy()
    given = {"memory": "128KiB", "value": "4KiB", "queue_items": 7}
    assert parse({**document(), "shared": given}).shared == SharedPolicy(128 * 1024, 4096, 7)
    assert parse({**document(), "shared": {}}).shared == SharedPolicy()


@pytest.mark.parametrize(
    ("shared", "key", "problem"),
    [
        ({"memory": "32KiB"}, "shared.memory", "64KiB"),
        ({"memory": "33MiB"}, "shared.memory", "32MiB"),
        ({"memory": "65537B"}, "shared.memory", "multiple"),
        ({"value": "64KiB"}, "shared.value", "65520"),
        ({"queue_items": -1}, "shared.queue_items", "1000000"),
        ({"size": 1}, "shared.size", "not a known key"),
    ],
)
def test_bad_shared_memory(shared: dict[str, Any], key: str, problem: str) -> None:
    found = error({**document(), "shared": shared})
    assert found.key == key
    assert problem in str(found)


@pytest.mark.parametrize(
    "url",
    [
        "redis://store.internal:6379/0",
        "rediss://10.0.0.1:65535",
        "redis://store/",
        "redis://[::1]:6379/15",
        "unix:///run/valkey/valkey.sock",
    ],
)
def test_addresses_of_stores(url: str) -> None:
    """What a policy may name, the client takes."""
    shared = parse(document() | {"shared": {"backend": {"url": url}}}).shared
    assert shared.backend is not None
    assert shared.backend.url == url
    assert from_url(url).connection_pool is not None


@pytest.mark.parametrize(
    "url",
    [
        "redis://[::1/0",
        "redis://[::::]/0",
        "redis://h:abc/0",
        "redis://h:99999/0",
        "redis://h:0/0",
        "redis://h/x",
        "redis://h/1/2",
        "redis:///0",
        "redis://a..b/0",
        "redis://h/0#1",
        "redis://h/0?db=1",
        "redis://u:hunter2@h/0",
        "unix://",
        "unix:///",
        "unix://run/valkey.sock",
        "unix:///run/a%00b",
        "unix:///run/valkey.sock?db=1",
        "http://h/0",
    ],
)
def test_addresses_that_no_store_has(url: str) -> None:
    """Each is an error of its file and key, not an exception, nor another store than was meant."""
    found = error(document() | {"shared": {"backend": {"url": url}}})
    assert found.key == "shared.backend.url"
    assert "is not the address of a store" in str(found)
    assert "unix:///PATH" in str(found)
    assert "hunter2" not in str(found)


def test_the_path_of_a_stores_socket_is_bounded() -> None:
    """By what the kernel takes."""
    found = error(document() | {"shared": {"backend": {"url": "unix:///" + "x" * 107}}})
    assert found.key == "shared.backend.url"
    assert "107 bytes" in str(found)
