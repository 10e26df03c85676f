"""Checkpoint to ONNX: the wrapped networks, and the traced graph of an architecture without its weights.

The only module that imports torch, diffusers and transformers for export; everything after it works on files.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, Final

import onnx
import onnx_ir
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from onnxscript import optimizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils.logging import disable_progress_bar

from export import specs
from export.binding import detach
from export.checkpoint import Checkpoint
from export.style_input import StyledUNet

DTYPES: Final = {
    specs.Precision.FP32: torch.float32,
    specs.Precision.FP16: torch.float16,
    specs.Precision.BF16: torch.bfloat16,
}
_CONTROLNET: Final = re.compile(r"(?:^|\.)controlnets\.(\d+)\.")
_TRACED_ROWS: Final = 2
"""A dimension of 1 would be taken for a constant."""


class TextEncoder(nn.Module):
    """input_ids int64 [n,77] -> last_hidden_state [n,77,width] (after the final norm), pooler_output [n,width]."""

    def __init__(self, network: nn.Module, wire: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.wire = wire

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        states, pooled = self.network(input_ids, return_dict=False)[:2]
        return states.to(self.wire), pooled.to(self.wire)


class PenultimateTextEncoder(nn.Module):
    """input_ids int64 [n,77] -> hidden states before the last layer [n,77,width], pooled output [n,pooled width].

    The pooled output is projected where the network has a projection; the hidden states are without the final norm.
    """

    def __init__(self, network: nn.Module, wire: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.wire = wire

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.network(input_ids, output_hidden_states=True)
        pooled = answer.text_embeds if "text_embeds" in answer else answer.pooler_output
        return answer.hidden_states[-2].to(self.wire), pooled.to(self.wire)


class UNet(nn.Module):
    """sample [n,4,h,w], timestep float32 [n,1], encoder_hidden_states [n,77k,width] -> out_sample [n,4,h,w].

    SDXL's also takes text_embeds [n,width] and time_ids float32 [n,6].
    """

    def __init__(self, network: nn.Module, wire: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.wire = wire

    def forward(self, *inputs: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        noise = self.network(*_told(dtype, inputs), added_cond_kwargs=_added(inputs), return_dict=False)[0]
        return noise.to(self.wire)  # type: ignore[no-any-return]


class ControlledUNet(nn.Module):
    """A UNet and its ControlNets: as ``UNet``, and a picture uint8 [n,8h,8w,3] each, control_scales float32 [n,k]."""

    def __init__(self, network: nn.Module, controlnets: Sequence[nn.Module], wire: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.controlnets = nn.ModuleList(controlnets)
        self.wire = wire

    def forward(self, *inputs: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        *others, scales = inputs
        told, added = _told(dtype, others), _added(others[: -len(self.controlnets)])
        residuals: list[Tensor] = []
        for index, controlnet in enumerate(self.controlnets):
            picture = others[index - len(self.controlnets)].float().permute(0, 3, 1, 2) / 255.0
            scale = scales[:, index].reshape(-1, 1, 1, 1).to(dtype)
            down, middle = controlnet(
                *told, picture.to(dtype), conditioning_scale=scale, added_cond_kwargs=added, return_dict=False
            )
            said = [*down, middle]
            residuals = said if not residuals else [one + other for one, other in zip(residuals, said, strict=True)]
        noise = self.network(
            *told,
            added_cond_kwargs=added,
            down_block_additional_residuals=tuple(residuals[:-1]),
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
        )[0]
        return noise.to(self.wire)  # type: ignore[no-any-return]


def _told(dtype: torch.dtype, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What every UNet reads, from the first three inputs."""
    sample, timestep, encoder_hidden_states = inputs[:3]
    return sample.to(dtype), timestep.squeeze(-1), encoder_hidden_states.to(dtype)


def _added(inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What SDXL's UNet reads besides, if there is a fourth and fifth input.

    The time ids' embedding is float32 when the two are joined; in fp16 a graph that joins both kinds is invalid.
    """
    if len(inputs) < 5:
        return {}
    return {"text_embeds": inputs[3].float(), "time_ids": inputs[4]}


class VaeDecoder(nn.Module):
    """latent_sample [n,4,h,w] as the UNet sees them -> sample uint8 [n,8h,8w,3], mean float32 [n,1].

    ``mean`` is that of the picture before clamping (-1 to 1): bytes cannot be NaN, so an overflow shows only there.
    """

    def __init__(self, network: nn.Module, wire: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.wire = wire

    def forward(self, latent_sample: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        latents = latent_sample.to(next(network.parameters()).dtype) / network.config.scaling_factor
        picture = network.decode(latents, return_dict=False)[0].float()
        levels = (picture / 2 + 0.5).clamp(0.0, 1.0) * 255.0
        return levels.round().permute(0, 2, 3, 1).to(torch.uint8), picture.mean(dim=(1, 2, 3)).unsqueeze(-1)


class VaeEncoder(nn.Module):
    """sample uint8 [n,8h,8w,3] -> the latents' mean and standard deviation [n,4,h,w], as the UNet sees them."""

    def __init__(self, network: nn.Module, wire: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.wire = wire

    def forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        # TensorRT moves no bytes about: cast first.
        picture = sample.float().permute(0, 3, 1, 2) / 127.5 - 1.0
        moments = network.quant_conv(network.encoder(picture.to(next(network.parameters()).dtype))).float()
        mean, log_variance = moments.chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        scale = network.config.scaling_factor
        return (mean * scale).to(self.wire), (deviation * scale).to(self.wire)


_WRAPPERS: Final[dict[str, type[nn.Module]]] = {
    "unet": UNet,
    "vae_decoder": VaeDecoder,
    "vae_encoder": VaeEncoder,
}
_CLASSES: Final[dict[str, Any]] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}


def load(graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision = specs.Precision.FP32) -> nn.Module:
    """The network with the checkpoint's weights, taking and giving what the graph does, but for a style."""
    with _quietly():
        networks = [
            _CLASSES.get(component, ControlNetModel).from_pretrained(
                checkpoint.folder_of(component), torch_dtype=DTYPES[precision]
            )
            for component in graph.components
        ]
    return _wrap(graph, networks, precision)


def trace(graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision) -> onnx.ModelProto:
    """The graph of the checkpoint's architecture, weightless (see ``binding``).

    Every weight is a different random number while it is traced: an optimiser that saw a checkpoint's ones and zeros
    would merge equal tensors or drop them, and the graph would fit that checkpoint alone.
    """
    networks = [_untrained(component, checkpoint, precision) for component in graph.components]
    module = _wrap(graph, networks, precision)
    if graph.style is not None:
        module = StyledUNet(module, networks[0], graph.style).eval()
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            module,
            _example_inputs(graph, precision),
            input_names=[tensor.name for tensor in graph.inputs],
            output_names=[tensor.name for tensor in graph.outputs],
            dynamic_shapes=_dynamic_shapes(graph, module),
            opset_version=specs.opset_of(graph, precision),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model: Any = program.model
    names = {name for name, _ in module.named_parameters()} & set(model.graph.initializers)
    with _quietly():
        optimizer.optimize_ir(model, should_fold=lambda node: _reads(node, names))
    for name in names:
        model.graph.initializers[name].const_value = _without_data(model.graph.initializers[name].const_value)
    return detach(onnx_ir.to_proto(model), {name: _source(graph, name) for name in names})


def _source(graph: specs.Graph, parameter: str) -> str:
    """Which of ``Checkpoint.weights_of``'s tensors a wrapped network's parameter is."""
    found = _CONTROLNET.search(parameter)
    if found is not None:
        return f"{graph.controls[int(found[1])]}.{parameter[found.end() :]}"
    return parameter.partition("network.")[2].removeprefix("text_model.")


def _reads(node: Any, names: set[str]) -> bool | None:
    """Whether the optimiser may compute this node now: False where it reads a weight, else its own judgement."""
    return False if any(value is not None and value.name in names for value in node.inputs) else None


def _without_data(tensor: Any) -> Any:
    return onnx_ir.ExternalTensor(
        "checkpoint", offset=0, length=0, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name
    )


def _untrained(component: str, checkpoint: Checkpoint, precision: specs.Precision) -> nn.Module:
    config = dict(checkpoint.configs[component])
    kind = _CLASSES.get(component, ControlNetModel)
    with _in_precision(precision), _quietly(), torch.no_grad():
        if component.startswith("text_encoder"):
            # The eager form has no masked-row guard (IsNaN, Where) around each softmax; a causal row is never empty.
            text_config = CLIPTextConfig.from_dict(config)
            text_config._attn_implementation = "eager"
            network: nn.Module = kind(text_config)
        else:
            network = kind.from_config(config)
        for parameter in network.parameters():
            parameter.normal_()
        return network.to(DTYPES[precision])


def _wrap(graph: specs.Graph, networks: Sequence[nn.Module], precision: specs.Precision) -> nn.Module:
    wire = torch.float16 if precision is specs.Precision.FP16 else torch.float32
    if graph.controls:
        return ControlledUNet(networks[0], networks[1:], wire).eval()
    if graph.component.startswith("text_encoder"):
        return (PenultimateTextEncoder if graph.penultimate else TextEncoder)(networks[0], wire).eval()
    return _WRAPPERS[graph.name](networks[0], wire).eval()


def _example_inputs(graph: specs.Graph, precision: specs.Precision) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros(
            (_TRACED_ROWS, *(dim.multiple * 2 if isinstance(dim, specs.Axis) else dim for dim in tensor.dims)),
            dtype=getattr(torch, specs.wire_type(tensor.kind, precision)),
        )
        for tensor in graph.inputs
    )


def _dynamic_shapes(graph: specs.Graph, module: nn.Module) -> tuple[Any, ...]:
    """torch's names for the dynamic axes; one that is a multiple is written ``8*h``.

    A module that takes any number of inputs has them all in one place.
    """
    rows = torch.export.Dim("batch", min=1, max=4096)
    known: dict[str, Any] = {}
    shapes = []
    for tensor in graph.inputs:
        axes: dict[int, Any] = {0: rows}
        for position, dim in enumerate(tensor.dims, start=1):
            if isinstance(dim, specs.Axis):
                base = known.setdefault(dim.name, torch.export.Dim(dim.name, min=1, max=4096))
                axes[position] = dim.multiple * base if dim.multiple > 1 else base
        shapes.append(axes)
    parameters = signature(module.forward).parameters.values()
    takes_any = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
    return (tuple(shapes),) if takes_any else tuple(shapes)


@contextmanager
def _in_precision(precision: specs.Precision) -> Iterator[None]:
    """Networks are made in their precision from the start: SDXL's UNet in fp32 first would need 10 GB more."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[precision])
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps the tracer's remarks about itself (missing torchvision, shared axes) off the terminal."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "diffusers", "transformers")
    ]
    levels = [logger.level for logger in loggers]
    disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
