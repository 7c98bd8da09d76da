"""A plugin as a front knows it: its policy, prepared once for use on every event. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sandboxd.channel.completions import EventLimits
from sandboxd.policy.capabilities import DataNeeds, needs
from sandboxd.policy.effective import narrowed, usable
from sandboxd.policy.model import PluginPolicy, Section
from sandboxd.policy.redact import HeaderDiff, Redactor
from sandboxd.policy.write_rules import Refusal, WriteRules

Checked = tuple[HeaderDiff, list[Refusal]]
_REMEMBERED = 64
_REMEMBERED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Plugin:
    """One version of one plugin of a tenant."""

    tenant: str
    policy: PluginPolicy
    """Its ``write`` is what the plugin has functions for."""
    needs: DataNeeds
    redactor: Redactor
    rules: WriteRules
    imports: tuple[str, ...] = ()
    """Names of the guest's imports by index, for DENIED."""
    _known: dict[tuple[HeaderDiff, Section], Checked] = field(default_factory=dict, repr=False, compare=False)

    def checked(self, changes: HeaderDiff, section: Section) -> Checked:
        """
        Return `WriteRules.headers` of these changes.

        Filters make the same few changes again and again, and the rules depend on nothing but the changes: small ones
        are remembered.
        """
        key = (changes, section)
        found = self._known.get(key)
        if found is None:
            found = self.rules.headers(changes, section)
            if len(self._known) < _REMEMBERED and _size(changes) < _REMEMBERED_BYTES:
                self._known[key] = found
        return found

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def key(self) -> str:
        """The plugin's name in counters and logs."""
        return f"{self.tenant}/{self.policy.name}"

    @property
    def metadata_namespace(self) -> str:
        """Namespace of the dynamic metadata that carry ``proxy_set_property``."""
        return f"sandboxd.{self.tenant}.{self.policy.name}"

    @property
    def event_limits(self) -> EventLimits:
        """What one event of this plugin may bring."""
        policy = self.policy.limits
        return EventLimits.of(policy.body_buffer_bytes, policy.log_lines_per_event, policy.log_bytes_per_event)


def prepare(
    tenant: str,
    policy: PluginPolicy,
    *,
    callbacks: Iterable[str],
    imported_functions: Iterable[str],
    redaction_key: bytes,
    imports: Iterable[str] = (),
) -> Plugin:
    """
    Return the plugin, ready for use.

    What it can read, and what it may write, follows from the functions that are both granted and imported: a module
    that never imports a buffer function gets no body even if the policy would let it, and a worker that names a local
    response is not heard unless its module could have asked for one.
    """
    callbacks = frozenset(callbacks)
    functions = usable(policy, callbacks, imported_functions)
    policy = narrowed(policy, functions)
    return Plugin(
        tenant,
        policy,
        needs(functions, callbacks),
        Redactor(policy.redact, redaction_key),
        WriteRules(policy.write, policy.limits.body_buffer_bytes),
        tuple(imports),
    )


def _size(changes: HeaderDiff) -> int:
    entries = [*changes.added, *((name, value) for name, values in changes.set for value in values)]
    return sum(map(len, changes.removed)) + sum(len(name) + len(value) for name, value in entries)
