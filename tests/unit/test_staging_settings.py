"""Settings of the staging service, and a start that is refused with a reason."""

import hashlib
import json
from pathlib import Path

import pytest
from small_checkpoint import write_repository

from orchestrator.checkpoint import read_checkpoint
from orchestrator.config import from_environ
from orchestrator.errors import ConfigError
from orchestrator.staging_models import build_own, needed
from orchestrator.staging_service import running_staging
from orchestrator.staging_telemetry import StagingTelemetry


def test_the_defaults_are_those_of_the_page():
    staging = from_environ({}).staging
    assert staging.rates == {"free": (10, 60), "pro": (60, 60), "business": (600, 60)}
    assert staging.prices["managed"] == 0.001525
    assert staging.managed.output_origins == ("https://replicate.delivery",)
    assert staging.canary_mode is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("STAGING_RATES", "free=10/60", "free=…, pro=…, business=…"),
        ("STAGING_RATES", "free=0/60, pro=1/1, business=1/1", "one request or more"),
        ("STAGING_RATES", "free=ten, pro=1/1, business=1/1", "requests/seconds such as 10/60"),
        ("STAGING_GPU_PRICES", "mock=0, managed=-1, self=0", "a number from 0 to 1000"),
        ("STAGING_CANARY_PERCENT", "101", "a number from 0 to 100"),
        ("STAGING_SIZE_STEP_PX", "7", "a whole number from 8 to 64"),
        ("STAGING_FALLBACK", "none", "mock or refuse"),
        ("STAGING_CONTROL_END", "1.5", "a number from 0 to 1"),
        ("STAGING_CONTROL_START", "0.8", "the earlier one first"),
        ("STAGING_STRENGTH", "1.1", "a number from 0 to 1"),
        ("STAGING_GUIDANCE_SCALE", "31", "a number from 0 to 30"),
        ("STAGING_STEPS", "0", "a whole number from 1 to 150"),
        ("STAGING_UPSCALE_TIERS", "gold", "some of free, pro, business"),
    ],
)
def test_a_wrong_value_names_itself_and_what_was_expected(name: str, value: str, expected: str):
    with pytest.raises(ConfigError, match=name) as raised:
        from_environ({name: value})
    assert expected in str(raised.value)


def test_inputs_of_a_model_are_renamed_or_left_out():
    staging = from_environ({"MANAGED_INPUTS": "strength=prompt_strength, negative_prompt="}).staging
    assert staging.managed.inputs == {"strength": "prompt_strength", "negative_prompt": ""}
    with pytest.raises(ConfigError, match="ours=theirs"):
        from_environ({"MANAGED_INPUTS": "size=big"})


def test_secrets_are_in_no_repr():
    staging = from_environ({"STAGING_ADMIN_TOKEN": "hush", "MANAGED_TOKEN": "quiet"}).staging
    assert "hush" not in repr(staging)
    assert "quiet" not in repr(staging)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"STAGING_CLIENTS_FILE": ""}, "STAGING_CLIENTS_FILE is not set"),
        ({"RESULT_STORE": ""}, "RESULT_STORE is not set"),
        ({"INFERENCE_MODE": "self", "MODEL_REPOSITORY": "/nowhere"}, "no remarque.json can be read"),
        ({"STAGING_CANARY_MODE": "self", "MODEL_REPOSITORY": "/nowhere"}, "no remarque.json can be read"),
        ({"INFERENCE_MODE": "managed"}, "MANAGED_TOKEN and MANAGED_MODEL say"),
        ({"MANAGED_TOKEN": "t"}, "come together"),
        ({"STAGING_CANARY_MODE": "managed", "STAGING_CANARY_PERCENT": "5"}, "MANAGED_TOKEN and MANAGED_MODEL say"),
        ({"STAGING_BLOCKED_WORDS": "desk"}, "office in modern can never be staged"),
    ],
)
def test_a_service_that_could_not_work_does_not_start(changes: dict[str, str], sentence: str, tmp_path: Path):
    digest = hashlib.sha256(b"t").hexdigest()
    (tmp_path / "clients.toml").write_text(f'[a]\ntoken_sha256 = "{digest}"\ntiers = ["pro"]\nprefixes = ["up/"]\n')
    environ = {
        "INFERENCE_MODE": "mock",
        "RESULT_STORE": (tmp_path / "results").as_uri(),
        "STAGING_CLIENTS_FILE": str(tmp_path / "clients.toml"),
        "DEVELOPMENT_KEY_FOLDER": str(tmp_path / "key"),
        "HTTP_ADDRESS": "127.0.0.1:0",
    }
    with pytest.raises(ConfigError, match=sentence), running_staging(from_environ(environ | changes)):
        pass


@pytest.mark.parametrize(
    ("built", "changes", "sentence"),
    [
        ({}, {"STAGING_SAMPLER": "magic"}, "STAGING_SAMPLER is 'magic'; expected ddim or"),
        ({}, {"STAGING_WORKING_PX": "1536"}, "STAGING_WORKING_PX is 1536; small was built for 256 to 1024 px"),
        ({}, {"STAGING_SIZE_STEP_PX": "32"}, "STAGING_SIZE_STEP_PX is 32; small needs sizes in steps of 64 px"),
        ({"max_chunks": 1}, {}, "prompts: living_room in modern fills [0-9]+ chunks of 75 tokens; small reads 1"),
        ({}, {"UPSCALE_ENABLED": "true"}, "UPSCALE_ENABLED is true and small was built without an upscaler"),
    ],
)
def test_networks_of_our_own_that_could_not_serve_do_not_start(
    built: dict[str, object], changes: dict[str, str], sentence: str, tmp_path: Path
):
    repository(tmp_path, **built)
    with pytest.raises(ConfigError, match=sentence):
        build_own(
            from_environ({"INFERENCE_MODE": "self", "MODEL_REPOSITORY": str(tmp_path)} | changes), StagingTelemetry()
        )


@pytest.mark.parametrize(
    ("built", "changes", "missing"),
    [
        ({}, {}, "text_encoder, unet, vae_decoder, vae_encoder"),
        ({"controls": ["canny"]}, {}, "text_encoder, unet, vae_decoder, vae_encoder, unet_controlnet"),
        ({"controls": ["pose"]}, {}, "text_encoder, unet, vae_decoder, vae_encoder"),
        (
            {"depth": {"size_px": 64}, "upscaler": {"factor": 2}},
            {"UPSCALE_ENABLED": "true"},
            "text_encoder, unet, vae_decoder, vae_encoder, depth, upscaler",
        ),
    ],
)
def test_all_networks_that_a_staging_calls_are_waited_for(
    built: dict[str, object], changes: dict[str, str], missing: str, tmp_path: Path
):
    repository(tmp_path, **built)
    settings = from_environ({"INFERENCE_MODE": "self", "MODEL_REPOSITORY": str(tmp_path)} | changes)
    own = build_own(settings, StagingTelemetry())
    assert own is not None
    assert own.provider.not_ready() == "triton is not ready"
    assert needed(read_checkpoint(tmp_path), settings.staging) == tuple(missing.split(", "))
    own.server.close()


def test_a_controlnet_without_what_it_sees_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    repository(tmp_path, controls=["depth"])
    own = build_own(from_environ({"INFERENCE_MODE": "self", "MODEL_REPOSITORY": str(tmp_path)}), StagingTelemetry())
    assert own is not None
    own.server.close()
    assert "no network that tells it" in caplog.text


def test_networks_of_our_own_are_not_looked_for_where_nothing_names_them():
    assert (
        build_own(from_environ({"INFERENCE_MODE": "mock", "MODEL_REPOSITORY": "/nowhere"}), StagingTelemetry()) is None
    )


def repository(folder: Path, **changes: object) -> None:
    path = write_repository(folder) / "remarque.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_chunks": 64} | changes))
