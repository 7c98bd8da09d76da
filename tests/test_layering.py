"""The walls between the trust zones, read off the import statements of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sandboxd"


def module_name(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if "protos" not in path.parts}


def imported_names(source: str, module: str) -> Iterator[str]:
    """Every module that ``source`` imports, at any depth of nesting; ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, base]) if base else ".".join(parent)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


IMPORTS = {name: set(imported_names(path.read_text(), name)) for name, path in MODULES.items()}


def reached(root: str) -> dict[str, list[str]]:
    """All modules that ``root`` loads, with the chain of imports that leads there."""
    chains: dict[str, list[str]] = {}
    todo = [(root, [root])]
    while todo:
        name, chain = todo.pop()
        if name in chains:
            continue
        chains[name] = chain
        for target in IMPORTS.get(name, ()):
            parts = target.split(".")
            # Importing a.b.c runs a and a.b as well.
            todo.extend((".".join(parts[: n + 1]), [*chain, target]) for n in range(len(parts)))
    return chains


def assert_never_reached(root: str, forbidden: tuple[str, ...]) -> None:
    """Fails with the chain of imports if ``root`` loads one of ``forbidden``."""
    chains = reached(root)
    found = [chains[name] for name in chains if name in forbidden]
    assert not found, f"{root} loads what it must not: " + "; ".join(" -> ".join(chain) for chain in found)


TRUSTED = sorted(
    name
    for name in MODULES
    if name.startswith(
        (
            "sandboxd.supervisor",
            "sandboxd.front",
            "sandboxd.egress",
            "sandboxd.policy",
            "sandboxd.commands",
            "sandboxd.cli",
        )
    )
)


@pytest.mark.parametrize("root", ["sandboxd.worker.__main__", "sandboxd.compiler.__main__"])
def test_hostile_processes_load_nothing_of_the_trusted_side(root: str) -> None:
    """What runs tenants' bytes has no gRPC, no policy, no supervisor, no YAML and no pickling log handler in it."""
    assert root in MODULES
    assert_never_reached(
        root,
        (
            "grpc",
            "yaml",
            "pickle",
            "multiprocessing",
            "multiprocessing_logging",
            "envoy",
            "sandboxd.policy",
            "sandboxd.supervisor",
            "sandboxd.front",
            "sandboxd.config",
        ),
    )


@pytest.mark.parametrize("root", TRUSTED)
def test_trusted_side_never_loads_the_engine(root: str) -> None:
    """A bug in the Wasm engine cannot be in a process that holds traffic or policy."""
    assert_never_reached(root, ("wasmtime",))


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("wasmtime", ("sandboxd.vm", "sandboxd.compiler", "sandboxd.worker")),
        ("grpc", ("sandboxd.front", "sandboxd.egress")),
        ("yaml", ("sandboxd.yaml_compose", "sandboxd.yaml_nodes", "sandboxd.commands", "sandboxd.demo")),
    ],
)
def test_libraries_stay_in_their_rooms(library: str, rooms: tuple[str, ...]) -> None:
    """Each library has the rooms that may import it, so that a reader knows where to look."""
    users = {name for name, imports in IMPORTS.items() if any(i.split(".")[0] == library for i in imports)}
    assert users
    assert {name for name in users if not name.startswith(rooms)} == set()


@pytest.mark.parametrize("module", ["sandboxd.errors", "sandboxd.limits"])
def test_the_lowest_layer_leans_on_nothing(module: str) -> None:
    """Errors and limits may be imported by everybody, so they import nobody."""
    assert not {i for i in IMPORTS[module] if i.startswith("sandboxd") and i != "sandboxd.limits"}


@pytest.mark.parametrize("layer", ["sandboxd.policy", "sandboxd.channel", "sandboxd.exchange", "sandboxd.jail"])
def test_the_pure_layers_do_not_look_up(layer: str) -> None:
    """Policy, channel, exchange and jail know nothing of the processes that use them."""
    above = (
        "sandboxd.worker",
        "sandboxd.supervisor",
        "sandboxd.front",
        "sandboxd.client",
        "sandboxd.cli",
        "sandboxd.commands",
    )
    for name in MODULES:
        if name.startswith(layer):
            assert not {i for i in IMPORTS[name] if i.startswith(above)}, name


def test_a_client_loads_the_channel_and_the_policy_alone() -> None:
    """Programs import `sandboxd.client` into their own process, whatever else of sandboxd is installed."""
    rooms = (
        "sandboxd.client",
        "sandboxd.channel",
        "sandboxd.exchange",
        "sandboxd.policy",
        "sandboxd.errors",
        "sandboxd.limits",
    )
    found = {name: chain for name, chain in reached("sandboxd.client").items() if name.startswith("sandboxd.")}
    assert "sandboxd.client.asgi" in found
    outside = {name: chain for name, chain in found.items() if not name.startswith(rooms)}
    assert not outside
    assert_never_reached("sandboxd.client", ("grpc", "wasmtime", "yaml", "google", "envoy"))


def test_the_check_sees_a_forbidden_import() -> None:
    """The harmless twin: a module that does import gRPC is found through a chain."""
    IMPORTS["sandboxd.zz_twin"] = {"sandboxd.zz_inner"}
    IMPORTS["sandboxd.zz_inner"] = {"grpc.aio"}
    try:
        with pytest.raises(AssertionError, match=r"zz_twin -> sandboxd.zz_inner -> grpc"):
            assert_never_reached("sandboxd.zz_twin", ("grpc",))
    finally:
        del IMPORTS["sandboxd.zz_twin"], IMPORTS["sandboxd.zz_inner"]
