"""JSON on the wire to :class:`Job`, and events back to JSON; nothing else knows the names on the wire.

The formats belong to systems that exist (docs/queue.md, docs/webhooks.md). Older publishers nest ``parameters`` and say
``callback_url``; both spellings are read, and a value given twice with different meanings is invalid input.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from orchestrator.errors import InvalidInput
from orchestrator.fields import Fields
from orchestrator.job import (
    ControlRef,
    Failed,
    Job,
    PictureFormat,
    PictureRefs,
    Position,
    Progress,
    SignatureRef,
    SignatureSize,
    StyleRef,
    Succeeded,
)

MAX_BODY_BYTES = 1 << 20
MAX_TEXT_CHARS = 20_000
MAX_URL_CHARS = 2000
MAX_STYLES = 8
MAX_CONTROLS = 8
DEFAULT_STRENGTH = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """A request to stop one generation."""

    generation_id: int


def message_from_bytes(body: bytes) -> Mapping[str, Any]:
    """The message as a mapping.

    Raises:
        InvalidInput: the body is over 1 MiB, not UTF-8 JSON, not an object, or holds NaN or infinity.
    """
    if len(body) > MAX_BODY_BYTES:
        raise InvalidInput(f"the message is {len(body)} bytes; at most {MAX_BODY_BYTES} bytes are read")
    try:
        message = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise InvalidInput(f"the message is a JSON {type(message).__name__}; an object is expected")
    return message


def request_from_message(message: Mapping[str, Any]) -> Job | Cancel:
    """What the message asks for, by its ``type``.

    Raises:
        InvalidInput: the type is unknown, or a field is missing, of the wrong type or out of range.
    """
    kind = message.get("type")
    if kind == "image_generation":
        return job_from_message(message)
    if kind == "cancel":
        return Cancel(generation_id=Fields(message, "").child("data").integer("generation_id", 1))
    raise InvalidInput(f"type is {kind!r}; 'image_generation' and 'cancel' are served")


def generation_id_from(message: Mapping[str, Any]) -> int | None:
    """The generation a broken message speaks of, where that much of it can be read."""
    try:
        return Fields(message, "").child("data").integer("generation_id", 1)
    except InvalidInput:
        return None


def webhook_url_from(message: Mapping[str, Any]) -> str | None:
    """Whom a broken message wants told, where that much of it can be read."""
    for name in ("webhook_url", "callback_url"):
        try:
            url = Fields(message, "").text(name, MAX_URL_CHARS)
        except InvalidInput:
            continue
        if url:
            return url
    return None


def job_from_message(message: Mapping[str, Any]) -> Job:
    """The job in an ``image_generation`` message; unknown fields are ignored, known ones are checked.

    Raises:
        InvalidInput: a field is missing, of the wrong type, out of range or contradicts another.
    """
    top = Fields(message, "")
    data = top.child("data")
    older = data.optional_child("parameters")
    prompt, tags = data.text("prompt", MAX_TEXT_CHARS), data.texts("prompt_tags", MAX_TEXT_CHARS)
    artist_name = data.text("artist_name", 200) or None
    return Job(
        generation_id=data.integer("generation_id", 1),
        task_id=top.text("task_id", 200),
        prompt=prompt or ", ".join(tags),
        negative_prompt=data.text("negative_prompt", MAX_TEXT_CHARS),
        aspect_ratio=data.text("aspect_ratio", 20) or None,
        width_px=data.same(data.optional_integer("width"), older.optional_integer("width"), "width"),
        height_px=data.same(data.optional_integer("height"), older.optional_integer("height"), "height"),
        seed=data.same(data.optional_integer("seed"), older.optional_integer("seed"), "seed"),
        num_inference_steps=data.same(
            data.optional_integer("num_inference_steps"), older.optional_integer("steps"), "num_inference_steps"
        ),
        guidance_scale=data.same(
            data.optional_number("guidance_scale"), older.optional_number("cfg_scale"), "guidance_scale"
        ),
        sampler=data.text("sampler", 40) or None,
        spacing=data.text("timestep_spacing", 40) or None,
        sigmas=data.text("sigmas", 40) or None,
        two_pass=data.optional_flag("two_pass"),
        styles=_styles(data),
        pictures=_pictures(data),
        signature=_signature(data, artist_name),
        artist_id=data.optional_integer("artist_id"),
        artist_name=artist_name,
        user_id=data.optional_integer("user_id"),
        priority=data.optional_integer("priority") or 0,
        picture_format=data.choice("output_format", get_args(PictureFormat), "png"),
        webhook_url=top.same(
            top.text("webhook_url", MAX_URL_CHARS) or None,
            top.text("callback_url", MAX_URL_CHARS) or None,
            "webhook_url",
        ),
    )


def fingerprint(message: Mapping[str, Any]) -> str:
    """One value for all messages that ask for the same picture: the SHA-256 of ``data`` in canonical JSON."""
    canonical = json.dumps(message.get("data"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def body_of(event: Progress | Succeeded | Failed) -> dict[str, object]:
    """The webhook's JSON for an event."""
    match event:
        case Progress():
            progress = {
                "current_step": event.current_step,
                "total_steps": event.total_steps,
                "progress_percent": event.progress_percent,
                "estimated_seconds": event.estimated_seconds,
            }
            return {"generation_id": event.generation_id, "progress": progress}
        case Succeeded():
            return {
                "generation_id": event.generation_id,
                "result_url": event.result_url,
                "metadata": dict(event.metadata),
            }
        case Failed():
            return {
                "generation_id": event.generation_id,
                "error_message": event.error_message,
                "error_code": event.error_code,
                "retry_count": event.retry_count,
            }


def _styles(data: Fields) -> tuple[StyleRef, ...]:
    """``lora_path`` first, then the optional list ``styles`` of ``{path, weight, style_id}``."""
    path = data.text("lora_path", 2000)
    first = StyleRef(path=path, style_id=data.optional_integer("style_id"), weight=_weight(data, "lora_weight"))
    listed = [
        StyleRef(
            path=entry.required_text("path", 2000),
            style_id=entry.optional_integer("style_id"),
            weight=_weight(entry, "weight"),
        )
        for entry in data.children("styles", MAX_STYLES)
    ]
    return (first, *listed) if path else tuple(listed)


def _pictures(data: Fields) -> PictureRefs | None:
    """``init_image_path`` with ``strength`` and ``mask_path``, and a list ``controls``; None without a picture."""
    source_path, mask_path = data.text("init_image_path", 2000) or None, data.text("mask_path", 2000) or None
    strength = data.optional_number("strength")
    if source_path is None and mask_path is not None:
        raise InvalidInput("data.mask_path is given without data.init_image_path; a picture to start from is expected")
    controls = tuple(
        ControlRef(
            name=entry.required_text("name", 100),
            path=entry.required_text("path", 2000),
            scale=_or(entry.optional_number("scale"), 1.0),
            start=_or(entry.optional_number("start"), 0.0),
            end=_or(entry.optional_number("end"), 1.0),
        )
        for entry in data.children("controls", MAX_CONTROLS)
    )
    if source_path is None and not controls:
        return None
    return PictureRefs(
        source_path=source_path, strength=_or(strength, DEFAULT_STRENGTH), mask_path=mask_path, controls=controls
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _weight(fields: Fields, name: str) -> float:
    return _or(fields.optional_number(name), 1.0)


def _signature(data: Fields, artist_name: str | None) -> SignatureRef | None:
    """The mark to stamp, or None where the message names neither an image nor an artist."""
    path = data.text("signature_path", 2000) or None
    look = data.optional_child("signature_config")
    if path is None and (artist_name is None or not look.present):
        return None
    opacity = look.optional_number("opacity")
    if opacity is not None and not 0.0 <= opacity <= 1.0:
        raise InvalidInput(f"data.signature_config.opacity is {opacity}; 0.0 to 1.0 is served")
    return SignatureRef(
        path=path,
        artist_name=artist_name,
        position=look.choice("position", get_args(Position), "bottom-right"),
        size=look.choice("size", get_args(SignatureSize), "medium"),
        opacity=0.7 if opacity is None else opacity,
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
