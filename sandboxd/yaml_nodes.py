"""
Typed reading of an operator's YAML file, with errors that name file, line, key and what is allowed.

Works on the nodes of `sandboxd.yaml_compose`, never on constructed objects. Merge keys, tags, duplicate keys and
non-string keys are refused. Pure.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import yaml

from sandboxd import limits
from sandboxd.errors import OperatorError
from sandboxd.quantities import DURATION, SIZE, WITH_UNIT, Quantity, scaled

_TAG = "tag:yaml.org,2002:"
_KINDS = {"str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean", "null": "empty"}

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True, slots=True)
class Source:
    """The file being read: its name for error texts, and the kind of error that it raises."""

    path: str
    error: type[OperatorError]

    def fail(self, problem: str, *, line: int = 0, key: str = "", allowed: tuple[str, ...] = ()) -> OperatorError:
        """Return (not raise) the error for a place in this file."""
        return self.error(problem, path=self.path, line=line, key=key, allowed=allowed)


@dataclass(frozen=True, slots=True)
class Value:
    """One node and its place. Every reader raises the source's error if the node is of another kind."""

    node: yaml.Node
    key: str
    source: Source

    @property
    def line(self) -> int:
        """Line number from 1."""
        return int(self.node.start_mark.line) + 1

    def fail(self, problem: str, allowed: Iterable[str] = ()) -> OperatorError:
        """Return (not raise) the error for this place."""
        return self.source.fail(problem, line=self.line, key=self.key, allowed=tuple(allowed))

    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    def is_sequence(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    def is_null(self) -> bool:
        return self._scalar_kind() == "null"

    def _scalar_kind(self) -> str:
        """Return YAML's name of a scalar's type; ``""`` for a collection or an unknown tag."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.tag.startswith(_TAG):
            return ""
        return str(self.node.tag.removeprefix(_TAG))

    def _kind(self) -> str:
        if self.is_mapping():
            return "a mapping"
        if self.is_sequence():
            return "a list"
        return _KINDS.get(self._scalar_kind(), "a value with a YAML tag")

    # --- collections ---

    def section(self, allowed: Iterable[str]) -> Section:
        """Read a mapping whose keys are known. Unknown keys are errors."""
        return Section(self, self.mapping(known=tuple(allowed)))

    def mapping(self, known: tuple[str, ...] | None = None) -> dict[str, Value]:
        """Read a mapping in the file's order. Duplicate, non-string and unknown keys are errors."""
        if not isinstance(self.node, yaml.MappingNode) or self.node.tag != _TAG + "map":
            raise self.fail(f"must be a mapping, but is {self._kind()}", known or ())
        found: dict[str, Value] = {}
        for key_node, value_node in self.node.value:
            name = self._key_name(key_node)
            place = Value(value_node, f"{self.key}.{name}" if self.key else name, self.source)
            at_key = Value(key_node, place.key, self.source)
            if name in found:
                raise at_key.fail(f"is given twice, first in line {found[name].line}")
            if known is not None and name not in known:
                raise at_key.fail(f"is not a known key{did_you_mean(name, known)}", known)
            found[name] = place
        return found

    def _key_name(self, key_node: yaml.Node) -> str:
        at_key = Value(key_node, self.key, self.source)
        if at_key._scalar_kind() != "str":
            kind = "a merge key" if at_key._scalar_kind() == "merge" else at_key._kind()
            raise at_key.fail(f"keys must be strings (quote it), but one is {kind}")
        return at_key.string(empty=True)

    def items(self, *, most: int) -> list[Value]:
        """Read a list."""
        if not isinstance(self.node, yaml.SequenceNode) or self.node.tag != _TAG + "seq":
            raise self.fail(f"must be a list, but is {self._kind()}")
        if len(self.node.value) > most:
            raise self.fail(f"has {len(self.node.value)} entries, at most {most} are allowed")
        nodes = enumerate(self.node.value)
        return [Value(node, f"{self.key}[{index}]", self.source) for index, node in nodes]

    # --- scalars ---

    def string(self, *, empty: bool = False) -> str:
        """Read a string. A bare ``8080`` or ``yes`` is not one: YAML has already made it something else."""
        if self._scalar_kind() != "str":
            hint = " (put it in quotes)" if self._scalar_kind() in _KINDS else ""
            raise self.fail(f"must be a string, but is {self._kind()}{hint}")
        if not self.node.value and not empty:
            raise self.fail("must not be empty")
        return self._text()

    def raw(self) -> str:
        """Read a scalar's text as written, whatever YAML takes it for: a digest may look like a number."""
        if self._scalar_kind() not in _KINDS:
            raise self.fail(f"must be a string, but is {self._kind()}")
        return self._text()

    def _text(self) -> str:
        text = str(self.node.value)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise self.fail("holds half of a surrogate pair, which is not text") from None
        return text

    def boolean(self) -> bool:
        if self._scalar_kind() != "bool":
            raise self.fail(f"must be a boolean, but is {self._kind()}", ("true", "false"))
        return str(self.node.value).lower() in ("true", "yes", "on")

    def integer(self, least: int, most: int) -> int:
        number = self._int() if self._scalar_kind() == "int" else None
        if number is None or not least <= number <= most:
            raise self.fail("must be an integer", (f"{least} to {most}",))
        return number

    def number(self, least: float, most: float) -> float:
        kind = self._scalar_kind()
        number = self._float() if kind == "float" else self._int() if kind == "int" else None
        if number is None or not least <= number <= most:
            raise self.fail("must be a number", (f"{least:g} to {most:g}",))
        return float(number)

    def _int(self) -> int | None:
        try:
            return int(_CONSTRUCTOR.construct_yaml_int(cast(yaml.ScalarNode, self.node)))
        except ValueError:  # a number of more digits than Python converts, or YAML 1.1's stranger forms
            return None

    def _float(self) -> float | None:
        try:
            number = float(_CONSTRUCTOR.construct_yaml_float(cast(yaml.ScalarNode, self.node)))
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def choice(self, choices: Iterable[Choice]) -> Choice:
        """Read one of a few words."""
        by_text = {str(choice): choice for choice in choices}
        text = self.raw() if self._scalar_kind() in _KINDS else None
        if text not in by_text:
            shown = f"{_shown(text)} is not one of the allowed values" if text else "must be one word"
            raise self.fail(shown + (did_you_mean(text, by_text) if text else ""), by_text)
        return by_text[text]

    def duration_ns(self, least: int, most: int) -> int:
        """Read a duration such as ``5ms`` in nanoseconds."""
        return self._quantity(DURATION, least, most)

    def duration_ms(self, least: int, most: int) -> int:
        """Read a duration such as ``1s`` in whole milliseconds; the bounds are milliseconds too."""
        value = self.duration_ns(least * limits.MS_NS, most * limits.MS_NS)
        if value % limits.MS_NS:
            raise self.fail("must be a whole number of milliseconds")
        return value // limits.MS_NS

    def size(self, least: int, most: int) -> int:
        """Read a size such as ``32MiB`` in bytes."""
        return self._quantity(SIZE, least, most)

    def _quantity(self, quantity: Quantity, least: int, most: int) -> int:
        what, units, show = quantity.what, quantity.units, quantity.show
        form = f"a number with one of {' '.join(units)}, such as {quantity.example}"
        if self._scalar_kind() not in _KINDS:
            raise self.fail(f"must be {what}, but is {self._kind()}", (form,))
        text = self._text()
        match = WITH_UNIT.fullmatch(text)
        if match is None or match[2] not in units:
            raise self.fail(f"{_shown(text)} is not {what}", (form,))
        value = scaled(match[1], units[match[2]])
        if value is None:
            raise self.fail(f"{_shown(text)} is finer than {what} can be", (form,))
        if not least <= value <= most:
            raise self.fail(f"{_shown(text)} is out of range", (f"{show(least)} to {show(most)}",))
        return value

    # --- any YAML, as JSON ---

    def json_bytes(self) -> bytes:
        """
        Read a plugin's configuration: a string as it is, nothing as no bytes, anything else as compact JSON.

        Error texts name keys alone, never values.
        """
        kind = self._scalar_kind()
        if kind == "null":
            return b""
        text = self.string(empty=True) if kind == "str" else self._json()
        data = text.encode("utf-8")
        if len(data) > limits.MAX_CONFIGURATION_BYTES:
            raise self.fail(f"is {len(data)} bytes, at most {limits.MAX_CONFIGURATION_BYTES} are allowed")
        return data

    def _json(self) -> str:
        return json.dumps(self._plain(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def _plain(self) -> Any:
        if self.is_mapping():
            return {name: value._plain() for name, value in self.mapping().items()}
        if self.is_sequence():
            return [value._plain() for value in self.items(most=limits.MAX_POLICY_FILE_BYTES)]
        match self._scalar_kind():
            case "str" | "timestamp":  # JSON has no dates: a date stays what was written
                return self._text()
            case "null":
                return None
            case "bool":
                return self.boolean()
            case "int" | "float" as kind:
                number = self._int() if kind == "int" else self._float()
                if number is None:
                    raise self.fail("is a number that JSON cannot hold (put it in quotes)")
                return number
        raise self.fail("has a YAML tag, which JSON cannot hold")


_CONSTRUCTOR = yaml.constructor.SafeConstructor()


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with known keys."""

    place: Value
    values: dict[str, Value]

    def get(self, name: str) -> Value | None:
        return self.values.get(name)

    def need(self, name: str) -> Value:
        """Return a value that must be there."""
        if name not in self.values:
            raise self.place.fail(f"needs the key {name}")
        return self.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` if one of the known words is close, else nothing."""
    close = difflib.get_close_matches(word[:100], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _shown(text: str | None) -> str:
    """Quote a short value for an error text."""
    return repr(text if text is None or len(text) <= 40 else text[:40] + "...")
