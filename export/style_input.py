"""Attention projections whose low-rank change comes in with every row, and the same change merged into the weights.

Needs torch. The first is what is traced; the second is what it must agree with.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from export.specs import Projection, StyleInput


class StyledLinear(nn.Linear):
    """A linear layer that adds ``(x @ down) @ up`` of its row's style; its weights are those of ``base``."""

    def __init__(self, base: nn.Linear, projection: Projection, rank: int) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.sizes = (rank * projection.width_in, rank * projection.width_out)
        self.rank = rank
        # Not a tensor attribute: the tracer refuses those that change while it looks.
        self.factors: list[tuple[Tensor, Tensor]] = []

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for it
        """``input`` [n,tokens,in] -> [n,tokens,out]."""
        down, up = self.factors[-1]
        return super().forward(input) + (input @ down) @ up

    def accept(self, down: Tensor, up: Tensor) -> None:
        """This execution's factors, flat [n,in*rank] and [n,rank*out]."""
        self.factors[:] = [
            (down.reshape(-1, self.in_features, self.rank), up.reshape(-1, self.rank, self.out_features))
        ]


class StyledUNet(nn.Module):
    """A wrapped UNet with one more input, ``style`` [n,size]; see ``specs.StyleInput``."""

    def __init__(self, unet: nn.Module, network: nn.Module, style: StyleInput) -> None:
        """Changes ``network``, the one inside ``unet``."""
        super().__init__()
        self.unet = unet
        self.styled = [_replace(network, projection, style.rank) for projection in style.layers]

    def forward(self, *inputs: Tensor) -> Tensor:
        """``inputs`` of the UNet, and the styles last."""
        *others, style = inputs
        sizes = [size for layer in self.styled for size in layer.sizes]
        parts = torch.split(style.to(self.styled[0].weight.dtype), sizes, dim=1)
        for index, layer in enumerate(self.styled):
            layer.accept(parts[2 * index], parts[2 * index + 1])
        return self.unet(*others)  # type: ignore[no-any-return]


@contextmanager
def merged(network: nn.Module, style: StyleInput, row: Tensor) -> Iterator[None]:
    """``network`` with one row's style [size] added to its weights, until the context ends."""
    originals: list[tuple[Tensor, Tensor]] = []
    start = 0
    with torch.no_grad():
        for projection in style.layers:
            weight = network.get_submodule(projection.layer).get_parameter("weight").data
            middle = start + style.rank * projection.width_in
            end = middle + style.rank * projection.width_out
            down = row[start:middle].reshape(projection.width_in, style.rank)
            up = row[middle:end].reshape(style.rank, projection.width_out)
            originals.append((weight, weight.clone()))
            weight.add_((down @ up).T)
            start = end
        try:
            yield
        finally:
            for weight, original in originals:
                weight.copy_(original)


def _replace(network: nn.Module, projection: Projection, rank: int) -> StyledLinear:
    base = network.get_submodule(projection.layer)
    assert isinstance(base, nn.Linear)
    styled = StyledLinear(base, projection, rank)
    network.set_submodule(projection.layer, styled)
    return styled
