"""Which batch meets which optimisation profile, and which batches are captured as CUDA graphs."""

from dataclasses import replace
from itertools import product

import pytest
from export_checkpoints import SD15_BLOCKS, projections

from export.profiles import BUCKETS_PX, Profile, cuda_graphs_of, profiles_of
from export.specs import FAMILIES, Architecture, Axis, Device, Graph, TextEncoder, graphs_of

SD15 = Architecture(
    FAMILIES["sd1"], (TextEncoder("text_encoder", 768, 768),), 4, 8, 8, tuple(projections(SD15_BLOCKS, 768))
)
GRAPHS = {graph.name: graph for graph in graphs_of(SD15)}
CONTROLLED = next(g for g in graphs_of(replace(SD15, controls=("depth", "canny"))) if g.name == "unet_controlnet")
SDXL = replace(
    SD15,
    family=FAMILIES["sdxl"],
    encoders=(TextEncoder("text_encoder", 768, 768), TextEncoder("text_encoder_2", 1280, 1280)),
)
SIZED = [
    pytest.param(graph, id=f"{family}-{graph.name}")
    for family, graphs in (("sd1", (*GRAPHS.values(), CONTROLLED)), ("sdxl", graphs_of(SDXL)))
    for graph in graphs
    if not graph.name.startswith("text_encoder")
]
UNET = GRAPHS["unet"]


def profiles(graph: Graph) -> tuple[Profile, ...]:
    return profiles_of(graph, graph.batching[Device.GPU])


def batch(graph: Graph, width_px: int, height_px: int, rows: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a batch of pictures of one size, with one chunk of text."""

    def size(dim: int | Axis) -> int:
        if isinstance(dim, int):
            return dim
        return (width_px if dim.name in "wW" else height_px) // dim.px if dim.px else 77

    return {tensor.name: (rows, *map(size, tensor.dims)) for tensor in graph.inputs}


def spans(profile: Profile, shapes: dict[str, tuple[int, ...]]) -> bool:
    return all(
        low <= size <= high
        for name, shape in shapes.items()
        for size, low, high in zip(shape, profile.shapes[name][0], profile.shapes[name][2], strict=True)
    )


def tritons_distance(profile: Profile, shapes: dict[str, tuple[int, ...]]) -> int:
    """As Triton's TensorRT backend adds it up: each dimension of the optimum against the batch's one before."""
    total = 0
    for name, shape in shapes.items():
        best = profile.shapes[name][1]
        total += abs(best[0] - shape[0]) + sum(abs(best[i] - shape[i - 1]) for i in range(1, len(best)))
    return total


def true_distance(profile: Profile, shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(
        abs(best - size)
        for name, shape in shapes.items()
        for best, size in zip(profile.shapes[name][1], shape, strict=True)
    )


@pytest.mark.parametrize("distance", [tritons_distance, true_distance])
@pytest.mark.parametrize("graph", SIZED)
def test_every_batch_of_a_bucket_gets_the_buckets_own_profile(graph: Graph, distance) -> None:
    for (width_px, height_px), rows in product(BUCKETS_PX, range(1, graph.batching[Device.GPU].max_rows + 1)):
        shapes = batch(graph, width_px, height_px, rows)
        fitting = [profile for profile in profiles(graph) if spans(profile, shapes)]

        nearest = min(fitting, key=lambda profile: distance(profile, shapes))

        assert nearest.name == f"{width_px}x{height_px}", (rows, [(p.name, distance(p, shapes)) for p in fitting])


@pytest.mark.parametrize("graph", SIZED)
def test_any_other_size_is_served_by_the_last_profile(graph: Graph) -> None:
    for size_px, rows in product(((256, 256), (768, 512), (320, 1024), (960, 960)), (1, 3)):
        fitting = [profile.name for profile in profiles(graph) if spans(profile, batch(graph, *size_px, rows))]

        assert fitting == ["any other"]


def test_a_bucket_is_tuned_for_as_much_work_as_the_smallest_one() -> None:
    best = {profile.name: profile.shapes["sample"][1] for profile in profiles(UNET)}

    assert best["512x512"] == (8, 4, 64, 64)
    assert best["1024x512"] == (4, 4, 64, 128)
    assert best["512x1024"] == (4, 4, 128, 64)
    assert best["1024x1024"] == (2, 4, 128, 128)


def test_prompts_of_every_length_fit_a_buckets_profile() -> None:
    low, best, high = profiles(UNET)[0].shapes["encoder_hidden_states"]

    assert (low[1], best[1], high[1]) == (77, 77, 231)


def test_text_encoder_has_one_profile() -> None:
    (profile,) = profiles(GRAPHS["text_encoder"])

    assert profile.shapes["input_ids"] == ((1, 77), (2, 77), (32, 77))


def test_cuda_graphs_are_captured_for_one_row_and_for_guided_jobs() -> None:
    captured = cuda_graphs_of(UNET, UNET.batching[Device.GPU])

    rows = {
        size: [graph.rows for graph in captured if graph.shapes["sample"] == (4, *size)]
        for size in ((64, 64), (64, 128), (128, 64), (128, 128))
    }
    assert rows == {
        (64, 64): [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20],
        (64, 128): [1, 2, 4, 6, 8, 10],
        (128, 64): [1, 2, 4, 6, 8, 10],
        (128, 128): [1, 2, 4],
    }


def test_cuda_graph_names_every_input_and_lies_within_a_profile() -> None:
    for graph in cuda_graphs_of(UNET, UNET.batching[Device.GPU]):
        assert list(graph.shapes) == [tensor.name for tensor in UNET.inputs]
        shapes = {name: (graph.rows, *shape) for name, shape in graph.shapes.items()}
        assert any(spans(profile, shapes) for profile in profiles(UNET)[:-1])


@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder", "vae_encoder"])
def test_only_the_network_that_runs_every_step_is_captured(name: str) -> None:
    assert cuda_graphs_of(GRAPHS[name], GRAPHS[name].batching[Device.GPU]) == ()
