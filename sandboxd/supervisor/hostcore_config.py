"""
What hostcore is told of a plugin, built from its policy. Pure; the layout is `sandboxd.vm.config_blob`'s.
"""

from __future__ import annotations

from sandboxd import limits
from sandboxd.policy.model import Clock, HeaderLeniency, PluginPolicy, SharedPolicy
from sandboxd.vm.artefacts import Manifest
from sandboxd.vm.config_blob import Flag, VmConfig, VmLimits

HEAP_BYTES = 96 * limits.MIB
"""Of hostcore's memory for all streams of one VM; pages are only touched when used."""


def vm_config(
    plugin: PluginPolicy,
    manifest: Manifest,
    ring_bytes: int,
    log_level: int = 0,
    shared: SharedPolicy | None = None,
    *,
    folders: bytes = b"",
) -> VmConfig:
    """
    Return what one VM of a plugin is told.

    Args:
        plugin: its policy.
        manifest: of its compiled module.
        ring_bytes: size of each ring of the channel.
        log_level: lowest level that is sent, 0 (trace) to 5 (critical).
        shared: what the tenant allows in its shared region; None: the defaults.
        folders: its preopened folders, as `sandboxd.vm.folder_blob` encodes them.
    """
    return VmConfig(
        plugin_name=plugin.name,
        root_id=plugin.root_id,
        vm_id=plugin.vm.vm_id,
        abi=manifest.abi,
        callbacks=frozenset(manifest.granted_callbacks),
        limits=_limits(plugin, shared or SharedPolicy()),
        ring_bytes=ring_bytes,
        flags=_flags(plugin) | (Flag.REMOTE_SHARED if shared and shared.backend else Flag(0)),
        log_level=log_level,
        vm_configuration=plugin.vm.configuration,
        plugin_configuration=plugin.configuration,
        environment=plugin.vm.environment,
        denied_properties=denied_properties(plugin),
        folders=folders,
        open_files=plugin.wasi.open_files,
        upstreams=tuple(upstream.name for upstream in plugin.callouts.upstreams),
    )


def _limits(plugin: PluginPolicy, shared: SharedPolicy) -> VmLimits:
    asked = plugin.limits
    return VmLimits(
        heap_bytes=HEAP_BYTES,
        body_buffer_bytes=asked.body_buffer_bytes,
        open_streams=asked.open_streams,
        log_message_bytes=limits.MAX_LOG_MESSAGE_BYTES,
        log_bytes_per_event=asked.log_bytes_per_event,
        log_lines_per_event=asked.log_lines_per_event,
        metrics=asked.metrics,
        host_calls_per_event=asked.host_calls_per_event,
        local_response_bytes=limits.MAX_LOCAL_RESPONSE_BODY_BYTES,
        property_bytes=limits.MAX_PROPERTY_VALUE_BYTES,
        callouts=plugin.callouts.concurrency,
        callout_bytes=limits.MAX_CALLOUT_REQUEST_BYTES,
        min_tick_ms=asked.tick_period_ns // limits.MS_NS,
        shared_value_bytes=shared.value_bytes,
        queue_items=shared.queue_items,
    )


def _flags(plugin: PluginPolicy) -> Flag:
    flags = Flag(0)
    if plugin.allow_on_headers_stop_iteration:
        flags |= Flag.ALLOW_ON_HEADERS_STOP_ITERATION
    if plugin.header_leniency is HeaderLeniency.LENIENT:
        flags |= Flag.LENIENT_MAPS
    if plugin.vm.clock is Clock.LIVE:
        flags |= Flag.LIVE_CLOCK
    return flags


def denied_properties(plugin: PluginPolicy) -> tuple[tuple[str, ...], ...]:
    """
    Return the path prefixes that hostcore refuses by itself.

    The front already sends no hidden attribute; this is the second lock. It knows no exceptions below a
    prefix, so a prefix with one is left to the front.
    """
    shown = [rule.path for rule in plugin.redact.properties if rule.shown]
    return tuple(
        rule.path
        for rule in plugin.redact.properties
        if not rule.shown and not any(path[: len(rule.path)] == rule.path for path in shown)
    )
