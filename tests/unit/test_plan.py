"""Job to plan: what is filled in, and the one sentence of every refusal."""

import math

import numpy as np
import pytest
from small_checkpoint import small_checkpoint
from small_styles import STYLED, applied_style

from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.errors import InvalidInput, RemarqueError, UnsupportedAspectRatio
from orchestrator.job import Job, StyleRef
from orchestrator.pictures import Pictures, SourcePicture
from orchestrator.plan import Plan, make_plan
from orchestrator.style_ways import Ways


def plan(prompt: str = "a red boat", draw_seed=lambda: 11, **fields: object) -> Plan:
    job = Job(generation_id=1, task_id="t", prompt=prompt, **fields)  # type: ignore[arg-type]
    return make_plan(job, small_checkpoint(), draw_seed)


def refusal(kind: type[RemarqueError] = InvalidInput, **fields: object) -> str:
    with pytest.raises(kind) as raised:
        plan(**fields)
    assert type(raised.value) is kind
    return str(raised.value)


def sizes(made: Plan) -> list[tuple[int, int]]:
    return [(one.width_px, one.height_px) for one in made.passes]


def test_what_the_job_leaves_out_is_filled_in():
    made = plan()
    filled = (made.num_inference_steps, made.guidance_scale, made.sampler, made.spacing, made.sigmas, made.seed)
    assert filled == (50, 7.5, "dpmpp_2m", "default", "default", 11)
    assert (made.width_px, made.height_px, made.total_steps) == (512, 512, 50)


def test_what_the_job_says_is_kept():
    made = plan(
        seed=3, num_inference_steps=20, guidance_scale=5.0, sampler="euler", spacing="trailing", sigmas="karras"
    )
    kept = (made.seed, made.num_inference_steps, made.guidance_scale, made.sampler, made.spacing, made.sigmas)
    assert kept == (3, 20, 5.0, "euler", "trailing", "karras")


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seed_zero_is_a_seed_and_so_is_the_largest(seed: int):
    assert plan(seed=seed, draw_seed=lambda: pytest.fail("a seed was given")).seed == seed


@pytest.mark.parametrize(
    ("aspect_ratio", "size"), [("1:1", (512, 512)), ("2:2", (1024, 1024)), ("1:2", (512, 1024)), ("2:1", (1024, 512))]
)
def test_each_aspect_ratio_has_its_size(aspect_ratio: str, size: tuple[int, int]):
    made = plan(aspect_ratio=aspect_ratio)
    assert (made.width_px, made.height_px) == size


def test_an_unknown_aspect_ratio_is_refused_with_those_served():
    told = refusal(UnsupportedAspectRatio, aspect_ratio="3:2")
    assert told == ("aspect_ratio is '3:2'; 1:1 (512x512), 2:2 (1024x1024), 1:2 (512x1024), 2:1 (1024x512) are served")


def test_width_and_height_can_be_given_outright():
    assert sizes(plan(width_px=640, height_px=320)) == [(640, 320)]


@pytest.mark.parametrize(
    ("width_px", "height_px", "told"),
    [
        (512, 1100, "height is 1100 px; these engines serve 256 to 1024 px in steps of 64"),
        (520, 512, "width is 520 px; these engines serve 256 to 1024 px in steps of 64"),
        (192, 512, "width is 192 px; these engines serve 256 to 1024 px in steps of 64"),
        (0, 512, "width is 0 px; these engines serve 256 to 1024 px in steps of 64"),
        (512, -64, "height is -64 px; these engines serve 256 to 1024 px in steps of 64"),
        (512, None, "width and height come together; one of them is missing"),
    ],
)
def test_a_size_that_is_not_served_is_refused(width_px: int, height_px: int | None, told: str):
    assert refusal(width_px=width_px, height_px=height_px) == told


def test_a_size_that_contradicts_the_aspect_ratio_is_refused():
    told = refusal(aspect_ratio="1:2", width_px=512, height_px=512)
    assert told == "aspect_ratio 1:2 is 512x1024 px, but the size given is 512x512 px"


def test_a_size_that_repeats_the_aspect_ratio_is_accepted():
    assert sizes(plan(aspect_ratio="1:2", width_px=512, height_px=1024)) == [(512, 1024)]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; 1 to 150 is served"),
        ({"num_inference_steps": 151}, "num_inference_steps is 151; 1 to 150 is served"),
        ({"guidance_scale": -0.1}, "guidance_scale is -0.1; 0.0 to 30.0 is served"),
        ({"guidance_scale": 30.5}, "guidance_scale is 30.5; 0.0 to 30.0 is served"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan; 0.0 to 30.0 is served"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf; 0.0 to 30.0 is served"),
        ({"seed": -1}, "seed is -1; 0 to 9223372036854775807 is served"),
        ({"seed": 2**63}, "seed is 9223372036854775808; 0 to 9223372036854775807 is served"),
        ({"sampler": "plms"}, f"sampler is 'plms'; {', '.join(SAMPLERS)} are served"),
        ({"spacing": "even"}, "spacing is 'even'; leading, linspace, trailing, default are served"),
        ({"sigmas": "beta"}, "sigmas is 'beta'; karras, exponential, default are served"),
        ({"prompt": "red " * 226}, "prompt fills 4 chunks of 75 tokens; up to 3 are served"),
        ({"negative_prompt": "red " * 226}, "negative_prompt fills 4 chunks of 75 tokens; up to 3 are served"),
        ({"prompt": "a" * 20_001}, "prompt is 20001 characters; up to 20000 are served"),
        ({"prompt": "\ud800"}, "prompt holds half of a surrogate pair; whole Unicode characters are served"),
        ({"prompt": "(red:10.5)"}, "prompt weighs a word by 10.5; weights up to 10 are served"),
        ({"prompt": f"((red:0):{'9' * 400})"}, "prompt weighs a word by nan; weights up to 10 are served"),
        ({"prompt": "(red:-11)"}, "prompt weighs a word by -11; weights up to 10 are served"),
        ({"two_pass": True}, "two_pass is asked for at 512x512 px; it is served above 512x512 px"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(fields: dict[str, object], told: str):
    assert refusal(**fields) == told


def test_a_schedule_that_a_sampler_does_not_know_is_refused_before_any_model_runs():
    assert "ddim" in refusal(sampler="ddim", sigmas="karras")


@pytest.mark.parametrize("weight", [2.5, -2.5, math.nan])
def test_a_style_weight_out_of_range_is_refused(weight: float):
    job = Job(generation_id=1, task_id="t", prompt="", styles=(StyleRef(path="a", weight=weight),))
    with pytest.raises(InvalidInput, match=rf"weight of style a is {weight}; -2.0 to 2.0 is served"):
        make_plan(job, small_checkpoint(), lambda: 1)


def test_an_inpainting_checkpoint_is_asked_for_nothing_but_a_mask_over_a_picture():
    checkpoint = small_checkpoint(is_inpainting=True)
    source = SourcePicture(picture=np.zeros((512, 512, 3), np.uint8), strength=0.5)
    for pictures in (Pictures(), Pictures(source=source)):
        with pytest.raises(InvalidInput, match="small was trained to inpaint; jobs with a picture and a mask are"):
            make_plan(Job(generation_id=1, task_id="t", prompt="a"), checkpoint, lambda: 1, pictures=pictures)


def test_the_styles_of_a_job_are_in_its_plan():
    style = applied_style(weight=0.5)
    job = Job(generation_id=1, task_id="t", prompt="", styles=(StyleRef(path=style.path, weight=0.5),))
    made = make_plan(job, STYLED, lambda: 1, styles=[style])
    assert (made.styles, made.ways) == ((style,), Ways(unet="mixed", text_encoder="merged"))


def test_a_job_whose_styles_were_not_fetched_is_not_planned_without_them():
    job = Job(generation_id=1, task_id="t", prompt="", styles=(StyleRef(path="a"),))
    with pytest.raises(ValueError, match="with all of its styles or not at all"):
        make_plan(job, small_checkpoint(), lambda: 1)


def test_the_digest_tells_styles_weights_and_ways_apart():
    def digest(style_mode="auto", **changes: object) -> str:
        style = applied_style(**changes)
        job = Job(generation_id=1, task_id="t", prompt="", styles=(StyleRef(path=style.path, weight=style.weight),))
        return make_plan(job, STYLED, lambda: 1, styles=[style], style_mode=style_mode).digest

    digests = [digest(), digest(weight=0.5), digest(sha256="b" * 64), digest(style_mode="merged")]
    assert len(set(digests)) == len(digests)
    assert digest() == digest()


def test_1024x1024_is_made_in_two_passes():
    made = plan(aspect_ratio="2:2")
    assert sizes(made) == [(512, 512), (1024, 1024)]
    assert (made.passes[0].strength, made.passes[1].strength, made.total_steps) == (1.0, 0.3, 50 + 15)


def test_1024x1024_is_made_directly_on_request():
    assert sizes(plan(aspect_ratio="2:2", two_pass=False)) == [(1024, 1024)]


@pytest.mark.parametrize("aspect_ratio", ["1:2", "2:1"])
def test_twice_the_native_area_is_made_in_one_pass(aspect_ratio: str):
    assert len(plan(aspect_ratio=aspect_ratio).passes) == 1


def test_twice_the_native_area_is_made_in_two_passes_on_request():
    assert sizes(plan(aspect_ratio="1:2", two_pass=True)) == [(384, 704), (512, 1024)]


def test_the_base_of_two_passes_is_no_smaller_than_served():
    job = Job(generation_id=1, task_id="t", prompt="", width_px=320, height_px=1024, two_pass=True)
    made = make_plan(job, small_checkpoint(min_size_px=320), lambda: 1)
    assert sizes(made) == [(320, 896), (320, 1024)]


def test_two_passes_of_one_step_take_one_step_each():
    assert plan(aspect_ratio="2:2", num_inference_steps=1, sampler="euler").total_steps == 2


def test_prompt_and_negative_prompt_are_made_equally_long():
    made = plan(prompt="red " * 100, negative_prompt="boat")
    assert [len(made.prompt_chunks), len(made.negative_chunks)] == [2, 2]


def test_a_negative_prompt_longer_than_the_prompt_lengthens_it():
    made = plan(prompt="red", negative_prompt="boat " * 100)
    assert len(made.prompt_chunks) == len(made.negative_chunks) > 1


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_without_guidance_there_is_no_negative_row(guidance_scale: float):
    made = plan(prompt="red", negative_prompt="boat " * 100, guidance_scale=guidance_scale)
    assert (len(made.prompt_chunks), made.negative_chunks) == (1, ())


def test_equal_jobs_have_plans_of_one_digest_and_another_seed_has_another():
    assert plan(seed=1).digest == plan(seed=1).digest != plan(seed=2).digest
