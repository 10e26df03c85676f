"""Checkpoint to ONNX: the wrapped networks, and the traced graph of an architecture without its weights."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
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

from export import companion_networks, specs
from export.binding import detach
from export.checkpoint import Checkpoint
from export.folders import variant_of
from export.style_input import StyledUNet
from export.wrappers import ControlledUNet, PenultimateTextEncoder, TextEncoder, UNet, VaeDecoder, VaeEncoder

DTYPES: Final = {
    specs.Precision.FP32: torch.float32,
    specs.Precision.FP16: torch.float16,
    specs.Precision.BF16: torch.bfloat16,
}
_CONTROLNET: Final = re.compile(r"(?:^|\.)controlnets\.(\d+)\.")
_TRACED_ROWS: Final = 2
"""A dimension of 1 would be taken for a constant."""


_VAE: Final[dict[str, type[nn.Module]]] = {"vae_decoder": VaeDecoder, "vae_encoder": VaeEncoder}
_CLASSES: Final[dict[str, Any]] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}


def load(graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision = specs.Precision.FP32) -> nn.Module:
    """The network with the checkpoint's weights, taking and giving what the graph does, but for a style."""
    with _quietly():
        networks = [_trained(component, checkpoint, DTYPES[precision]) for component in graph.components]
    return _wrap(graph, checkpoint, networks, precision)


def trace(graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision) -> onnx.ModelProto:
    """The graph of the checkpoint's architecture, weightless (see ``binding``).

    Every weight is a different random number while it is traced: an optimiser that saw a checkpoint's ones and zeros
    would merge equal tensors or drop them, and the graph would fit that checkpoint alone.
    """
    networks = [_untrained(component, checkpoint, precision) for component in graph.components]
    module = _wrap(graph, checkpoint, networks, precision)
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
    # What a normalisation counted over its batches lies in buffers.
    names = set(module.state_dict()) & set(model.graph.initializers)
    with _quietly():
        optimizer.optimize_ir(model, should_fold=lambda node: _reads(node, names))
    for name in names:
        model.graph.initializers[name].const_value = _without_data(model.graph.initializers[name].const_value)
    filed = companion_networks.filed_names(networks[0]) if graph.component in checkpoint.companions else {}
    return detach(onnx_ir.to_proto(model), {name: _source(graph, name, filed) for name in names})


def _source(graph: specs.Graph, parameter: str, filed: Mapping[str, str]) -> str:
    """Which of ``Checkpoint.weights_of``'s tensors a wrapped network's parameter is; ``filed`` tells a companion's."""
    found = _CONTROLNET.search(parameter)
    if found is not None:
        return f"{graph.controls[int(found[1])]}.{parameter[found.end() :]}"
    name = parameter.partition("network.")[2]
    return filed.get(name, name.removeprefix("text_model."))


def _reads(node: Any, names: set[str]) -> bool | None:
    """Whether the optimiser may compute this node now: False where it reads a weight, else its own judgement."""
    return False if any(value is not None and value.name in names for value in node.inputs) else None


def _without_data(tensor: Any) -> Any:
    return onnx_ir.ExternalTensor(
        "checkpoint", offset=0, length=0, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name
    )


def _trained(component: str, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    folder = checkpoint.folder_of(component)
    if component in checkpoint.companions:
        return companion_networks.trained(component, folder, checkpoint.configs[component], dtype)
    kind = _CLASSES.get(component, ControlNetModel)
    return kind.from_pretrained(folder, torch_dtype=dtype, variant=variant_of(folder))  # type: ignore[no-any-return]


def _untrained(component: str, checkpoint: Checkpoint, precision: specs.Precision) -> nn.Module:
    config = dict(checkpoint.configs[component])
    kind = _CLASSES.get(component, ControlNetModel)
    with _in_precision(precision), _quietly(), torch.no_grad():
        if component in checkpoint.companions:
            network: nn.Module = companion_networks.untrained(component, config)
        elif component.startswith("text_encoder"):
            # The eager form has no masked-row guard (IsNaN, Where) around each softmax; a causal row is never empty.
            text_config = CLIPTextConfig.from_dict(config)
            text_config._attn_implementation = "eager"
            network = kind(text_config)
        else:
            network = kind.from_config(config)
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.normal_()
        return network.to(DTYPES[precision])


def _wrap(
    graph: specs.Graph, checkpoint: Checkpoint, networks: Sequence[nn.Module], precision: specs.Precision
) -> nn.Module:
    network, *controlnets = networks
    wire = torch.float16 if precision is specs.Precision.FP16 else torch.float32
    if graph.component in checkpoint.companions:
        module = companion_networks.wrapped(graph.component, network, checkpoint.configs[graph.component])
    elif graph.component == "unet":
        names = [tensor.name for tensor in graph.inputs if tensor.name != "style"]
        module = ControlledUNet(network, controlnets, names, wire) if controlnets else UNet(network, names, wire)
    elif graph.component == "vae":
        module = _VAE[graph.name](network, wire)
    else:
        module = (PenultimateTextEncoder if graph.penultimate else TextEncoder)(network, wire)
    return module.eval()


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
