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
from urllib.parse import quote, unquote, urlsplit

TIMEOUT_S = 10.0


def apply(url: str, policies: Path) -> int:
    """Write every policy of the file; how many there were."""
    parts = urlsplit(url)
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    host = parts.netloc.rpartition("@")[2]
    vhost = quote(unquote(parts.path[1:]) or "/", safe="")
    wanted = json.loads(policies.read_text(encoding="utf-8"))
    for policy in wanted:
        body = {key: policy[key] for key in ("pattern", "apply-to", "priority", "definition")}
        request = urllib.request.Request(
            f"{parts.scheme}://{host}/api/policies/{vhost}/{quote(policy['name'])}",
            data=json.dumps(body).encode(),
            method="PUT",
            headers={
                "Authorization": "Basic " + base64.b64encode(credentials).decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            print(f"{policy['name']}: {policy['pattern']} {json.dumps(policy['definition'])}")
    return len(wanted)


def main() -> int:
    """0 when every policy stands; else 1 and the broker's reason."""
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("RABBITMQ_MANAGEMENT_URL", "")
    if not url:
        print(
            "no address: RABBITMQ_MANAGEMENT_URL or an argument like http://USER:PASSWORD@HOST:15672/", file=sys.stderr
        )
        return 1
    try:
        apply(url, Path(__file__).with_name("policies.json"))
    except urllib.error.HTTPError as error:
        print(f"{error.url} was answered {error.code}: {error.read(300).decode(errors='replace')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the broker's management API cannot be reached: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
