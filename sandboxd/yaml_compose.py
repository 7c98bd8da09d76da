"""
An operator's YAML text to nodes that `sandboxd.yaml_nodes` reads.

Composes nodes, never constructs objects: nothing in the file can make Python do anything. Anchors and aliases are
refused, nesting and size are bounded. Pure; used by whatever reads a file: `sandboxd.policy.load`,
`sandboxd.config_file`, `sandboxd.commands.read_cases`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from sandboxd import limits
from sandboxd.yaml_nodes import Source, Value


def compose(text: str, source: Source) -> Value:
    """
    Parse one YAML document.

    Raises:
        OperatorError: of the source's kind; the file is too large, is not YAML, or uses what is refused.
    """
    if len(text.encode("utf-8", "surrogatepass")) > limits.MAX_POLICY_FILE_BYTES:
        raise source.fail(f"is larger than {limits.MAX_POLICY_FILE_BYTES} bytes")
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"is not valid YAML: {_without_quotes(error.problem or error.context or 'unknown')}"
        # `from None`: PyYAML's own text shows the line, which may hold a secret.
        raise source.fail(problem, line=mark.line + 1 if mark else 0) from None
    except yaml.YAMLError:
        raise source.fail("is not valid YAML: it holds characters that YAML does not allow") from None
    if node is None:
        raise source.fail("is empty")
    return Value(node, "", source)


def _compose(text: str) -> yaml.Node | None:
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _without_quotes(problem: str) -> str:
    """Cut quoted text of the file from a parser's message; punctuation and ``'<scalar>'`` stay."""

    def cut(match: re.Match[str]) -> str:
        inside = match[0][1:-1]
        return match[0] if len(inside) <= 1 or inside.startswith("<") else "'...'"

    return re.sub(r"'[^']*'|\"[^\"]*\"", cut, problem)


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes only; refuses what can multiply work or hide a key."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.events.AliasEvent):
            raise _refused(event, "YAML aliases are not supported")
        if getattr(event, "anchor", None) is not None:
            raise _refused(event, "YAML anchors are not supported")
        if self._depth >= limits.MAX_YAML_DEPTH:
            raise _refused(event, f"is nested deeper than {limits.MAX_YAML_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _refused(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
