"""The companions in torch, wrapped as their graphs: pictures in as they lie on the wire, nothing left to do outside."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForDepthEstimation

from export.compact_upscaler import CompactUpscaler, Shape
from export.errors import ExportError
from export.folders import variant_of, weight_files

_NEAREST_M: Final = 1e-3
_FARTHEST: Final = 1e-6


class DepthEstimator(nn.Module):
    """sample uint8 [n,s,s,3] -> inverse_depth float32 [n,s,s]: positive, larger is nearer, at any scale."""

    def __init__(self, network: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.is_metric: bool = config["is_metric"]
        self.scale: float = config["scale"]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, sample: Tensor) -> Tensor:
        picture = sample.float().permute(0, 3, 1, 2) * self.scale
        seen = (picture - self.get_buffer("mean")) / self.get_buffer("std")
        told: Tensor = self.network(pixel_values=seen).predicted_depth
        size = tuple(sample.shape[1:3])
        if tuple(told.shape[1:]) != size:
            told = functional.interpolate(told.unsqueeze(1), size=size, mode="bilinear").squeeze(1)
        return 1.0 / told.clamp(min=_NEAREST_M) if self.is_metric else told.clamp(min=_FARTHEST)


class CountedNorm(nn.Module):
    """A batch normalisation that has counted, as plain arithmetic of the same tensors.

    As an operator the tracer would fold it into the convolution before it, and a graph would hold one network's counts.
    """

    def __init__(self, counted: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = counted.eps
        self.weight, self.bias = counted.weight, counted.bias
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, counted.get_buffer(name))

    def forward(self, values: Tensor) -> Tensor:
        share = self.weight * torch.rsqrt(self.get_buffer("running_var") + self.eps)
        shift = self.bias - self.get_buffer("running_mean") * share
        return values * share.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Upscaler(nn.Module):
    """sample uint8 [n,h,w,3] -> upscaled uint8 [n,kh,kw,3]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        # TensorRT moves no bytes about: cast first.
        picture = sample.float().permute(0, 3, 1, 2) / 255.0
        levels = self.network(picture.to(dtype)).float().clamp(0.0, 1.0) * 255.0
        return levels.round().permute(0, 2, 3, 1).to(torch.uint8)  # type: ignore[no-any-return]


def trained(component: str, folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A companion with the weights of its folder."""
    if component == "upscaler":
        network: nn.Module = CompactUpscaler(Shape.of(config))
        (file,) = weight_files(folder)
        network.load_state_dict(load_file(file))
        return network.to(dtype)
    variant = variant_of(folder)
    return AutoModelForDepthEstimation.from_pretrained(folder, dtype=dtype, variant=variant)  # type: ignore[no-any-return]


def untrained(component: str, config: Mapping[str, Any]) -> nn.Module:
    """A companion of the same shape, to be traced."""
    if component == "upscaler":
        return CompactUpscaler(Shape.of(config))
    said = dict(config["network"])
    network: nn.Module = AutoModelForDepthEstimation.from_config(AutoConfig.for_model(said.pop("model_type"), **said))
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            network.set_submodule(name, CountedNorm(module))
    return network


def wrapped(component: str, network: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """The companion as its graph is."""
    return Upscaler(network) if component == "upscaler" else DepthEstimator(network, config)


def filed_names(network: Any) -> dict[str, str]:
    """What a file calls each of a network's tensors: transformers renames some when it reads one.

    It renames them back when it writes, so it is given one number for each tensor, which comes back under that name.
    """
    names = list(network.state_dict())
    if not hasattr(network, "save_pretrained"):
        return {name: name for name in names}
    with TemporaryDirectory() as folder:
        numbers = {name: torch.tensor([float(index)]) for index, name in enumerate(names)}
        network.save_pretrained(folder, state_dict=numbers)
        (file,) = weight_files(Path(folder))
        with safe_open(file, "pt") as tensors:
            filed = {filed: tensors.get_tensor(filed) for filed in tensors.keys()}  # noqa: SIM118 - no mapping
    if any(number.numel() != 1 for number in filed.values()):
        raise ExportError(
            f"{type(network).__name__} is stored in another form than it computes in; such networks are not served"
        )
    return {names[int(number.item())]: name for name, number in filed.items()}
