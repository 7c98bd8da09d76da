"""Policy files, directories of them and module files on disk; the examples."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from sandboxd import limits
from sandboxd.errors import ModuleRejected, PolicyError
from sandboxd.policy.load import load_directory, load_policy, parse_policy, verify_module
from sandboxd.policy.model import ModuleRef
from tests.support.policy_files import SHA, document

EXAMPLES = Path(__file__).parents[2] / "policies/examples"


def write_module(directory: Path, name: str = "m.wasm", data: bytes = b"\0asm") -> str:
    (directory / name).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def write_policy(directory: Path, name: str, tenant: str = "acme") -> Path:
    (directory / name).write_text(yaml.safe_dump({**document(), "tenant": tenant}))
    return directory / name


def test_load_policy(tmp_path: Path) -> None:
    write_module(tmp_path)
    policy = load_policy(write_policy(tmp_path, "a.yaml"))

    assert policy.plugins[0].module.path == tmp_path / "m.wasm"
    assert policy.source_path == str(tmp_path / "a.yaml")


def test_a_module_file_must_be_there(tmp_path: Path) -> None:
    path = write_policy(tmp_path, "a.yaml")
    with pytest.raises(PolicyError, match=r"module\.file: module file .*m\.wasm: No such file"):
        load_policy(path)

    (tmp_path / "m.wasm").mkdir()
    with pytest.raises(PolicyError, match="is not a regular file"):
        load_policy(path)


def test_unreadable_policy_files(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load_policy(tmp_path / "none.yaml")

    (tmp_path / "latin.yaml").write_bytes(b"tenant: a\n# \xe9\n")
    with pytest.raises(PolicyError, match=r"latin\.yaml:2: is not UTF-8"):
        load_policy(tmp_path / "latin.yaml")

    (tmp_path / "big.yaml").write_bytes(b"#" * (limits.MAX_POLICY_FILE_BYTES + 1))
    with pytest.raises(PolicyError, match="is larger than"):
        load_policy(tmp_path / "big.yaml")


def test_a_directory_keeps_the_good_and_names_the_bad(tmp_path: Path) -> None:
    write_module(tmp_path)
    write_policy(tmp_path, "a.yaml", "one")
    write_policy(tmp_path, "b.yml", "two")
    write_policy(tmp_path, ".hidden.yaml", "three")
    (tmp_path / "bad.yaml").write_text("tenant: x\n")
    (tmp_path / "README.md").write_text("no policy")

    found = load_directory(tmp_path)

    assert list(found.policies) == ["one", "two"]
    assert list(found.errors) == [str(tmp_path / "bad.yaml")]
    assert "needs the key plugins" in str(found.errors[str(tmp_path / "bad.yaml")])


def test_two_files_of_one_tenant_are_both_errors(tmp_path: Path) -> None:
    write_module(tmp_path)
    paths = [str(write_policy(tmp_path, name)) for name in ("a.yaml", "b.yaml")]
    write_policy(tmp_path, "c.yaml", "other")

    found = load_directory(tmp_path)

    assert list(found.policies) == ["other"]
    assert list(found.errors) == paths
    for here, there in (paths, reversed(paths)):
        assert here in str(found.errors[here])
        assert there in str(found.errors[here])


def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot read the policy directory: No such file"):
        load_directory(tmp_path / "none")


def test_verify_module(tmp_path: Path) -> None:
    digest = write_module(tmp_path, data=b"\0asm1234")

    assert verify_module(ModuleRef(tmp_path / "m.wasm", digest)) == b"\0asm1234"
    with pytest.raises(ModuleRejected, match=f"has sha256 {digest}, but the policy says {SHA}"):
        verify_module(ModuleRef(tmp_path / "m.wasm", SHA))
    assert verify_module(ModuleRef(tmp_path / "m.wasm", digest), 8) == b"\0asm1234"
    with pytest.raises(ModuleRejected, match=r"is larger than 7 bytes: limits\.module_size"):
        verify_module(ModuleRef(tmp_path / "m.wasm", digest), 7)
    with pytest.raises(ModuleRejected, match="cannot be read: No such file"):
        verify_module(ModuleRef(tmp_path / "none", SHA))


def test_an_oversized_module_is_refused_without_being_kept(tmp_path: Path) -> None:
    with (tmp_path / "m.wasm").open("wb") as file:
        file.truncate(limits.MAX_MODULE_BYTES + 1)

    with pytest.raises(ModuleRejected, match="is larger than"):
        verify_module(ModuleRef(tmp_path / "m.wasm", SHA))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    policy = parse_policy(path.read_text(), str(path), module_root=None)

    assert policy.tenant == path.stem


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.yaml"))) >= 3
