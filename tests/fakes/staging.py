"""The staging service on a folder, in this process, and photographs of rooms for it."""

import hashlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from PIL import Image, ImageDraw

from orchestrator.config import from_environ
from orchestrator.staging_service import StagingService, running_staging

TOKEN, OTHER_TOKEN, ADMIN_TOKEN = "backend-token", "other-token", "admin-token"
CLIENTS = """
[backend]
token_sha256 = "{backend}"
tiers = ["business", "pro", "free"]
prefixes = ["uploads/"]

[other]
token_sha256 = "{other}"
tiers = ["free"]
prefixes = ["private/{{user_id}}/{{project_id}}/"]
"""


def room(width_px: int = 960, height_px: int = 640) -> Image.Image:
    """An empty room: wall, floor, window."""
    picture = Image.new("RGB", (width_px, height_px), (222, 217, 206))
    draw = ImageDraw.Draw(picture)
    w, h = width_px, height_px
    draw.polygon([(w * 0.15, h * 0.55), (w * 0.85, h * 0.55), (w, h), (0, h)], fill=(150, 112, 84))
    draw.rectangle((w * 0.4, h * 0.15, w * 0.6, h * 0.4), fill=(180, 208, 235), outline=(250, 250, 250), width=6)
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


@dataclass
class Staging:
    """A running service and its folder."""

    folder: Path
    service: StagingService

    @property
    def url(self) -> str:
        return self.service.url

    def put(self, key: str, data: bytes) -> str:
        """Upload an original."""
        path = self.folder / "originals" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return key

    def stored(self, key: str) -> bytes:
        """What was staged."""
        return (self.folder / "results" / key).read_bytes()

    def wish(self, image_id: str, **changes: Any) -> dict[str, Any]:
        """A request that is served."""
        wish = {"image_id": image_id, "original_key": "uploads/room.jpg", "room_type": "bedroom", "style": "modern"}
        return {name: value for name, value in (wish | changes).items() if value is not None}

    def call(self, method: str, path: str, token: str = TOKEN, **options: Any) -> requests.Response:
        """One call, with a token."""
        headers = {"Authorization": f"Bearer {token}"} | options.pop("headers", {})
        return requests.request(method, self.url + path, headers=headers, timeout=600, **options)

    def infer(self, wish: dict[str, Any], token: str = TOKEN, prefer: str | None = None) -> requests.Response:
        """POST /infer."""
        return self.call("POST", "/infer", token, json=wish, headers={} if prefer is None else {"Prefer": prefer})

    def route(self, **routing: Any) -> dict[str, Any]:
        """Switch the routing."""
        answer = self.call("PUT", "/admin/routing", ADMIN_TOKEN, json=routing)
        answer.raise_for_status()
        return answer.json()

    def metric(self, line: str) -> float:
        """A metric's value by its whole name; 0 where it is not there yet."""
        lines = requests.get(self.url + "/metrics", timeout=10).text.splitlines()
        return next((float(text.rpartition(" ")[2]) for text in lines if text.startswith(line + " ")), 0.0)


@contextmanager
def staging(folder: Path, **settings: str) -> Iterator[Staging]:
    """The service on ``folder``; a second one on the same folder is a second replica."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = {
        name: hashlib.sha256(token.encode()).hexdigest() for name, token in (("backend", TOKEN), ("other", OTHER_TOKEN))
    }
    (folder / "clients.toml").write_text(CLIENTS.format(**digests))
    environ = {
        "INFERENCE_MODE": "mock",
        "RESULT_STORE": (folder / "results").as_uri(),
        "STAGING_ORIGINALS": (folder / "originals").as_uri(),
        "STAGING_CLIENTS_FILE": str(folder / "clients.toml"),
        "STAGING_ADMIN_TOKEN": ADMIN_TOKEN,
        "STAGING_MOCK_SECONDS": "0",
        "STAGING_RATES": "free=1000/1, pro=1000/1, business=1000/1",
        "HTTP_ADDRESS": "127.0.0.1:0",
        "DEVELOPMENT_KEY_FOLDER": str(folder / "key"),
        "GRACE_SECONDS": "10",
    }
    logging.getLogger("uvicorn").setLevel("WARNING")
    with running_staging(from_environ(environ | settings)) as service:
        running = Staging(folder, service)
        running.put("uploads/room.jpg", encoded(room()))
        yield running
