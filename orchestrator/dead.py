"""``python -m orchestrator dead``: the messages that were given up, why, and another life for them."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable

from orchestrator.clients.queues import ATTEMPTS, ERROR, FIRST_DEATH, ORIGIN, REASON, Delivery, Queues, replay_headers
from orchestrator.clients.rabbitmq import Broker

DESCRIPTION = """
Jobs that were given up, and webhooks that the backend refused for good, lie in the dead queue with the
reason. Looking at them changes nothing, not even their order.

ID is what `list` prints in its first column, a task_id or a generation_id. A replayed job starts with
its attempts uncounted; a replayed webhook is sent again. A message leaves the dead queue only once the
broker has confirmed its copy, so an interrupted replay can at worst leave it in both.
"""
MAX_PRINTED_BODY_BYTES = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | show | replay | purge")
    actions.add_parser("list", help="one line per message, oldest first")
    show = actions.add_parser("show", help="headers and body of one message")
    show.add_argument("id", metavar="ID")
    replay = actions.add_parser("replay", help="put messages back where they came from")
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("id", metavar="ID", nargs="?")
    which.add_argument("--all", action="store_true", help="every message that is there now")
    purge = actions.add_parser("purge", help="remove every message for good")
    purge.add_argument("--yes", action="store_true", help="do it; without, only their number is printed")


def run(args: argparse.Namespace, broker: Broker) -> int:
    """Does what was asked on a broker that is not started yet; 1 where there was nothing to do it to."""
    if args.action == "list":
        return _list(broker)
    if args.action == "show":
        return _show(broker, args.id)
    if args.action == "purge":
        return _purge(broker, confirmed=args.yes)
    broker.start()
    try:
        return _replay(broker, args.id)
    finally:
        broker.close()


def _list(broker: Broker) -> int:
    row = "{:<14} {:>13}  {:<24} {:>8}  {:<25} {:>11}  {}\n".format
    count = 0
    with broker.browse(broker.queues.dead) as browser:
        for dead in browser:
            if count == 0:
                sys.stdout.write(row("ID", "GENERATION", "REASON", "ATTEMPTS", "FIRST DEATH", "SIZE (bytes)", "ERROR"))
            count += 1
            told = [_line(dead.headers.get(name, "-")) for name in (REASON, ATTEMPTS, FIRST_DEATH)]
            error = _line(dead.headers.get(ERROR, "-"))[:80]
            sys.stdout.write(row(short_id(dead), _field(dead, "generation_id"), *told, len(dead.body), error))
    sys.stdout.write(f"{count} in {broker.queues.dead}\n")
    return 0


def _show(broker: Broker, wanted: str) -> int:
    with broker.browse(broker.queues.dead) as browser:
        for dead in browser:
            if _is(dead, wanted):
                sys.stdout.write("".join(f"{_line(n)}: {_line(v)}\n" for n, v in sorted(dead.headers.items())))
                sys.stdout.write(f"message_id: {_line(dead.message_id)}\n\n{_readable(dead.body)}\n")
                return 0
    return _not_found(broker.queues, wanted)


def _replay(broker: Broker, wanted: str | None) -> int:
    chosen: Callable[[Delivery], bool] = lambda dead: wanted is None or _is(dead, wanted)  # noqa: E731
    count = 0
    with broker.browse(broker.queues.dead) as browser:
        for dead in filter(chosen, browser):
            target = _origin(dead, broker.queues)
            message_id = dead.message_id or short_id(dead)
            broker.publish(target, dead.body, message_id=message_id, headers=replay_headers(dead))
            browser.remove(dead)
            count += 1
            sys.stdout.write(f"{short_id(dead)} was put back into {target}\n")
    if count == 0 and wanted is not None:
        return _not_found(broker.queues, wanted)
    sys.stdout.write(f"{count} replayed\n")
    return 0


def _purge(broker: Broker, *, confirmed: bool) -> int:
    dead = broker.queues.dead
    if not confirmed:
        sys.stdout.write(f"{broker.depth(dead)} messages would be removed from {dead}; repeat with --yes to do it\n")
        return 1
    with broker.browse(dead) as browser:
        sys.stdout.write(f"{browser.purge()} removed from {dead}\n")
    return 0


def short_id(dead: Delivery) -> str:
    """The message's id, or, since publishers need not give one, its task's, or twelve digits of its body's hash."""
    return _line(dead.message_id or _field(dead, "task_id", hashlib.sha256(dead.body).hexdigest()[:12]))


def _is(dead: Delivery, wanted: str) -> bool:
    return wanted in (short_id(dead), _field(dead, "task_id"), _field(dead, "generation_id"))


def _origin(dead: Delivery, queues: Queues) -> str:
    """Only queues of ours: the header may have been written by anybody who can publish."""
    return queues.events if dead.headers.get(ORIGIN) == queues.events else queues.work


def _field(dead: Delivery, name: str, default: str = "-") -> str:
    """A field at the top of the body or in its ``data``; ``default`` where there is none to be read."""
    try:
        document = json.loads(dead.body)
    except (ValueError, RecursionError):
        return default
    for level in (document, document.get("data") if isinstance(document, dict) else None):
        if isinstance(level, dict) and isinstance(level.get(name), str | int):
            return _line(level[name])
    return default


def _line(value: object) -> str:
    """One line that a terminal shows and does not obey; whoever can publish chose the characters."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))


def _readable(body: bytes) -> str:
    try:
        text = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = body.decode(errors="backslashreplace")
    text = "\n".join(map(_line, text.split("\n")))
    if len(text) <= MAX_PRINTED_BODY_BYTES:
        return text
    return f"{text[:MAX_PRINTED_BODY_BYTES]}\n... ({len(body)} bytes in all)"


def _not_found(queues: Queues, wanted: str) -> int:
    sys.stdout.write(f"no message {wanted} in {queues.dead}; `dead list` shows what is there\n")
    return 1
