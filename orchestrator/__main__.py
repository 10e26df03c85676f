"""``python -m orchestrator COMMAND``: every command is a module with ``add_arguments`` and ``run``."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from orchestrator import __version__
from orchestrator.config import Settings, from_environ
from orchestrator.errors import ConfigError, Refused, RemarqueError

DESCRIPTION = """
Remarque makes Stable Diffusion pictures through NVIDIA Triton and signs them for their artists.
"""
FAILED, WRONG, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True, slots=True)
class Command:
    """One command's arguments and what runs it."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], int]


# Each loads only what it needs: with the service's libraries a picture would start half a second later.
def _generate() -> Command:
    from orchestrator import app, orders

    return Command(orders.add_arguments, app.generate)


def _work() -> Command:
    from orchestrator import work

    return Command(work.add_arguments, lambda args, settings: work.run(settings))


def _serve() -> Command:
    from orchestrator import serve

    return Command(serve.add_arguments, lambda args, settings: serve.run(settings))


def _evaluate() -> Command:
    from orchestrator import evaluate

    return Command(evaluate.add_arguments, evaluate.run)


def _dead() -> Command:
    from orchestrator import dead, service

    return Command(dead.add_arguments, lambda args, settings: dead.run(args, service.build_broker(settings)))


def _inspect() -> Command:
    from orchestrator import inspect

    return Command(inspect.add_arguments, lambda args, settings: inspect.run(args))


def _style() -> Command:
    from orchestrator import style

    return Command(style.add_arguments, style.run)


COMMANDS: Mapping[str, tuple[str, Callable[[], Command]]] = {
    "generate": ("make pictures from a prompt or a message", _generate),
    "work": ("run the service, from the queue to the webhook", _work),
    "serve": ("serve virtual staging over HTTP", _serve),
    "evaluate": ("stage a curated set and report how good the pictures are", _evaluate),
    "dead": ("look at messages that were given up, and replay them", _dead),
    "inspect": ("print what a picture says about itself", _inspect),
    "style": ("print what a style file is, and whether it fits", _style),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence; the page is under ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message} (--help says more)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code: 0 done, 1 failed, 2 the request or a setting is wrong, 130 stopped by Ctrl-C."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        name = next((word for word in words if word in COMMANDS), None)
        command = None if name is None else COMMANDS[name][1]()
        args = _parser(name, command).parse_args(words)
        assert command is not None, "argparse leaves where no command is named"
        return command.run(args, from_environ(os.environ))
    except RemarqueError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG if isinstance(error, Refused | ConfigError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser(chosen: str | None, command: Command | None) -> argparse.ArgumentParser:
    """Knows every command's name and the arguments of the chosen one."""
    parser = _Parser(prog="python -m orchestrator", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"Remarque {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (line, _) in COMMANDS.items():
        added = commands.add_parser(name, help=line)
        if name == chosen and command is not None:
            command.add_arguments(added)
    return parser


if __name__ == "__main__":
    sys.exit(main())
