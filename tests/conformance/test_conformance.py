"""The conformance table says what hostcore does: observed anew, and compared with the data and the document."""

from __future__ import annotations

import pytest

from sandboxd.policy import capability_names, conformance
from sandboxd.vm import abi
from tests.conformance import table
from tests.conformance.__main__ import DOCUMENT, data_text

HOW = "run python -m tests.conformance, and look at what has changed"


def test_data_is_what_hostcore_does() -> None:
    """Every function in every scope and state, every callback, in each ABI version."""
    assert conformance.DATA.read_text() == data_text(), HOW


def test_document_shows_the_data() -> None:
    """Between its markers."""
    text = DOCUMENT.read_text()
    assert table.replaced(text, table.document(conformance.load())) == text, HOW


def test_every_name_is_there() -> None:
    """No function, no callback of the ABI is missing."""
    facts = conformance.load()
    assert set(facts.functions) == {name for names in abi.IMPORT_MODULES.values() for name in names}
    assert set(facts.callbacks) == set(abi.CALLBACKS)
    assert set(facts.functions) | set(facts.callbacks) >= capability_names.ALL


@pytest.mark.parametrize("version", [version.text for version in abi.AbiVersion])
def test_what_no_policy_may_find_otherwise(version: str) -> None:
    """Denied is denied, a wild address does no harm, a callback that is not granted is silent."""
    facts = conformance.load()
    for name in capability_names.HOST_FUNCTIONS:
        assert facts.functions[name].denied[version] == abi.STATUS_INTERNAL_FAILURE
        assert facts.functions[name].wild[version] in {None, 1, 6}
    for name in capability_names.WASI_FUNCTIONS - {"proc_exit"}:
        assert facts.functions[name].denied[version] == abi.WASI_NOTCAPABLE
    assert facts.functions["proc_exit"].denied[version] == "trap"
    assert all(callback.withheld for callback in facts.callbacks.values())
    for name in (
        capability_names.TENANT_FUNCTIONS | capability_names.CALLOUT_FUNCTIONS | capability_names.METRIC_FUNCTIONS
    ):
        assert {facts.functions[name].answers[scope][version] for scope in conformance.TRANSPORTS} == {0}, name
    for name in capability_names.CALLBACKS - capability_names.UNAVAILABLE_CALLBACKS - {"proxy_validate_configuration"}:
        assert facts.callbacks[name].transports(version), name
