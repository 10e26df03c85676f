"""What Stability's own code calls a UNet's layers, whose blocks it numbers through: sd-scripts' SDXL styles do too."""

from collections.abc import Collection
from typing import Final

_ALONE: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET: Final = {
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
}


def stability_names(layers: Collection[str]) -> dict[str, str]:
    """Stability's name of each of a UNet's ``layers``, which have the names that diffusers gives them."""
    heads = _heads(layers)
    names = {}
    for layer in layers:
        head = next((head for head in heads if f"{layer}.".startswith(f"{head}.")), None)
        if head is not None:
            rest = layer.removeprefix(head)
            names[layer] = heads[head] + (_RESNET.get(rest, rest) if ".resnets." in head else rest)
    return names


def _heads(layers: Collection[str]) -> dict[str, str]:
    """The names of residual blocks, attentions and samplers, and of what stands alone."""
    modules = {tuple(layer.split(".")[:4]) for layer in layers if layer.startswith(("down_blocks.", "up_blocks."))}
    heads = dict(_ALONE)
    for side, written in (("down_blocks", "input_blocks"), ("up_blocks", "output_blocks")):
        resnets = sorted((int(block), int(i)) for at, block, kind, i in modules if (at, kind) == (side, "resnets"))
        for order, (block, i) in enumerate(resnets):
            # conv_in and each downsampler have a number of their own; an upsampler shares the last resnet's.
            number = order + 1 + block if side == "down_blocks" else order
            attends = (side, str(block), "attentions", str(i)) in modules
            heads |= {
                f"{side}.{block}.resnets.{i}": f"{written}.{number}.0",
                f"{side}.{block}.attentions.{i}": f"{written}.{number}.1",
                f"{side}.{block}.downsamplers.0.conv": f"{written}.{number + 1}.0.op",
                f"{side}.{block}.upsamplers.0.conv": f"{written}.{number}.{2 if attends else 1}.conv",
            }
    return heads
