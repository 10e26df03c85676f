"""What the UNet is told: prompts by one or two text encoders, sizes, and what ControlNets see."""

import numpy as np
from small_checkpoint import WIDTH, small_checkpoint

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.conditioning import Conditioning, time_ids
from orchestrator.job import Job
from orchestrator.pictures import ControlPicture, Pictures
from orchestrator.plan import Plan, make_plan

PADDING_2 = 7


def sdxl(**changes: object) -> CheckpointInfo:
    fields = {"family": "sdxl", "size_step_px": 32, "pad_ids": {"text_encoder_2": PADDING_2}}
    return small_checkpoint(**{**fields, **changes})


class Encoders:
    """Two text encoders of different widths that say which ids they got."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[list[int]]]] = []

    def __call__(self, input_ids: np.ndarray, model: str) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((model, input_ids.tolist()))
        width = WIDTH + (model == "text_encoder_2")
        hidden = np.repeat(input_ids[..., None].astype(np.float32), width, axis=2)
        return hidden, hidden[:, 1] * (10 if model == "text_encoder_2" else 1)


def plan_on(checkpoint: CheckpointInfo, pictures: Pictures | None = None, **fields: object) -> Plan:
    fields = {"prompt": "red", "negative_prompt": "boat", "width_px": 256, "height_px": 320, **fields}
    job = Job(generation_id=1, task_id="t", seed=1, num_inference_steps=4, **fields)
    return make_plan(job, checkpoint, lambda: 1, pictures=pictures or Pictures())


def inputs_on(checkpoint: CheckpointInfo, **fields: object) -> dict[str, np.ndarray]:
    plan = plan_on(checkpoint, **fields)
    return Conditioning(Encoders(), checkpoint).inputs(plan, plan.passes[0])


def test_sd1_is_told_its_prompts_and_nothing_else():
    assert {name: value.shape for name, value in inputs_on(small_checkpoint()).items()} == {
        "encoder_hidden_states": (2, 77, WIDTH)
    }


def test_sdxl_is_told_both_encoders_words_side_by_side_the_pooled_output_and_the_size():
    inputs = inputs_on(sdxl())
    assert {name: value.shape for name, value in inputs.items()} == {
        "encoder_hidden_states": (2, 77, 2 * WIDTH + 1),
        "text_embeds": (2, WIDTH + 1),
        "time_ids": (2, 6),
    }
    assert inputs["time_ids"].tolist() == [[320, 256, 0, 0, 320, 256]] * 2


def test_pooled_output_is_the_second_encoders_with_the_negative_prompts_row_first():
    tokens = small_checkpoint().tokenizer
    negative, prompt = inputs_on(sdxl())["text_embeds"][:, 0]
    assert (negative, prompt) == (10 * tokens.vocab["boat</w>"], 10 * tokens.vocab["red</w>"])


def test_every_encoder_gets_its_own_padding():
    checkpoint, encoders = sdxl(), Encoders()
    plan = plan_on(checkpoint)
    Conditioning(encoders, checkpoint).inputs(plan, plan.passes[0])
    tokens = checkpoint.tokenizer
    red, ends = tokens.vocab["red</w>"], (tokens.bos_id, tokens.eos_id)
    assert ("text_encoder", [[ends[0], red, ends[1], *[tokens.pad_id] * 74]]) in encoders.asked
    assert ("text_encoder_2", [[ends[0], red, ends[1], *[PADDING_2] * 74]]) in encoders.asked


def test_no_negative_prompt_is_zeros_only_where_the_checkpoint_says_so():
    silent = inputs_on(sdxl(zeros_for_no_negative=True), negative_prompt="")
    assert not silent["encoder_hidden_states"][0].any() and not silent["text_embeds"][0].any()
    assert silent["encoder_hidden_states"][1].all()
    assert inputs_on(sdxl(), negative_prompt="")["encoder_hidden_states"][0].all()


def test_a_negative_prompt_is_never_zeros():
    assert inputs_on(sdxl(zeros_for_no_negative=True))["text_embeds"].all()


def test_pooled_output_of_a_long_prompt_is_its_first_chunks():
    long = inputs_on(sdxl(), prompt="red " * 75 + "boat")
    assert long["encoder_hidden_states"].shape == (2, 154, 2 * WIDTH + 1)
    assert long["text_embeds"][1, 0] == inputs_on(sdxl())["text_embeds"][1, 0]


def test_without_guidance_there_is_one_row():
    assert {value.shape[0] for value in inputs_on(sdxl(), guidance_scale=1.0).values()} == {1}


def test_time_ids_say_height_before_width():
    assert time_ids(1024, 512).tolist() == [512, 1024, 0, 0, 512, 1024]


def test_a_controlnet_that_is_not_named_sees_black_and_counts_nothing():
    checkpoint = small_checkpoint(controls=("depth", "canny"))
    picture = np.full((320, 256, 3), 9, np.uint8)
    plan = plan_on(checkpoint, Pictures(controls=(ControlPicture(name="canny", picture=picture),)))
    inputs = Conditioning(Encoders(), checkpoint).control_inputs(plan, [0.5])
    assert list(inputs) == ["control_depth", "control_canny", "control_scales"]
    assert not inputs["control_depth"].any() and (inputs["control_canny"] == 9).all()
    assert inputs["control_canny"].shape == (2, 320, 256, 3)
    assert inputs["control_scales"].tolist() == [[0.0, 0.5]] * 2
