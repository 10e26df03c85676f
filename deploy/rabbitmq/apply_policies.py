"""Puts policies.json into a RabbitMQ through its management API; safe to repeat, and says what it did.

    python apply_policies.py http://USER:PASSWORD@HOST:15672/VHOST

or with the address in RABBITMQ_MANAGEMENT_URL, which keeps the password out of the process list. Only the standard
library is used, so any Python image can run it.
"""

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

TIMEOUT_S = 10.0


class Management:
    """The API of one broker, for one virtual host."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        self._authorization = "Basic " + base64.b64encode(credentials).decode()
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/api"
        self.vhost = quote(unquote(parts.path[1:]) or "/", safe="")

    def call(self, method: str, path: str, document: object = None) -> Any:
        """The answer's JSON, None where there is none."""
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self._base + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            said = answer.read()
        return json.loads(said) if said else None


def apply(management: Management, policies: Path) -> None:
    """Write every policy of the file that this broker's version knows."""
    version: str = management.call("GET", "/overview")["rabbitmq_version"]
    for policy in json.loads(policies.read_text(encoding="utf-8")):
        if _numbers(version) < _numbers(policy.get("since", "0")):
            print(f"{policy['name']}: not needed before RabbitMQ {policy['since']}; this is {version}")
            continue
        body = {key: policy[key] for key in ("pattern", "apply-to", "priority", "definition")}
        management.call("PUT", f"/policies/{management.vhost}/{quote(policy['name'])}", body)
        print(f"{policy['name']}: {policy['pattern']} {json.dumps(policy['definition'])}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def main() -> int:
    """0 when every policy stands; else 1 and the broker's reason."""
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("RABBITMQ_MANAGEMENT_URL", "")
    if not url:
        print(
            "no address: RABBITMQ_MANAGEMENT_URL or an argument like http://USER:PASSWORD@HOST:15672/", file=sys.stderr
        )
        return 1
    try:
        apply(Management(url), Path(__file__).with_name("policies.json"))
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(300).decode(errors="replace").strip()
        print(f"{error.url} was answered {error.code}: {said}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the broker's management API cannot be reached: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
