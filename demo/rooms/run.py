"""`make staging`: a room that no training saw, furnished through the staging service and a real Triton.

With `--report OUT` the whole set of `orchestrator evaluate` is staged and scored instead (`make staging-report`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from demo.rooms.rooms import room_of
from demo.rooms.view import render
from demo.run import LOGS, ROOT, STATE, say, start, stop
from local.triton import LocalTriton
from orchestrator.clients.staging import StagingClient
from orchestrator.errors import RemarqueError, ServiceError

MODELS = STATE / "rooms"
STORE = STATE / "staging"
LOG = LOGS / "staging.log"
TOKEN = "staging-demo-token"
ROOM = 900_011
SIZE_PX = 1152, 768
PATIENCE_S = 300.0
SETTINGS = {
    # The demo's ControlNets were trained at full say, from the first step to the last.
    "STAGING_CONTROL_DEPTH_SCALE": "1",
    "STAGING_CONTROL_CANNY_SCALE": "1",
    "STAGING_CONTROL_END": "1",
    # Its captions were seldom wrong in training, so that 6 drives its colours out of gamut.
    "STAGING_GUIDANCE_SCALE": "3",
    "STAGING_STYLE_SCORES": str(ROOT / "demo" / "rooms" / "style_scores.json"),
    "STAGING_WORKING_PX": "768",
    # The photograph is larger: what was painted is enlarged to its size, all else is the photograph's own.
    "UPSCALE_ENABLED": "true",
    "STAGING_UPSCALE_TIERS": "free",
    "STAGING_DEADLINE_SECONDS": str(int(PATIENCE_S)),
    "STAGING_FALLBACK": "refuse",
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, metavar="OUT", help="stage and score the whole set")
    report: Path | None = parser.parse_args().report
    try:
        return stage() if report is None else evaluate(report)
    except RemarqueError as error:
        print(f"No room was staged: {error}", file=sys.stderr)
        return 1


def evaluate(out: Path) -> int:
    """Stages and scores the set; 1 where too few rooms pass."""
    with LocalTriton(MODELS) as triton:
        command = [sys.executable, "-m", "orchestrator", "evaluate", "--out", str(out.resolve())]
        return subprocess.run(command, cwd=ROOT, env=os.environ | settings(triton.http_url), check=False).returncode


def stage() -> int:
    """Stages one room; 0 when the picture is there."""
    begun_s = time.monotonic()
    shutil.rmtree(STORE, ignore_errors=True)
    room = room_of(ROOM)
    original = STORE / "uploads" / "room.png"
    original.parent.mkdir(parents=True)
    Image.fromarray(render(room, *SIZE_PX, furnished=False).picture).save(original)
    wanted = {
        "image_id": "room-1",
        "original_key": "uploads/room.png",
        "room_type": room.room_type,
        "style": room.style,
    }
    with ExitStack() as ending:
        triton = ending.enter_context(LocalTriton(MODELS))
        say(begun_s, "Triton is up with SDXL's networks, two ControlNets and a depth network")
        service = start_service(triton.http_url)
        ending.callback(stop, service)
        client = StagingClient(address(service), token=TOKEN)
        say(begun_s, f"POST /infer: a {room.room_type.replace('_', ' ')}, {room.style}")
        answer = client.infer(wanted, deadline_s=PATIENCE_S)
    say(begun_s, f"staged in {answer['duration_ms'] / 1000:.1f} s: {answer['staged_key']}")
    for warning in answer.get("warnings", []):
        say(begun_s, f"warning: {warning}")
    show(original, STORE / answer["staged_key"])
    return 0


def settings(triton_url: str) -> dict[str, str]:
    """What staging by the demo's networks takes from the environment."""
    return {
        "INFERENCE_MODE": "self",
        "TRITON_URL": triton_url,
        "MODEL_REPOSITORY": str(MODELS),
        "DEVELOPMENT_KEY_FOLDER": str(STATE / "development-key"),
        **SETTINGS,
    }


def start_service(triton_url: str) -> subprocess.Popen[bytes]:
    """`python -m orchestrator serve`, as an operator starts it, with its log in a file."""
    clients = STORE / "clients.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    clients.write_text(f'[demo]\ntoken_sha256 = "{digest}"\ntiers = ["free"]\nprefixes = ["uploads/"]\n')
    served = {
        "RESULT_STORE": STORE.as_uri(),
        "STAGING_CLIENTS_FILE": str(clients),
        "HTTP_ADDRESS": "127.0.0.1:0",
    }
    return start("serve", settings(triton_url) | served, LOG)


def address(service: subprocess.Popen[bytes]) -> str:
    """Where the service answers, as its log says.

    Raises:
        ServiceError: it ended, or said nothing in half a minute.
    """
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s and service.poll() is None:
        if found := re.search(r"staging with self on (http://[\w.:]+)", LOG.read_text(errors="replace")):
            return found[1]
        time.sleep(0.1)
    raise ServiceError(f"the service did not start; its log is {os.path.relpath(LOG)}")


def show(original: Path, staged: Path) -> None:
    """Before and after side by side, and how much of the photograph is still the photograph's own."""
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (original, staged))
    both = STORE / "before-after.png"
    Image.fromarray(np.concatenate([before, after], axis=1)).save(both)
    same = float((before == after).all(axis=2).mean())
    print(f"\nUntouched to the byte: {100 * same:.1f} % of the pixels")
    print(f"Before and after: {os.path.relpath(both)}")


if __name__ == "__main__":
    sys.exit(main())
