"""What is said of a picture, for tests to which it matters little."""

from datetime import UTC, datetime

from orchestrator.imaging.provenance import Provenance

NOW = datetime.now(UTC)
MADE = Provenance(
    generation_id=456,
    prompt="a boat",
    negative_prompt="",
    seed=42,
    num_inference_steps=50,
    sampler="dpmpp_2m",
    guidance_scale=7.5,
    width_px=96,
    height_px=64,
    model_name="remarque-demo",
    model_sha256="6" * 64,
    created=NOW,
    software_version="0.1.0",
)
