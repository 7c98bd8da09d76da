"""``sandboxd check`` of the examples with their modules: they grant what their modules need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cli import main
from tests.support import examples


def findings(document: dict[str, Any], directory: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """Check a policy, and start its plugins; return errors and warnings."""
    path = directory / "example.yaml"
    path.write_text(json.dumps(document))
    main(["check", str(path), "--json", "--cache-directory", str(cache)])
    result = json.loads(capsys.readouterr().out)
    assert all(report["start_ms"] > 0 for report in result["plugins"])
    return [found for found in result["findings"] if found["severity"] != "note"]


@pytest.mark.parametrize("name", examples.WITH_MODULES)
def test_an_example_has_no_findings(
    name: str, tmp_path: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert findings(examples.policy(name), tmp_path, artefact_cache, capsys) == []


def test_a_grant_that_an_example_lacks_is_found(
    tmp_path: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harmless twin: what the test above would say."""
    document = examples.policy("rate-limiter")
    document["plugins"][0]["capabilities"]["allow"].remove("proxy_set_shared_data")
    (finding,) = findings(document, tmp_path, artefact_cache, capsys)

    assert "proxy_set_shared_data" in str(finding)


def test_examples_without_a_module_here_are_known() -> None:
    """So that a new example is either checked, or known not to be."""
    names = {path.stem for path in examples.EXAMPLES.glob("*.yaml")}

    assert names - set(examples.WITH_MODULES) == {"body-filter", "header-rewrite", "minimal", "strict"}
