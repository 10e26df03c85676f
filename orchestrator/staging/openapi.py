"""The service's description in OpenAPI 3.1, written from the tables that requests are checked against."""

from typing import Any, Final

from orchestrator import __version__
from orchestrator.staging.accounts import TIERS
from orchestrator.staging.problems import CONTENT_TYPE
from orchestrator.staging.request import (
    MAX_GUIDANCE_SCALE,
    MAX_KEY_CHARACTERS,
    MAX_SEED,
    NAME_PATTERN,
    ROOM_TYPES,
    STAGING_STYLES,
)

_CODES: Final = (
    "invalid_input",
    "not_found",
    "timeout",
    "oom",
    "provider_transient",
    "rate_limited",
    "content_rejected",
)
_STATUSES: Final = ("queued", "running", "succeeded", "failed", "cancelled")
_REFUSALS: Final = {
    "400": "The request, its original or its mask is not served",
    "401": "No bearer token, or one that is not known",
    "404": "No such object or image",
    "408": "The body did not come in time",
    "409": "The id was used with other parameters, or the staging was cancelled",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "422": "The content policy refused it",
    "429": "Too many requests at this tier; Retry-After says when to come back",
    "500": "A fault of the service",
    "503": "Too much work, or no provider can stage it now; Retry-After says when to come back",
    "504": "Not done within the deadline",
}
_PLAIN: Final = f"^{NAME_PATTERN}$"


def openapi_document() -> dict[str, Any]:
    """The document; the same on every call."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Remarque virtual staging",
            "version": __version__,
            "description": "A photograph of an empty room in, the furnished room out, everything else untouched.",
        },
        "security": [{"token": []}],
        "paths": {
            "/infer": {"post": _infer()},
            "/infer/{image_id}": {
                "parameters": [_image_id_parameter()],
                "get": _operation("status", "How a staging stands", {"200": _json("StagingStatus")}, ("401", "404")),
                "delete": _operation(
                    "cancel", "Ask for a staging to end", {"202": _json("StagingStatus")}, ("401", "404", "409")
                ),
            },
            "/infer/{image_id}/events": {
                "parameters": [_image_id_parameter()],
                "get": _operation("follow", "The status as server-sent events", {"200": _events()}, ("401", "404")),
            },
            "/healthz": {"get": _open("alive", "Whether the process lives", {"200": _json("Health")})},
            "/readyz": {
                "get": _open("ready", "Whether a staging would work", {"200": _json("Health"), "503": _json("Health")})
            },
            "/metrics": {"get": _open("metrics", "Prometheus' text format", {"200": _text()})},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "StagingRequest": _request(),
                "StagingAnswer": _answer(),
                "StagingStatus": _status(),
                "Problem": _problem(),
                "Health": {"type": "object"},
            },
        },
    }


def _infer() -> dict[str, Any]:
    answers = {"200": _json("StagingAnswer"), "202": _json("StagingStatus")}
    operation = _operation("infer", "Stage a room", answers, tuple(code for code in _REFUSALS if code != "500"))
    operation["parameters"] = [
        {
            "name": "Prefer",
            "in": "header",
            "required": False,
            "description": "respond-async answers 202 at once, wait=N after N seconds (RFC 7240)",
            "schema": {"type": "string"},
        }
    ]
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/StagingRequest"}}},
    }
    return operation


def _operation(name: str, summary: str, answers: dict[str, Any], refusals: tuple[str, ...]) -> dict[str, Any]:
    refused = {
        status: {
            "description": _REFUSALS[status],
            "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in ("400", *refusals, "500", "503")
    }
    return {"operationId": name, "summary": summary, "responses": {**answers, **refused}}


def _open(name: str, summary: str, answers: dict[str, Any]) -> dict[str, Any]:
    return {"operationId": name, "summary": summary, "security": [], "responses": answers}


def _json(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": schema, "content": content}


def _text() -> dict[str, Any]:
    return {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}


def _events() -> dict[str, Any]:
    texts = {"type": "string"}
    event = {"type": "object", "required": ["data"], "properties": {"data": texts, "event": texts, "id": texts}}
    return {
        "description": "One per change; the data is a StagingStatus",
        "content": {"text/event-stream": {"schema": event}},
    }


def _image_id_parameter() -> dict[str, Any]:
    schema = {"type": "string", "pattern": _PLAIN}
    return {"name": "image_id", "in": "path", "required": True, "schema": schema}


def _request() -> dict[str, Any]:
    # A plain name: no slash in front, no scheme, no control character, no backslash.
    pattern = r"^(?!/)(?![\s\S]*://)[^\s\x00-\x1f\x7f-\xa0\\][^\x00-\x1f\x7f-\x9f\\]*$"
    key = {"maxLength": MAX_KEY_CHARACTERS, "pattern": pattern}
    plain = {"type": "string", "pattern": _PLAIN}
    return {
        "type": "object",
        "required": ["image_id", "original_key", "room_type", "style"],
        "properties": {
            "image_id": {
                "description": "The caller's name of the wish; the same id with the same fields is a safe repeat",
                "oneOf": [plain, {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}],
            },
            "original_key": {"type": "string", "description": "JPEG, PNG or WebP in the store", **key},
            "room_type": {"type": "string", "enum": list(ROOM_TYPES)},
            "style": {"type": "string", "enum": list(STAGING_STYLES)},
            "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_SEED},
            "strength": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "guidance_scale": {"type": ["number", "null"], "minimum": 0, "maximum": MAX_GUIDANCE_SCALE},
            "mask_key": {"type": ["string", "null"], "description": "White is where furniture may stand", **key},
            "user_id": {**plain, "description": "Fills {user_id} in the token's prefixes"},
            "project_id": {**plain, "description": "Fills {project_id} in the token's prefixes"},
            "tier": {"type": "string", "enum": list(TIERS), "description": "One of the token's tiers"},
        },
    }


def _answer() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["staged_key", "width", "height", "model_rev", "duration_ms"],
        "properties": {
            "image_id": {"type": "string"},
            "staged_key": {"type": "string"},
            "width": {"type": "integer"},
            "height": {"type": "integer"},
            "model_rev": {"type": "string"},
            "duration_ms": {"type": "integer"},
            "warnings": {"type": "array", "items": {"type": "string"}},
            "durations_ms": {"type": "object", "additionalProperties": {"type": "integer"}},
            "inference_meta": {"type": "object"},
        },
    }


def _status() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["image_id", "status", "percent"],
        "properties": {
            "image_id": {"type": "string"},
            "status": {"type": "string", "enum": list(_STATUSES)},
            "percent": {"type": "integer", "minimum": 0, "maximum": 100},
            "result": {"$ref": "#/components/schemas/StagingAnswer"},
            "problem": {"$ref": "#/components/schemas/Problem"},
        },
    }


def _problem() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "enum": list(_CODES)},
        },
    }
