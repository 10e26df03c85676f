"""What the scripts that train the demo's depth network and upscaler reckon with, and the folders that they leave."""

import math
from pathlib import Path

import numpy as np
import pytest

from export.checkpoint import open_checkpoint
from export.companions import with_depth, with_upscaler

DEMO = Path(__file__).parents[2] / "demo" / "checkpoint"

torch = pytest.importorskip("torch")
train_depth = pytest.importorskip("demo.rooms.train_depth")
train_upscaler = pytest.importorskip("demo.rooms.train_upscaler")


def test_a_factor_that_all_of_a_picture_shares_counts_half() -> None:
    depth_m = torch.rand(2, 8, 8) + 1.0

    loss = train_depth.loss_of(2 * depth_m, depth_m)

    assert loss.item() == pytest.approx(0.5 * math.log(2) ** 2, rel=1e-4)
    assert train_depth.loss_of(depth_m, depth_m).item() == 0.0


def test_rooms_are_seen_as_squares_with_metres_for_every_pixel() -> None:
    rooms = train_depth.draw(5, 2)

    assert rooms.pictures.shape == (2, 256, 256, 3)
    assert rooms.depth_m.shape == (2, 256, 256)
    assert 0.3 < rooms.depth_m.min() < rooms.depth_m.max() <= train_depth.MAX_DEPTH_M


def test_depth_folder_that_training_leaves_is_one_that_is_exported(tmp_path: Path) -> None:
    train_depth.save(train_depth.new_network(), tmp_path)

    made = with_depth(open_checkpoint(str(DEMO)), str(tmp_path))

    assert (made.architecture.depth_size_px, made.configs["depth"]["is_metric"]) == (256, True)
    assert (tmp_path / "model.safetensors").stat().st_size < 2_000_000


def test_upscaler_learns_from_pictures_whose_pixels_are_whole_means_of_four() -> None:
    large = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.float32)) / 255

    small = train_upscaler.reduced(large) * 255

    four = large[0, 0, :2, :2].mean().item() * 255
    assert small.shape == (1, 3, 4, 4)
    assert small[0, 0, 0, 0].item() == pytest.approx(round(four), abs=0.51)
    np.testing.assert_allclose(small, small.round(), atol=1e-3)


def test_upscaler_begins_as_nearest_neighbour() -> None:
    small = torch.rand(1, 3, 6, 7)

    with torch.no_grad():
        large = train_upscaler.new_network()(small)

    torch.testing.assert_close(large, small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_upscaler_folder_that_training_leaves_is_one_that_is_exported(tmp_path: Path) -> None:
    train_upscaler.save(train_upscaler.new_network(), tmp_path)

    assert with_upscaler(open_checkpoint(str(DEMO)), tmp_path).architecture.upscale_factor == 2
