"""
``sandboxd COMMAND ...``: arguments to a command, its outcome to an exit status. Nothing else.

Exit status: 0 all is well; 1 findings, or an expectation was not met; 2 wrong usage, or a file of the
operator that cannot be accepted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import sandboxd
from sandboxd.commands import ALL
from sandboxd.errors import OperatorError, SandboxdError

EXIT_FINDINGS = 1
EXIT_USAGE = 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="sandboxd",
        description="Runs Proxy-Wasm filters of many tenants in processes of their own, outside the proxy.",
        epilog="Exit status: 0 all is well, 1 findings or failed expectations, 2 usage or configuration error.",
    )
    top.add_argument("--version", action="version", version=f"sandboxd {sandboxd.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in ALL:
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status."""
    args = parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except OperatorError as error:
        return _fail(error, EXIT_USAGE)
    except SandboxdError as error:
        return _fail(error, EXIT_FINDINGS)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `sandboxd status | head`: nobody reads on, and the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _fail(error: SandboxdError, status: int) -> int:
    print(f"sandboxd: error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
