"""The small pure parts: back-off, throttle, exit sentences, one-line texts, what hostcore is told."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import log
from sandboxd.policy.model import (
    Clock,
    HeaderLeniency,
    ModuleRef,
    PluginLimits,
    PluginPolicy,
    PropertyRule,
    RedactionPolicy,
    SharedPolicy,
    VmPolicy,
)
from sandboxd.supervisor import exits
from sandboxd.supervisor.backoff import Backoff
from sandboxd.supervisor.hostcore_config import denied_properties, vm_config
from sandboxd.supervisor.throttle import Throttle
from sandboxd.vm.abi import AbiVersion
from sandboxd.vm.config_blob import Flag, VmLimits


class TestBackoff:
    """When a failed worker starts again."""

    def test_at_once_then_ever_later(self) -> None:
        """0, then doubling up to the most."""
        backoff = Backoff(jitter=lambda: 0.5)
        assert [backoff.failed(float(n)) for n in range(10)] == [0, 0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]

    def test_calm_resets(self) -> None:
        """After a minute without failure the next one is a first one again."""
        backoff = Backoff(jitter=lambda: 0.5)
        assert [backoff.failed(s) for s in (0, 1, 2, 70)] == [0, 0.25, 0.5, 0]

    def test_the_operator_resets(self) -> None:
        """A restart by hand forgets."""
        backoff = Backoff()
        backoff.failed(0)
        backoff.failed(1)
        backoff.reset()
        assert backoff.failed(2) == 0

    @given(st.lists(st.floats(0, 100), max_size=200))
    def test_is_bounded(self, gaps: list[float]) -> None:
        """Never negative, never beyond the most plus jitter."""
        backoff, now = Backoff(), 0.0
        for gap in gaps:
            now += gap
            assert 0 <= backoff.failed(now) <= backoff.max_delay_s * 1.25


def test_throttle() -> None:
    """A burst, then a trickle."""
    throttle = Throttle(per_second=2, burst=3)
    assert [throttle.admits(0) for _ in range(5)] == [True, True, True, False, False]
    assert [throttle.admits(1) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, "ended by itself with status 0"),
        (3, "ended by itself with status 3"),
        (-signal.SIGKILL, "want of memory"),
        (-signal.SIGSYS, "system call that its jail forbids"),
        (-signal.SIGUSR1, "SIGUSR1"),
        (-200, "signal 200"),
    ],
)
def test_exit_sentences(code: int, expected: str) -> None:
    """Each way to end has words."""
    assert expected in exits.sentence(code)


def test_our_own_kill_says_why() -> None:
    """Not "for want of memory" when we did it ourselves."""
    assert exits.sentence(-9, killed_for="lied") == "was killed by sandboxd: lied"


def test_last_words() -> None:
    """The last line, harmless and short; of a traceback that is the error."""
    assert exits.last_words(b"Traceback\n  File x\nValueError: a\x1b[1m\n\n") == r"ValueError: a\x1b[1m"
    assert exits.last_words(b"") == ""
    assert len(exits.last_words(b"\xff" * 10_000)) == 512


class TestOneLine:
    """Text from outside in a log line."""

    @given(st.text(), st.integers(3, 100))
    def test_is_printable_and_bounded(self, text: str, limit: int) -> None:
        """Whatever comes."""
        shown = log.one_line(text, limit)
        assert len(shown) <= limit
        assert shown.isprintable()

    @given(st.text(st.characters(categories=["L", "N", "P"]), max_size=50))
    def test_leaves_good_text_alone(self, text: str) -> None:
        """Letters, digits and punctuation of any script stay."""
        assert log.one_line(text, 100) == text

    def test_surrogates_and_direction(self) -> None:
        """Half characters and bidirectional overrides become escapes."""
        assert log.one_line("\ud800\u202e\u2028\n\t", 100) == r"\ud800\u202e\u2028\n\t"


class TestLog:
    """The log's two forms."""

    @pytest.fixture(autouse=True)
    def _keep_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        monkeypatch.setattr(root, "level", root.level)

    def test_text_is_one_line(self) -> None:
        """A message cannot forge a second line, nor can a traceback."""
        stream = io.StringIO()
        log.configure("info", "text", stream)
        logging.getLogger("x").info("a\n2026-01-01 critical forged: %s", "\x1b[2J")
        try:
            raise ValueError("b\nc")
        except ValueError:
            logging.getLogger("x").exception("oh")
        logging.getLogger("x").debug("not shown")

        lines = stream.getvalue().splitlines()
        assert len(lines) == 2
        assert r"a\n2026-01-01 critical forged: \x1b[2J" in lines[0]
        assert "ValueError" in lines[1]

    def test_json(self) -> None:
        """One object per line with the documented keys."""
        stream = io.StringIO()
        log.configure("debug", "json", stream)
        logging.getLogger("x.y").warning("a\n%d", 5)

        found = json.loads(stream.getvalue())
        assert set(found) == {"time", "level", "process", "logger", "message"}
        assert (found["level"], found["logger"], found["message"]) == ("warning", "x.y", "a\n5")
        assert len(stream.getvalue().splitlines()) == 1


class TestVmConfig:
    """The policy as hostcore hears it."""

    plugin = PluginPolicy("p", ModuleRef(Path("m"), "0" * 64), root_id="r", configuration=b"c")
    manifest = Mock(abi=AbiVersion.V0_2_1, granted_callbacks=("proxy_on_request_headers",))

    def test_everything_arrives(self) -> None:
        """Names, configurations, limits."""
        plugin = dataclasses.replace(
            self.plugin,
            vm=VmPolicy(vm_id="v", configuration=b"vc", environment=(("A", "b"),)),
            limits=PluginLimits(body_buffer_bytes=7777, metrics=3, host_calls_per_event=9),
        )

        config = vm_config(plugin, self.manifest, 65536)

        assert (config.plugin_name, config.root_id, config.vm_id) == ("p", "r", "v")
        assert (config.plugin_configuration, config.vm_configuration) == (b"c", b"vc")
        assert config.environment == (("A", "b"),)
        assert config.callbacks == {"proxy_on_request_headers"}
        assert config.limits.body_buffer_bytes == 7777
        assert (config.limits.metrics, config.limits.host_calls_per_event) == (3, 9)
        assert config.ring_bytes == 65536

    def test_limits_of_ticks_and_of_the_shared_region(self) -> None:
        """The plugin's own, and those of its tenant; without any, hostcore's defaults."""
        plugin = dataclasses.replace(self.plugin, limits=PluginLimits(tick_period_ns=30_000_000))
        found = vm_config(plugin, self.manifest, 65536, shared=SharedPolicy(value_bytes=7, queue_items=8)).limits
        assert (found.min_tick_ms, found.shared_value_bytes, found.queue_items) == (30, 7, 8)

        default = VmLimits(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        found = vm_config(self.plugin, self.manifest, 65536).limits
        assert (found.min_tick_ms, found.shared_value_bytes, found.queue_items) == (
            default.min_tick_ms,
            default.shared_value_bytes,
            default.queue_items,
        )

    def test_flags(self) -> None:
        """Each switch of the policy is a bit."""
        assert vm_config(self.plugin, self.manifest, 65536).flags == Flag.LENIENT_MAPS
        other = dataclasses.replace(
            self.plugin,
            allow_on_headers_stop_iteration=True,
            header_leniency=HeaderLeniency.ENVOY,
            vm=VmPolicy(clock=Clock.LIVE),
        )
        assert vm_config(other, self.manifest, 65536).flags == (Flag.ALLOW_ON_HEADERS_STOP_ITERATION | Flag.LIVE_CLOCK)

    def test_denied_properties(self) -> None:
        """A prefix with an exception below it is the front's business."""
        rules = (PropertyRule(("a",)), PropertyRule(("b",)), PropertyRule(("b", "c"), shown=True))
        plugin = dataclasses.replace(self.plugin, redact=RedactionPolicy(properties=rules))
        assert denied_properties(plugin) == (("a",),)
