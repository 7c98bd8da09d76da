"""
What a plugin may write in effect: what the policy lets it, as far as it has a function to do it with. Pure.

In a worker hostcore answers a function that is not granted. A worker that was taken over asks nobody, so the trusted
side, which makes the effects happen, has to go by the same facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sandboxd.policy.capability_names import MAP_WRITES
from sandboxd.policy.model import PluginPolicy, ResolvedCapabilities

_BODY_WRITES = frozenset({"proxy_set_buffer_bytes"})
_LOCAL_RESPONSES = frozenset({"proxy_send_local_response"})
_PROPERTY_WRITES = frozenset({"proxy_set_property", "proxy_call_foreign_function"})
"""The foreign function ``set_envoy_filter_state`` sets a property."""


def usable(policy: PluginPolicy, callbacks: Iterable[str], imported_functions: Iterable[str]) -> ResolvedCapabilities:
    """
    Return what is both granted and there: a module can do nothing with what it does not import or export.

    Args:
        policy: the plugin's.
        callbacks: the module's exported callbacks.
        imported_functions: the functions that it imports, without their module.
    """
    return policy.capabilities & (frozenset(imported_functions) | frozenset(callbacks))


def narrowed(policy: PluginPolicy, functions: ResolvedCapabilities) -> PluginPolicy:
    """
    Return the policy with nothing left in ``write`` that no function does.

    Args:
        policy: the plugin's.
        functions: what it can use (`usable`).
    """
    write = policy.write
    return replace(
        policy,
        write=replace(
            write,
            header_maps=write.header_maps and not functions.isdisjoint(MAP_WRITES),
            body=write.body and not functions.isdisjoint(_BODY_WRITES),
            local_response=write.local_response and not functions.isdisjoint(_LOCAL_RESPONSES),
            properties=write.properties and not functions.isdisjoint(_PROPERTY_WRITES),
        ),
    )
