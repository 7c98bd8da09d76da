"""What one call has at hand, and how its refusals are taken note of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sandboxd.channel.pairs import Pair, encode
from sandboxd.egress.budget import Lease
from sandboxd.egress.desk import Destination, PluginRules, TenantDesk
from sandboxd.egress.rules import DeniedError
from sandboxd.policy.model import Section


@dataclass(frozen=True, slots=True)
class Context:
    """Who calls, and by which rules."""

    desk: TenantDesk
    plugin: str
    rules: PluginRules
    lease: Lease

    def destination(self, name: bytes) -> Destination:
        """
        Return the upstream of that name.

        Raises:
            DeniedError: the policy has none.
        """
        found = self.rules.destinations.get(name.decode("utf-8", "replace"))
        if found is None:
            raise DeniedError("upstreams", name.decode("utf-8", "replace"))
        return found

    @contextmanager
    def admitted(self, found: Destination) -> Iterator[None]:
        """
        Count the call in, and out at the end.

        Raises:
            DeniedError: there is no room, or it comes too soon.
        """
        admission = self.desk.plugin(self.plugin).admission
        admission.enter(found.upstream, self.rules.policy.concurrency, asyncio.get_running_loop().time())
        try:
            yield
        finally:
            admission.leave(found.upstream)

    def count(self, found: Destination, what: str, amount: int = 1) -> None:
        """Add to a counter of the upstream."""
        self.desk.plugin(self.plugin).counters.count(found.upstream.name, what, amount)

    def denied(self, name: bytes, error: DeniedError) -> str:
        """Take note of a refusal; return what the plugin may know of it."""
        text = name.decode("utf-8", "replace")
        known = text if text in self.rules.destinations else ""
        now_s = asyncio.get_running_loop().time()
        self.desk.plugin(self.plugin).counters.denied(known, error.rule, error.detail, now_s)
        return f"denied by the policy: {error.rule}"

    def cut_off(self, found: Destination, rule: str, limit: str) -> str:
        """Take note of a stream that is ended by a rule; return what the plugin may know of it."""
        now_s = asyncio.get_running_loop().time()
        self.desk.plugin(self.plugin).counters.cut_off(found.upstream.name, rule, limit, now_s)
        return f"ended by the policy: {rule}"

    def failed(self, error: BaseException) -> None:
        """Take note of a mistake of ours."""
        self.desk.plugin(self.plugin).counters.failed(error, asyncio.get_running_loop().time())

    def visible(self, found: Destination, headers: list[Pair]) -> bytes:
        """Return response headers or metadata as pairs, without what the plugin must not see."""
        return encode(found.redactor.view(headers, Section.RESPONSE_HEADERS))
