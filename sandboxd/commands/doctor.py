"""``sandboxd doctor``: which layers of the jail this machine gives, each proven by trying to break it."""

from __future__ import annotations

import argparse

from sandboxd.commands.common import Subparsers, add_config_arguments, config_of, layers_of


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="try to break out of the jail that workers get here",
        description="Put processes into the jail that workers get on this machine, have them try to break out, and "
        "show for each layer whether it holds. Run it as the user that runs the daemon. Exit status 1 if something "
        "got through, or if a layer is missing that every worker needs.",
    )
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--quick", action="store_true", help="only attack the whole jail, as the daemon does at its start"
    )
    parser.add_argument(
        "--tolerate",
        metavar="LAYER,...",
        help="layers that may be missing (default: jail.tolerate of the daemon's file)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the doctor in this process, which has one thread."""
    # Only here: other commands need not load it.
    from sandboxd.doctor.__main__ import main  # noqa: PLC0415

    config = config_of(args)
    tolerate = ",".join(config.jail.tolerate if args.tolerate is None else sorted(layers_of(args.tolerate)))
    arguments = ["--uid", str(config.worker.uid_base), "--tolerate", tolerate]
    arguments += [f"--{name}" for name in ("json", "quick") if getattr(args, name)]
    return main(arguments)
