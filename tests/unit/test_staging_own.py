"""Staging by our own networks, with networks that are formulas; the photograph at its own size."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fakes.networks import FormulaServer
from small_checkpoint import small_checkpoint

from orchestrator.errors import Cancelled, InvalidInput, ModelUnavailable, OutOfMemory
from orchestrator.imaging.opencv import Shapes
from orchestrator.metering import MeteredNetworks
from orchestrator.pipeline import Pipeline
from orchestrator.staging.controls import canny_picture, depth_picture
from orchestrator.staging.enlarging import enlarged
from orchestrator.staging.own import OwnProvider, OwnSettings, smaller
from orchestrator.staging.prompts import Wording
from orchestrator.staging.provider import Task
from orchestrator.staging.survey import DepthSight
from orchestrator.staging_models import painting

SETTINGS = OwnSettings(
    steps=10, sampler="ddim", control_scales={"depth": 0.5, "canny": 0.3}, control_start=0.0, control_end=0.5
)


class Listening:
    """A watch that never ends the job, unless it was told to after some looks."""

    def __init__(self, cancelled_at: int = 10**9) -> None:
        self.looks = 0
        self.cancelled_at = cancelled_at
        self.percents: list[int] = []

    def check(self) -> None:
        self.looks += 1
        if self.looks >= self.cancelled_at:
            raise Cancelled("enough")

    def wait(self, seconds: float) -> None:
        raise AssertionError("nothing is waited for")

    def nudge(self) -> None:
        raise AssertionError("nobody waits")

    def left_s(self) -> float:
        return 60.0

    def report(self, percent: int) -> None:
        self.percents.append(percent)


def task(**changes: object) -> Task:
    picture = np.full((256, 320, 3), 180, np.uint8)
    picture[140:, :, 0] = 90
    mask = np.zeros((256, 320), np.bool_)
    mask[150:240, 60:260] = True
    made = Task(
        key="k", picture=picture, mask=mask, wording=Wording("a sofa", ""), seed=7, strength=0.8, guidance_scale=6.0
    )
    return replace(made, **changes)  # type: ignore[arg-type]


Build = Callable[..., OwnProvider]


@pytest.fixture
def server() -> FormulaServer:
    return FormulaServer()


@pytest.fixture
def provider(server: FormulaServer) -> Build:
    def build(*, sees_depth: bool = True, settings: OwnSettings = SETTINGS, **checkpoint: object) -> OwnProvider:
        served = small_checkpoint(**checkpoint)
        networks = MeteredNetworks(server, lambda model, seconds: None)
        return OwnProvider(
            painting(Pipeline(networks, served)),
            served,
            settings,
            Shapes(),
            depth=DepthSight(networks.depth, 64) if sees_depth else None,
            missing=server.ready,
        )

    return build


def test_a_picture_says_which_weights_made_it_and_what_it_took(provider: Build):
    staged = provider().stage(task(), Listening())
    assert staged.pixels.shape == (256, 320, 3)
    assert (staged.provider, staged.mock, staged.model_rev) == ("self", False, "small+000000000000")
    assert staged.model_sha256 == "0" * 64
    assert staged.gpu_s > 0
    assert set(staged.parts_s) == {"text", "denoise", "decode"}


def test_the_same_seed_paints_the_same_and_another_another(provider: Build):
    one, again, other = (provider().stage(task(seed=seed), Listening()).pixels for seed in (7, 7, 8))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_progress_rises_with_the_steps_and_leaves_the_decoder_its_share(provider: Build):
    watch = Listening()
    provider().stage(task(strength=1.0), watch)
    assert watch.percents == [9, 18, 27, 36, 45, 54, 63, 72, 81, 90]


def test_a_room_far_larger_than_the_checkpoint_knows_is_composed_small_and_then_refined(
    provider: Build, server: FormulaServer
):
    watch, wanted = Listening(), task(inverse_depth=np.linspace(0, 1, 256 * 320, dtype=np.float32).reshape(256, 320))
    provider(native_size_px=144, min_size_px=64, controls=("depth", "canny")).stage(wanted, watch)
    small, large = server.pictures
    assert (small.shape, large.shape) == ((1, 128, 192, 3), (1, 256, 320, 3))
    assert np.array_equal(large[0][~wanted.mask], wanted.picture[~wanted.mask]), "refining starts from the photograph"
    assert not np.array_equal(large[0][wanted.mask], wanted.picture[wanted.mask]), "and from what was composed in it"
    edges = [seen["control_canny"][0] for seen in server.controls]
    assert {one.shape for one in edges} == {(128, 192, 3), (256, 320, 3)}
    assert np.array_equal(edges[-1], canny_picture(wanted.picture, Shapes())), "edges are the empty room's in both"
    assert watch.percents == sorted(watch.percents)
    assert watch.percents[-1] > 80


def test_a_size_that_the_checkpoint_knows_is_made_in_one_pass(provider: Build, server: FormulaServer):
    provider(native_size_px=204, min_size_px=64).stage(task(), Listening())
    assert len(server.pictures) == 1


def test_a_smaller_task_may_change_whatever_the_larger_one_may():
    mask = np.zeros((256, 320), np.bool_)
    mask[17, 33] = True
    small = smaller(task(mask=mask), 160, 128)
    assert (small.picture.shape, small.mask.shape) == ((128, 160, 3), (128, 160))
    assert np.argwhere(small.mask).tolist() == [[8, 16]]


def test_a_job_that_ended_stops_between_two_steps_and_leaves_nothing_in_the_server(
    provider: Build, server: FormulaServer
):
    with pytest.raises(Cancelled):
        provider().stage(task(), Listening(cancelled_at=4))
    assert len(server.predicted) == 3
    assert server.placed == 0
    assert server.decoded == 0


def test_a_strength_below_one_step_leaves_the_photograph_and_asks_no_network(provider: Build, server: FormulaServer):
    wanted = task(strength=0.05)
    staged = provider().stage(wanted, Listening())
    assert staged.pixels is wanted.picture
    assert staged.warnings == ("a strength this low leaves the photograph as it is",)
    assert server.encoded == []


def test_controlnets_see_edges_and_depth_in_their_share_of_the_steps(provider: Build, server: FormulaServer):
    wanted = task(strength=1.0)
    provider(controls=("depth", "canny")).stage(wanted, Listening())
    assert server.unets == ["unet_controlnet", "unet"]
    assert len(server.controls) == 5
    seen = server.controls[0]
    assert seen["control_scales"].tolist() == [[0.5, pytest.approx(0.3)]] * 2
    assert np.array_equal(seen["control_canny"][0], canny_picture(wanted.picture, Shapes()))
    assert seen["control_canny"][0].max() == 255
    depth = seen["control_depth"][0]
    assert (depth[-1, 0, 0], depth[0, 0, 0]) == (255, 0), "what is near is white"


def test_depth_that_was_told_before_is_not_asked_for_again(provider: Build, server: FormulaServer):
    told = np.linspace(0, 1, 256 * 320, dtype=np.float32).reshape(256, 320)
    provider(controls=("depth",)).stage(task(inverse_depth=told), Listening())
    assert server.depths == []
    assert np.array_equal(server.controls[0]["control_depth"][0], depth_picture(told))


def test_a_controlnet_for_depth_has_no_say_where_nobody_tells_it(provider: Build, server: FormulaServer):
    provider(sees_depth=False, controls=("depth", "canny")).stage(task(), Listening())
    assert server.controls[0]["control_scales"][0].tolist() == [0.0, pytest.approx(0.3)]


def test_a_scale_of_zero_leaves_a_controlnet_out(provider: Build, server: FormulaServer):
    silent = replace(SETTINGS, control_scales={"depth": 0.0, "canny": 0.0})
    provider(settings=silent, controls=("depth", "canny")).stage(task(), Listening())
    assert server.controls == []
    assert server.depths == []


def test_an_inpainting_checkpoint_is_told_whole_cells_of_the_mask(provider: Build, server: FormulaServer):
    mask = np.zeros((256, 320), np.bool_)
    mask[17:18, 33:34] = True
    provider(is_inpainting=True).stage(task(mask=mask), Listening())
    told = server.masked[0][0, 0]
    assert np.argwhere(told > 0).tolist() == [[2, 4]]


@pytest.mark.parametrize(
    ("model", "error"), [("unet", OutOfMemory("no room")), ("vae_decoder", ModelUnavailable("held NaN or infinity"))]
)
def test_what_a_network_raises_reaches_whoever_counts_failures(
    provider: Build, server: FormulaServer, model: str, error: OutOfMemory | ModelUnavailable
):
    server.fault[model] = error
    with pytest.raises(type(error)):
        provider().stage(task(), Listening())
    assert server.placed == 0


def test_a_size_that_the_engines_do_not_serve_is_refused_with_what_is(provider: Build):
    with pytest.raises(InvalidInput, match="these engines serve 512 to 1024 px"):
        provider(min_size_px=512).stage(task(), Listening())


def test_readiness_names_the_models_that_do_not_answer(provider: Build, server: FormulaServer):
    assert provider().not_ready() is None
    server.missing = ("depth", "unet")
    assert provider().not_ready() == "depth, unet is not ready"


# The photograph at its own size


def test_an_enlarged_picture_is_the_photograph_outside_the_mask_to_the_byte(server: FormulaServer):
    rng = np.random.default_rng(1)
    full = rng.integers(0, 256, (700, 900, 3), np.uint8)
    staged = np.full((256, 320, 3), (200, 30, 30), np.uint8)
    mask = np.zeros((256, 320), np.bool_)
    mask[150:240, 60:260] = True
    large, asked = enlarged(staged, full, mask, server.upscale)
    assert asked
    assert server.upscaled[0].shape == (1, 256, 320, 3)
    rows, columns = np.mgrid[0:700, 0:900]
    inside = mask[(rows + 0.5).astype(int) * 256 // 700, (columns + 0.5).astype(int) * 320 // 900]
    border = np.zeros_like(inside)
    border[1:-1, 1:-1] = True  # a row of pixels more or less is a matter of rounding
    kept = ~inside
    kept[1:] &= ~inside[:-1]
    kept[:-1] &= ~inside[1:]
    kept[:, 1:] &= ~inside[:, :-1]
    kept[:, :-1] &= ~inside[:, 1:]
    assert np.array_equal(large[kept], full[kept])
    assert large[540, 450].tolist() == [200, 30, 30]


def test_a_photograph_that_is_no_larger_asks_no_network(server: FormulaServer):
    full = np.zeros((200, 250, 3), np.uint8)
    large, asked = enlarged(np.full((256, 320, 3), 90, np.uint8), full, np.ones((256, 320), np.bool_), server.upscale)
    assert not asked
    assert server.upscaled == []
    assert large.shape == full.shape
