"""docs/policy.md and docs/configuration.md name every key, every preset and every default rule."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from sandboxd.config import Machine
from sandboxd.config_file import parse_config
from sandboxd.errors import ConfigError, PolicyError
from sandboxd.policy import capabilities as caps
from sandboxd.policy import capability_names
from sandboxd.policy.failure import _DETAILS
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import DEFAULT_HEADER_RULES, RedactMode

ROOT = Path(__file__).parents[2]
POLICY = (ROOT / "docs/policy.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
PLUGIN = {"name": "p", "module": {"file": "m", "sha256": "0" * 64}}


def known_keys(path: str) -> tuple[str, ...]:
    """Ask the reader itself: an unknown key's error lists the known ones."""
    value: object = {"zz_unknown": 1}
    for key in reversed(path.split(".") if path else []):
        value = {key: value}
    with pytest.raises(PolicyError) as caught:
        parse_policy(yaml.safe_dump({"tenant": "a", "plugins": [{**PLUGIN, **value}]}), "x", module_root=None)  # type: ignore[dict-item]
    assert "zz_unknown" in caught.value.key
    return caught.value.allowed


@pytest.mark.parametrize("path", ["", "vm", "limits", "capabilities", "redact", "write", "failure", "failure.restart"])
def test_every_policy_key_is_documented(path: str) -> None:
    keys = known_keys(path)

    assert keys
    prefix = "restart." if path == "failure.restart" else ""
    for key in keys:
        assert f"`{prefix}{key}`" in POLICY or (key == "restart" and "`restart.backoff`" in POLICY), key


@pytest.mark.parametrize("part", ["", "isolation", "shared"])
def test_every_key_of_a_tenant_is_documented(part: str) -> None:
    own: dict[str, object] = {part: {"zz_unknown": 1}} if part else {"zz_unknown": 1}
    with pytest.raises(PolicyError) as caught:
        parse_policy(yaml.safe_dump({"tenant": "a", "plugins": [PLUGIN], **own}), "x", module_root=None)
    section = POLICY.partition(f"### `{part}`" if part else "## The file")[2].partition("\n## ")[0]
    assert caught.value.allowed
    for key in caught.value.allowed:
        assert f"| `{key}` |" in section, key


def test_every_configuration_key_is_documented() -> None:
    parts = ("front", "worker", "jail", "channel", "attach", "metrics", "log")
    for text, prefix in (("zz: 1", ""), *((f"{part}: {{zz: 1}}", f"{part}.") for part in parts)):
        with pytest.raises(ConfigError) as caught:
            parse_config(text, "x")
        for key in caught.value.allowed:
            assert f"`{prefix}{key}" in CONFIGURATION, key


def test_the_example_of_the_configuration_is_valid() -> None:
    example = re.search(r"```yaml\n(.*?)```", CONFIGURATION, re.DOTALL)

    assert example is not None
    config = parse_config(example[1], "/etc/sandboxd/sandboxd.yaml", Machine(0, 4, {}))
    assert config.front.processes == 4
    assert dataclasses.asdict(config)


@pytest.mark.parametrize(
    "word",
    [
        *caps.PRESETS,
        *capability_names.UNAVAILABLE_FUNCTIONS,
        *capability_names.GO_START_FUNCTIONS,
        *RedactMode,
        *(rule.pattern for rule in DEFAULT_HEADER_RULES),
        *_DETAILS.values(),
    ],
)
def test_every_word_is_documented(word: str) -> None:
    assert f"`{word}`" in POLICY
