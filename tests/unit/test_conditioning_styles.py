"""How a plan's styles reach the networks: as rows of the UNet's input, or as models of their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from small_checkpoint import FormulaModels, small_checkpoint
from small_styles import LAYOUT, STYLED, applied_style

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import LoraIncompatible, ModelUnavailable
from orchestrator.job import Job, StyleRef
from orchestrator.pipeline import Finished, Pipeline
from orchestrator.plan import Plan, make_plan
from orchestrator.style_ways import AppliedStyle, StyleMode, merged_name


class Merged:
    """A shelf that serves anything, and says what is in use."""

    def __init__(self) -> None:
        self.used: list[str] = []
        self.in_use: list[str] = []
        self.loads: list[str] = []
        self.lost = False

    @contextmanager
    def serving(self, model: str, styles: Sequence[AppliedStyle], unmixed: str | None = None) -> Iterator[str]:
        name = merged_name(model, STYLED.models[model], styles)
        self.used.append(name)
        self.in_use.append(name)
        try:
            yield name
        finally:
            self.in_use.remove(name)

    def load(self, name: str) -> bool:
        self.loads.append(name)
        was_lost, self.lost = self.lost, False
        return was_lost


def unet_only(style: AppliedStyle) -> AppliedStyle:
    assert style.style.lora is not None
    return replace(style, style=replace(style.style, lora=replace(style.style.lora, text_encoder={})))


def planned(
    *styles: AppliedStyle, mode: StyleMode = "auto", checkpoint: CheckpointInfo = STYLED, guidance_scale: float = 7.5
) -> Plan:
    job = Job(
        generation_id=1,
        task_id="t",
        prompt="a boat",
        seed=3,
        num_inference_steps=4,
        width_px=256,
        height_px=256,
        guidance_scale=guidance_scale,
        styles=tuple(StyleRef(path=one.path, weight=one.weight) for one in styles),
    )
    return make_plan(job, checkpoint, lambda: 0, styles=styles, style_mode=mode)


def picture(plan: Plan, models: FormulaModels, merged: Merged | None = None) -> np.ndarray:
    *_, last = Pipeline(models, STYLED, merged).run(plan)
    assert isinstance(last, Finished)
    return last.picture


def test_a_style_is_in_both_rows_of_a_guidance_pair() -> None:
    models = FormulaModels()
    style = unet_only(applied_style(weight=0.5))
    picture(planned(style), models)
    expected = LAYOUT.row([(style.style.deltas("unet"), 0.5)])
    assert models.styles[0].shape == (2, LAYOUT.size)
    assert all(np.array_equal(row, expected) for row in models.styles[0])
    assert models.unets == ["unet"]


def test_without_guidance_there_is_one_row() -> None:
    models = FormulaModels()
    picture(planned(unet_only(applied_style()), guidance_scale=1.0), models)
    assert models.styles[0].shape == (1, LAYOUT.size)


def test_a_job_without_a_style_sends_zeros() -> None:
    models = FormulaModels()
    picture(planned(), models)
    assert models.styles[0].shape == (2, LAYOUT.size)
    assert not models.styles[0].any()


def test_a_unet_without_the_input_gets_none() -> None:
    models = FormulaModels()
    checkpoint = small_checkpoint()
    *_, last = Pipeline(models, checkpoint).run(planned(checkpoint=checkpoint))
    assert isinstance(last, Finished)
    assert models.styles == []


def test_a_merged_style_has_a_unet_and_a_text_encoder_of_its_own_and_zeros_in_its_rows() -> None:
    models, merged = FormulaModels(), Merged()
    style = applied_style()
    picture(planned(style, mode="merged"), models, merged)
    assert models.unets == [merged_name("unet", STYLED.models["unet"], [style])]
    assert set(models.encoders) == {merged_name("text_encoder", STYLED.models["text_encoder"], [style])}
    assert not models.styles[0].any()


def test_a_style_that_mixes_may_have_its_text_encoder_merged() -> None:
    models, merged = FormulaModels(), Merged()
    picture(planned(applied_style()), models, merged)
    assert models.unets == ["unet"]
    assert models.styles[0].any()
    assert all("--" in name for name in models.encoders)


def test_embeddings_of_a_merged_text_encoder_are_not_those_of_the_base_model() -> None:
    models, merged = FormulaModels(), Merged()
    pipeline = Pipeline(models, STYLED, merged)
    for plan in (planned(), planned(applied_style()), planned(), planned(applied_style(sha256="b" * 64))):
        list(pipeline.run(plan))
    assert len(set(models.encoders)) == 3
    assert len(models.encoders) == 6  # prompt and negative prompt of each but the third, which was encoded before


def test_embeddings_seen_before_need_no_merged_text_encoder() -> None:
    merged = Merged()
    pipeline = Pipeline(FormulaModels(), STYLED, merged)
    for _ in range(2):
        list(pipeline.run(planned(applied_style())))
    assert len(merged.used) == 2


def test_a_merged_model_is_held_until_the_last_step_and_then_let_go() -> None:
    merged = Merged()
    turns = Pipeline(FormulaModels(), STYLED, merged).run(planned(unet_only(applied_style()), mode="merged"))
    next(turns)
    assert len(merged.in_use) == 1
    turns.close()
    assert merged.in_use == []


def test_a_merged_model_that_the_server_lost_is_loaded_again_once() -> None:
    class Losing(FormulaModels):
        def predict(self, *args, **inputs):
            if len(self.predicted) == 2 and not merged.loads:
                merged.lost = True
                raise ModelUnavailable("unknown model")
            return super().predict(*args, **inputs)

    style = unet_only(applied_style())
    merged, models = Merged(), Losing()
    found = picture(planned(style, mode="merged"), models, merged)
    assert merged.loads == models.unets
    assert np.array_equal(found, picture(planned(style, mode="merged"), FormulaModels(), Merged()))


def test_a_server_that_fails_for_another_reason_fails_the_attempt() -> None:
    class Broken(FormulaModels):
        def predict(self, *args, **inputs):
            raise ModelUnavailable("NaN")

    with pytest.raises(ModelUnavailable, match="NaN"):
        picture(planned(unet_only(applied_style()), mode="merged"), Broken(), Merged())


def test_where_no_model_can_be_merged_the_style_is_refused() -> None:
    with pytest.raises(LoraIncompatible, match="small is served without merged models"):
        picture(planned(applied_style(), mode="merged"), FormulaModels())
