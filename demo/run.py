"""`make demo`: the whole service on this machine, from a message in the queue to a signed picture and its webhooks."""

import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika

from local.rabbitmq import private_rabbitmq
from local.receiver import Receiver
from local.triton import LocalTriton
from orchestrator.errors import ServiceError

ROOT = Path(__file__).resolve().parents[1]
STATE = Path(os.environ.get("REMARQUE_STATE", ".remarque")).resolve()
LOGS = STATE / "logs"
TOKEN = "demo-token"
PATIENCE_S = 600.0
Heard = tuple[str, dict[str, Any]]


def main() -> int:
    """Runs the demo; 0 when the picture is there."""
    begun_s = time.monotonic()
    results = STATE / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
    try:
        with ExitStack() as ending:
            broker = ending.enter_context(private_rabbitmq())
            say(begun_s, "RabbitMQ is up")
            triton = ending.enter_context(LocalTriton(STATE / "models"))
            say(begun_s, "Triton is up with text_encoder, unet, vae_decoder and vae_encoder")
            receiver = ending.enter_context(Receiver(TOKEN, lambda kind, body: heard.put((kind, body))))
            worker = start_worker(broker.url, triton.http_url, receiver.url, results)
            ending.callback(stop, worker)
            message = demo_message()
            publish(broker.url, message)
            say(
                begun_s, f"published to image_generation: {message['data']['prompt']!r}, seed {message['data']['seed']}"
            )
            outcome = follow(heard, worker, begun_s)
    except ServiceError as error:
        print(f"The demo cannot start: {error}", file=sys.stderr)
        return 1
    if outcome is None or "result_url" not in outcome:
        print("The demo made no picture; the worker's log is .remarque/logs/worker.log", file=sys.stderr)
        return 1
    show(results / "generations" / "gen-1.png")
    return 0


def start_worker(broker_url: str, triton_url: str, backend_url: str, results: Path) -> subprocess.Popen[bytes]:
    """`python -m orchestrator work`, as an operator starts it, with its log in a file."""
    settings = {
        "RABBITMQ_URL": broker_url,
        "TRITON_URL": triton_url,
        "MODEL_REPOSITORY": str(STATE / "models"),
        "RESULT_STORE": results.as_uri(),
        "ALLOWED_INPUT_PREFIXES": f"{ROOT.as_uri()}/demo/",
        "BACKEND_URL": backend_url,
        "INTERNAL_API_TOKEN": TOKEN,
        "HTTP_ADDRESS": "127.0.0.1:0",
        "DEVELOPMENT_KEY_FOLDER": str(STATE / "development-key"),
    }
    return start("work", settings, LOGS / "worker.log")


def start(command: str, settings: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """`python -m orchestrator COMMAND` with these settings, what it says in a file."""
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", command], cwd=ROOT, stderr=file, env=os.environ | settings
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """The orderly way."""
    process.terminate()
    process.wait(timeout=60)


def demo_message() -> dict[str, Any]:
    """`demo/message.json` as a publisher writes it; the signature's path is made absolute for this checkout."""
    message: dict[str, Any] = json.loads((ROOT / "demo" / "message.json").read_text())
    message["data"]["signature_path"] = (ROOT / message["data"]["signature_path"]).as_uri()
    return message


def publish(broker_url: str, message: Mapping[str, Any]) -> None:
    """What every existing publisher does: declare without arguments, publish persistent to the default exchange."""
    with pika.BlockingConnection(pika.URLParameters(broker_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("image_generation", durable=True)
        channel.basic_publish(
            "", "image_generation", json.dumps(message).encode(), pika.BasicProperties(delivery_mode=2)
        )


def follow(heard: "queue.SimpleQueue[Heard]", worker: subprocess.Popen[bytes], begun_s: float) -> dict[str, Any] | None:
    """Print the webhooks as they come; the terminal one, or None where none can come any more."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and worker.poll() is None:
        try:
            kind, body = heard.get(timeout=0.5)
        except queue.Empty:
            continue
        if kind == "progress":
            progress = body["progress"]
            left = progress["estimated_seconds"]
            say(
                begun_s,
                f"webhook progress: {progress['progress_percent']:3} %, step {progress['current_step']} of"
                f" {progress['total_steps']}, {left:.1f} s left",
            )
            continue
        say(begun_s, f"webhook {kind}: {body.get('result_url') or body.get('error_message')}")
        return body
    return None


def show(picture: Path) -> None:
    """What the picture says about itself, and where it lies."""
    print()
    subprocess.run([sys.executable, "-m", "orchestrator", "inspect", str(picture)], cwd=ROOT, check=True)
    print(f"\nThe picture: {os.path.relpath(picture)}")


def say(begun_s: float, text: str) -> None:
    """One line with the seconds since the start."""
    print(f"{time.monotonic() - begun_s:6.1f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
