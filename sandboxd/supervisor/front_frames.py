"""The frames that tell a front about a plugin. Pure."""

from __future__ import annotations

from sandboxd.policy.model import TenantPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.prepare import PreparedPlugin
from sandboxd.text import cut_bytes

MAX_REASON_BYTES = 4096
"""Much less than a frame; a reason may be made of what all plugins of a tenant say."""


def attach(
    policy: TenantPolicy,
    plugin: PreparedPlugin,
    *,
    channel_id: int,
    ring_bytes: int,
    redaction_key: bytes,
    drain_timeout_s: float,
) -> control.ToFront:
    """Return the frame that hands a channel to a front; four descriptors go with it."""
    return control.ToFront(
        attach=control.Attach(
            channel_id=channel_id,
            tenant=policy.tenant,
            plugin=plugin.policy.name,
            ring_bytes=ring_bytes,
            callbacks=plugin.manifest.granted_callbacks,
            imports=[item.name for item in plugin.manifest.imports],
            policy_path=policy.source_path,
            redaction_key=redaction_key,
            drain_timeout_ns=int(drain_timeout_s * 1e9),
            imported_functions=plugin.imported_functions,
        )
    )


def detach(channel_id: int, reason: str) -> control.ToFront:
    """Return the frame that says that a channel is dead; a long reason is cut."""
    return control.ToFront(detach=control.Detach(channel_id=channel_id, reason=cut_bytes(reason, MAX_REASON_BYTES)))


def plugin_down(
    policy: TenantPolicy, plugin: str, reason: str, *, removed: bool = False, starting: bool = False
) -> control.ToFront:
    """
    Return the frame that says that no VM of a plugin can run now; a long reason is cut. The policy's text goes with it.
    """
    return control.ToFront(
        plugin_down=control.PluginDown(
            tenant=policy.tenant,
            plugin=plugin,
            policy_path=policy.source_path,
            reason=cut_bytes(reason, MAX_REASON_BYTES),
            removed=removed,
            starting=starting,
        )
    )
