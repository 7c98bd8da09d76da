"""The filter files of an installation: found, read once, and built for each worker. Trusted side only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandboxd.errors import ConfigError
from sandboxd.jail.filters import Filter, build, load_filter
from sandboxd.jail.full_plan import Programs

_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "seccomp", _HERE.parents[1] / "policies" / "seccomp")
"""Beside the package, where a build puts a copy; in a checkout, where they are kept."""


@dataclass(frozen=True, slots=True)
class FilterSet:
    """The parsed files."""

    worker: Filter
    no_new_exec: Filter
    waiter: Filter

    def build(self, architecture: str, control_fd: int, waiter_pid: int) -> Programs:
        """
        Return the programs for one worker.

        Args:
            architecture: ``x86_64`` or ``aarch64``.
            control_fd: the worker's control socket, by its number in the worker.
            waiter_pid: pid of the process that was started for the worker, which becomes its waiter.

        Raises:
            ConfigError: a filter needs a parameter that there is not, or the architecture is unknown.
        """
        return Programs(
            build(self.worker, architecture, {"control": control_fd}),
            build(self.no_new_exec, architecture),
            build(self.waiter, architecture, {"pid": waiter_pid}),
        )


def filter_directory() -> Path:
    """Return where the filter files are. Raises ConfigError if the installation has none."""
    for place in _PLACES:
        if (place / "worker.json").is_file():
            return place
    places = " and ".join(str(place) for place in _PLACES)
    raise ConfigError(f"no seccomp filters found; looked in {places}")


def load_filters(directory: Path | None = None) -> FilterSet:
    """Read the filter files. Raises ConfigError."""
    place = directory or filter_directory()
    return FilterSet(*(load_filter(place / f"{name}.json") for name in ("worker", "no_new_exec", "waiter")))
