import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidInput
from orchestrator.job import ControlRef, Failed, Job, PictureRefs, Progress, SignatureRef, StyleRef, Succeeded
from orchestrator.schema import (
    MAX_BODY_BYTES,
    Cancel,
    body_of,
    fingerprint,
    generation_id_from,
    job_from_message,
    message_from_bytes,
    request_from_message,
    webhook_url_from,
)

CONTRACT = {
    "task_id": "660f9511-f3ac-52e5-b827-557766551111",
    "type": "image_generation",
    "data": {
        "generation_id": 456,
        "style_id": 123,
        "lora_path": "gs://bucket/models/style-123/adapter_model.safetensors",
        "prompt": "portrait, sunset, oil paint",
        "negative_prompt": "blurry",
        "prompt_tags": ["portrait", "sunset", "oil paint"],
        "aspect_ratio": "1:1",
        "seed": 42,
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "signature_path": "gs://bucket/signatures/12.png",
        "signature_config": {"position": "bottom-right", "size": "medium", "opacity": 0.7},
        "artist_id": 12,
    },
    "webhook_url": "https://api.example.com/api/webhooks/generation/456/status",
}


def message(**data: object) -> dict[str, object]:
    return {"task_id": "t", "type": "image_generation", "data": {"generation_id": 1, "prompt": "sea", **data}}


def test_the_documented_message_becomes_the_job_it_describes() -> None:
    assert job_from_message(CONTRACT) == Job(
        generation_id=456,
        task_id="660f9511-f3ac-52e5-b827-557766551111",
        prompt="portrait, sunset, oil paint",
        negative_prompt="blurry",
        aspect_ratio="1:1",
        seed=42,
        num_inference_steps=50,
        guidance_scale=7.5,
        styles=(StyleRef(path="gs://bucket/models/style-123/adapter_model.safetensors", style_id=123),),
        signature=SignatureRef(path="gs://bucket/signatures/12.png"),
        artist_id=12,
        webhook_url="https://api.example.com/api/webhooks/generation/456/status",
    )


def test_null_and_empty_fields_count_as_not_given() -> None:
    job = job_from_message(message(seed=None, signature_path="", lora_path="", aspect_ratio=None, guidance_scale=None))
    assert (job.seed, job.signature, job.styles, job.aspect_ratio, job.guidance_scale) == (None, None, (), None, None)


def test_tags_are_the_prompt_where_the_prompt_is_empty() -> None:
    assert job_from_message(message(prompt="", prompt_tags=["바다", " 노을 ", ""])).prompt == "바다, 노을"


def test_a_prompt_beside_tags_wins() -> None:
    assert job_from_message(message(prompt="hill", prompt_tags=["sea"])).prompt == "hill"


def test_older_publishers_parameters_and_callback_are_read() -> None:
    older = message(parameters={"width": 512, "height": 1024, "steps": 30, "cfg_scale": 5, "seed": 0})
    job = job_from_message(older | {"callback_url": "https://api.example.com/cb"})
    assert (job.width_px, job.height_px, job.num_inference_steps, job.guidance_scale) == (512, 1024, 30, 5)
    assert (job.seed, job.webhook_url) == (0, "https://api.example.com/cb")


def test_a_value_given_twice_alike_is_accepted() -> None:
    assert job_from_message(message(seed=7, parameters={"seed": 7})).seed == 7


@pytest.mark.parametrize(
    ("twice", "field"),
    [
        ({"seed": 7, "parameters": {"seed": 8}}, "seed"),
        ({"seed": 0, "parameters": {"seed": 8}}, "seed"),
        ({"num_inference_steps": 50, "parameters": {"steps": 30}}, "num_inference_steps"),
        ({"guidance_scale": 7.5, "parameters": {"cfg_scale": 5}}, "guidance_scale"),
    ],
)
def test_a_value_given_twice_with_different_meanings_is_refused(twice: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=f"data.{field} is given twice"):
        job_from_message(message(**twice))


def test_two_callback_addresses_that_differ_are_refused() -> None:
    with pytest.raises(InvalidInput, match="webhook_url is given twice"):
        job_from_message(message() | {"webhook_url": "https://a.example", "callback_url": "https://b.example"})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"generation_id": None}, "data.generation_id is missing"),
        ({"generation_id": "7"}, "data.generation_id is a string; a number is expected"),
        ({"generation_id": True}, "data.generation_id is true or false"),
        ({"generation_id": 0}, "data.generation_id is 0; 1 or more"),
        ({"prompt": 5}, "data.prompt is 5; a string"),
        ({"prompt": "x" * 20_001}, "data.prompt is 20001 characters"),
        ({"prompt": "\ud800"}, "not text"),
        ({"prompt_tags": ["ink", "\ud800"]}, r"prompt_tags\[1\] holds a character that is not text"),
        ({"seed": 1.5}, "data.seed is 1.5; a whole number"),
        ({"seed": "42"}, "data.seed is a string"),
        ({"guidance_scale": "high"}, "data.guidance_scale is a string"),
        ({"guidance_scale": 1e300}, "data.guidance_scale is 1e"),
        ({"num_inference_steps": [50]}, "data.num_inference_steps is a list"),
        ({"prompt_tags": "sea"}, "data.prompt_tags is a string; a list"),
        ({"prompt_tags": ["sea", 1]}, r"data.prompt_tags\[1\] is 1; a string"),
        ({"prompt_tags": [None]}, r"data.prompt_tags\[0\] is null; a string"),
        ({"styles": [None]}, r"data.styles\[0\] is null; an object"),
        ({"signature_path": "s", "signature_config": []}, "data.signature_config is a list; an object"),
        ({"signature_path": "s", "signature_config": {"position": "middle"}}, "position is 'middle'; bottom-left"),
        ({"signature_path": "s", "signature_config": {"opacity": 1.1}}, "opacity is 1.1; 0.0 to 1.0"),
        ({"output_format": "gif"}, "output_format is 'gif'; png, jpeg, webp"),
        ({"styles": [{"weight": 1}]}, r"data.styles\[0\].path is missing"),
        ({"styles": [{"path": "a"}] * 9}, "data.styles has 9 entries; at most 8"),
    ],
)
def test_each_broken_field_is_refused_by_name(data: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        job_from_message(message(**data))


def test_a_refusal_never_repeats_the_prompt() -> None:
    with pytest.raises(InvalidInput) as refusal:
        job_from_message(message(prompt=["a secret wish"]))
    assert "secret" not in str(refusal.value)


def test_an_artist_name_and_a_signature_config_ask_for_a_written_signature() -> None:
    job = job_from_message(message(artist_name="김민수", signature_config={"opacity": 0.0}))
    assert job.signature == SignatureRef(artist_name="김민수", opacity=0.0)


def test_several_styles_keep_their_order_and_weights() -> None:
    job = job_from_message(message(lora_path="a", lora_weight=0.0, styles=[{"path": "b", "weight": 0.5}]))
    assert [(style.path, style.weight) for style in job.styles] == [("a", 0.0), ("b", 0.5)]


def test_pictures_to_start_from_and_to_be_guided_by_are_read_with_their_defaults() -> None:
    controls = [
        {"name": "depth", "path": "gs://b/d.png", "scale": 0, "end": 0.5},
        {"name": "canny", "path": "gs://b/c.png"},
    ]
    job = job_from_message(message(init_image_path="gs://b/a.png", mask_path="gs://b/m.png", controls=controls))
    assert job.pictures == PictureRefs(
        source_path="gs://b/a.png",
        strength=0.75,
        mask_path="gs://b/m.png",
        controls=(
            ControlRef(name="depth", path="gs://b/d.png", scale=0.0, end=0.5),
            ControlRef(name="canny", path="gs://b/c.png"),
        ),
    )


def test_a_strength_without_a_picture_means_nothing() -> None:
    assert job_from_message(message(strength=0.4)).pictures is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"mask_path": "gs://b/m.png"}, "data.mask_path is given without data.init_image_path"),
        ({"controls": [{"name": "depth"}]}, "data.controls[0].path is missing"),
        ({"controls": [{"path": "gs://b/d.png"}]}, "data.controls[0].name is missing"),
        ({"init_image_path": "gs://b/a.png", "strength": "much"}, "data.strength is a string"),
    ],
)
def test_pictures_that_are_half_described_are_refused(data: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        job_from_message(message(**data))
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"[" * 100_000,
        b" " * (MAX_BODY_BYTES + 1),
    ],
    ids=["empty", "cut", "list", "null", "not utf-8", "NaN", "infinity", "deep", "large"],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        message_from_bytes(body)


def test_numbers_too_large_for_a_float_are_refused_as_input() -> None:
    with pytest.raises(InvalidInput, match="data.seed"):
        job_from_message(message_from_bytes(json.dumps(message(seed=10**400)).encode()))


def test_a_cancel_names_its_generation() -> None:
    assert request_from_message({"type": "cancel", "data": {"generation_id": 5}}) == Cancel(generation_id=5)


def test_an_unknown_type_is_refused_with_the_types_served() -> None:
    with pytest.raises(InvalidInput, match="'video'; 'image_generation' and 'cancel' are served"):
        request_from_message({"type": "video"})


def test_the_fingerprint_ignores_order_and_sees_every_value() -> None:
    one, other = message(seed=1, artist_id=2), message(artist_id=2, seed=1)
    assert fingerprint(one) == fingerprint(other) != fingerprint(message(seed=1, artist_id=3))


def test_what_can_be_read_of_a_broken_message_is_read() -> None:
    assert generation_id_from({"data": {"generation_id": 9, "prompt": 5}}) == 9
    assert generation_id_from({"data": []}) is None
    assert webhook_url_from({"callback_url": "https://a.example"}) == "https://a.example"


@pytest.mark.parametrize("generation_id", [0, -1, 2**63 + 1, int("9" * 1100), 1.5, True, "9"])
def test_an_id_that_no_job_can_have_names_no_generation(generation_id: object) -> None:
    assert generation_id_from({"data": {"generation_id": generation_id}}) is None


@pytest.mark.parametrize("url", ["https://a/\ud800", "https://a/" + "b" * 3000, 7])
def test_an_address_that_is_no_text_is_nobody_to_tell(url: object) -> None:
    assert webhook_url_from({"webhook_url": url}) is None
    assert webhook_url_from({"webhook_url": url, "callback_url": "https://a.example"}) == "https://a.example"


def test_events_become_the_documented_bodies() -> None:
    progress = Progress(generation_id=1, current_step=25, total_steps=50, progress_percent=50, estimated_seconds=4.5)
    assert body_of(progress) == {
        "generation_id": 1,
        "progress": {"current_step": 25, "total_steps": 50, "progress_percent": 50, "estimated_seconds": 4.5},
    }
    complete = Succeeded(generation_id=1, result_url="gs://b/generations/gen-1.png", metadata={"seed": 0})
    assert body_of(complete) == {
        "generation_id": 1, "result_url": "gs://b/generations/gen-1.png", "metadata": {"seed": 0}
    }  # fmt: skip
    failed = Failed(generation_id=1, error_message="no", error_code="TIMEOUT", retry_count=2)
    assert body_of(failed) == {
        "generation_id": 1, "error_message": "no", "error_code": "TIMEOUT", "retry_count": 2
    }  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(CONTRACT["data"])), inner),  # type: ignore[call-overload]
    max_leaves=12,
)


@given(data=JSON, top=JSON)
def test_no_message_breaks_the_reader_in_another_way_than_a_refusal(data: object, top: object) -> None:
    try:
        request_from_message({"type": "image_generation", "task_id": top, "data": data})
    except InvalidInput:
        return
