"""Real-ESRGAN's compact architecture (Wang et al., arXiv 2107.10833, as in ``realesr-general-x4v3``), in torch.

All of its work is done at the small size: convolutions, then one that holds the enlarged picture's pixels as channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional

CLASS_NAME: Final = "SRVGGNetCompact"
_ACTIVATIONS: Final[Mapping[str, Callable[[int], nn.Module]]] = {
    "prelu": nn.PReLU,
    "relu": lambda channels: nn.ReLU(),
    "leakyrelu": lambda channels: nn.LeakyReLU(0.1),
}


@dataclass(frozen=True)
class Shape:
    """What ``config.json`` says, in its own words."""

    num_feat: int
    num_conv: int
    upscale: int
    act_type: str = "prelu"
    num_in_ch: int = 3
    num_out_ch: int = 3

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """The shape in a config, which may say other things too."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})


class CompactUpscaler(nn.Module):
    """Pictures [n,3,h,w] from 0 to 1 -> [n,3,kh,kw], about from 0 to 1; state-dict names are Real-ESRGAN's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.factor = shape.upscale
        activation = _ACTIVATIONS[shape.act_type]
        width = shape.num_feat
        layers: list[nn.Module] = [nn.Conv2d(shape.num_in_ch, width, 3, padding=1), activation(width)]
        for _ in range(shape.num_conv):
            layers += [nn.Conv2d(width, width, 3, padding=1), activation(width)]
        layers.append(nn.Conv2d(width, shape.num_out_ch * shape.upscale**2, 3, padding=1))
        self.body = nn.ModuleList(layers)

    def forward(self, picture: Tensor) -> Tensor:
        """The picture enlarged by nearest neighbour, and what the layers add to it."""
        seen = picture
        for layer in self.body:
            seen = layer(seen)
        added = functional.pixel_shuffle(seen, self.factor)
        return added + functional.interpolate(picture, scale_factor=float(self.factor), mode="nearest")
