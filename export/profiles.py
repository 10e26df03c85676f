"""TensorRT's optimisation profiles, one for each size that is asked for, and the CUDA graphs that Triton captures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from export import specs
from export.errors import ExportError

Shape = tuple[int, ...]

BUCKETS_PX: Final = ((512, 512), (1024, 512), (512, 1024), (1024, 1024))
"""Width and height of what is asked for most; every other size is served too, by a profile that is tuned for none."""


@dataclass(frozen=True)
class Profile:
    """(minimum, optimum, maximum) shape of every input, batch included, under the name of its size."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class CudaGraph:
    """One batch whose kernels are launched at once: its rows, and the shape of a row of every input."""

    rows: int
    shapes: Mapping[str, Shape]


def check_sizes(architecture: specs.Architecture, buckets_px: Sequence[tuple[int, int]]) -> None:
    """Refuses a bucket that the networks do not serve."""
    low, high = architecture.family.edges_px
    step = architecture.latent_multiple * architecture.vae_scale_factor
    for width, height in buckets_px:
        if any(side % step or not low <= side <= high for side in (width, height)):
            raise ExportError(
                f"--sizes names {width}x{height}; sides of {low} to {high} px in steps of {step} px are served"
            )


def profiles_of(
    graph: specs.Graph, batching: specs.Batching, buckets_px: Sequence[tuple[int, int]] = BUCKETS_PX
) -> tuple[Profile, ...]:
    """One profile for each bucket, exact in height and width, and a last one for any other size.

    Triton takes the profile whose optimum is nearest to a batch. It adds up the distances of neighbouring dimensions
    (a batch's height counts against the optimum's width), so the last one's optimum is as high and narrow as can be:
    that is farther from every bucket's batches than the bucket itself, by Triton's sum and by the true one.
    """
    if not any(_is_size(dim) for tensor in graph.inputs for dim in tensor.dims):
        return (Profile("any", _shapes(graph, batching.max_rows, batching.tuned_rows[0])),)
    profiles = []
    for width_px, height_px in buckets_px:
        rows = _tuned_rows(batching, buckets_px, (width_px, height_px))
        shapes = _shapes(graph, batching.max_rows, rows, (width_px, height_px))
        profiles.append(Profile(f"{width_px}x{height_px}", shapes))
    return (*profiles, Profile("any other", _shapes(graph, batching.max_rows, batching.tuned_rows[1])))


def cuda_graphs_of(
    graph: specs.Graph, batching: specs.Batching, buckets_px: Sequence[tuple[int, int]] = BUCKETS_PX
) -> tuple[CudaGraph, ...]:
    """The batches worth capturing: of the UNet, one row, and every number of guided jobs while the work is small.

    A batch of as much work as a full one of the smallest bucket keeps the GPU longer than its launches take.
    """
    if not any(tensor.name == "timestep" for tensor in graph.inputs):
        return ()
    graphs = []
    smallest = min(width * height for width, height in buckets_px)
    for width_px, height_px in buckets_px:
        most = max(2, batching.max_rows * smallest // (width_px * height_px))
        shapes = {tensor.name: tuple(_row(tensor, (width_px, height_px))) for tensor in graph.inputs}
        graphs += [CudaGraph(rows, shapes) for rows in (1, *range(2, most + 1, 2))]
    return tuple(graphs)


def _is_size(dim: int | specs.Axis) -> bool:
    return isinstance(dim, specs.Axis) and dim.px > 0


def _side(axis: specs.Axis, size_px: tuple[int, int]) -> int:
    """A picture's width or height in this axis's elements."""
    width_px, height_px = size_px
    return (width_px if axis.name in ("w", "W") else height_px) // axis.px


def _tuned_rows(batching: specs.Batching, buckets_px: Sequence[tuple[int, int]], size_px: tuple[int, int]) -> int:
    """As much work as the rows that the smallest bucket is tuned for."""
    smallest = min(width * height for width, height in buckets_px)
    return max(1, batching.tuned_rows[0] * smallest // (size_px[0] * size_px[1]))


def _shapes(
    graph: specs.Graph, max_rows: int, tuned_rows: int, size_px: tuple[int, int] | None = None
) -> dict[str, tuple[Shape, Shape, Shape]]:
    shapes = {}
    for tensor in graph.inputs:
        ranges = [_range(dim, size_px) for dim in tensor.dims]
        low, best, high = (tuple(range_[which] for range_ in ranges) for which in (0, 1, 2))
        shapes[tensor.name] = ((1, *low), (tuned_rows, *best), (max_rows, *high))
    return shapes


def _range(dim: int | specs.Axis, size_px: tuple[int, int] | None) -> tuple[int, int, int]:
    """Smallest, best and largest; of any other size high and narrow is best (see ``profiles_of``)."""
    if isinstance(dim, int):
        return dim, dim, dim
    if dim.px == 0:
        return dim.minimum, dim.tuned[0], dim.maximum
    if size_px is not None:
        return (_side(dim, size_px),) * 3
    return dim.minimum, dim.minimum if dim.name in ("w", "W") else dim.maximum, dim.maximum


def _row(tensor: specs.Tensor, size_px: tuple[int, int]) -> Iterator[int]:
    for dim in tensor.dims:
        yield dim if isinstance(dim, int) else _side(dim, size_px) if dim.px else dim.minimum
