"""Gives the untrained autoencoder a running start: colours pass through it exactly, only sharpness is left to learn.

A GroupNorm forgets the mean and the contrast of what it sees, and learning around that took an earlier attempt more
time than this machine has. Here each colour c travels as the group (c, -c, M, -M): its mean is zero whatever c is,
the constants M rule its spread, and silu(z) - silu(-z) = z brings c back exactly. Convolutions start as identities on
these twelve channels (averages of 2 x 2 where they shrink) and keep their random start on all others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from demo.latents import MEANS, RAW_SPREAD, SPREADS

CARRIED = 12
DOUBT = 0.05
"""Standard deviation that the encoder reports, of raw latents whose own is 3."""
COLOUR_SPREAD = 0.5
ANCHOR = 8.0
"""M, the constant that rules a group's spread; colours lie within -1 to 1."""


def start_from_colours(vae: AutoencoderKL) -> None:
    """Sets weights of an untrained autoencoder with 16 channels at its widest and 4 groups, in place."""
    with torch.no_grad():
        _set_decoder(vae.decoder, vae)
        _set_encoder(vae.encoder, vae)


def _to_colours() -> tuple[Tensor, Tensor]:
    """Matrix [3, 4] and offset [3] from raw latents to red, green, blue."""
    features = torch.tensor([[1.0, 1.0, -1 / 3, 0.0], [1.0, 0.0, 2 / 3, 0.0], [1.0, -1.0, -1 / 3, 0.0]])
    spreads, means = torch.from_numpy(SPREADS), torch.from_numpy(MEANS)
    return features * spreads / RAW_SPREAD, features @ means


def _from_colours() -> tuple[Tensor, Tensor]:
    """Matrix [3, 3] and offset [3] from red, green, blue to the first three raw latents."""
    features = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.0, -0.5], [-0.5, 1.0, -0.5]])
    spreads, means = torch.from_numpy(SPREADS[:3]), torch.from_numpy(MEANS[:3])
    return features * (RAW_SPREAD / spreads)[:, None], -means / spreads * RAW_SPREAD


def _hold(parameter: Tensor, rows: list[int], columns: list[int] | None = None) -> None:
    """Keeps these output rows (and, if given, only these input columns) of a parameter as they are."""
    mask = torch.ones_like(parameter)
    if columns is None:
        mask[rows] = 0
    else:
        for row in rows:
            mask[row, columns] = 0
    parameter.register_hook(lambda gradient: gradient * mask)  # type: ignore[no-untyped-call]


def _enter(conv: nn.Conv2d, matrix: Tensor, offset: Tensor) -> None:
    """Makes the first twelve outputs (c, -c, M, -M) of each colour c = matrix @ input + offset."""
    assert conv.bias is not None
    middle = conv.kernel_size[0] // 2
    conv.weight[:CARRIED] = 0
    for colour in range(3):
        for sign, row in ((1, 4 * colour), (-1, 4 * colour + 1)):
            conv.weight[row, :, middle, middle] = sign * matrix[colour]
            conv.bias[row] = sign * offset[colour]
        conv.bias[4 * colour + 2], conv.bias[4 * colour + 3] = ANCHOR, -ANCHOR


def _carry(conv: nn.Conv2d, taps: list[tuple[int, int]], silent: list[int]) -> None:
    """Makes the first twelve outputs the mean, over kernel positions `taps`, of the first twelve inputs."""
    assert conv.bias is not None
    _silence(conv, [*range(CARRIED), *silent])
    for place in range(CARRIED):
        for row, column in taps:
            conv.weight[place, place, row, column] = 1 / len(taps)


def _silence(conv: nn.Conv2d, places: list[int]) -> None:
    """Takes a convolution's say in the channels `places` away."""
    assert conv.bias is not None
    conv.weight[places] = 0
    conv.bias[places] = 0


def _set_decoder(decoder: Any, vae: AutoencoderKL) -> None:
    vae.post_quant_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    vae.post_quant_conv.bias.zero_()
    _enter(decoder.conv_in, *_to_colours())
    for resnet in _resnets(decoder, decoder.up_blocks):
        _silence(resnet.conv2, list(range(CARRIED)))
        _hear_colours(resnet.norm1)
        if resnet.conv_shortcut is not None:
            _carry(resnet.conv_shortcut, [(0, 0)], [])
    for block in decoder.up_blocks:
        for upsampler in block.upsamplers or []:
            _carry(upsampler.conv, [(1, 1)], [])
    norm = decoder.conv_norm_out
    spread = math.sqrt((2 * ANCHOR**2 + 0.6) / (norm.num_channels // norm.num_groups))
    _leave(norm, decoder.conv_out, torch.eye(3), torch.zeros(3), spread)


def _hear_colours(norm: nn.GroupNorm) -> None:
    """Gives colours the loudness of other features behind a norm that the anchors rule."""
    group = norm.num_channels // norm.num_groups
    for colour in range(3):
        sharing = sum(4 * other // group == 4 * colour // group for other in range(3))
        spread = math.sqrt(2 * sharing * ANCHOR**2 / group)
        norm.weight[[4 * colour, 4 * colour + 1]] = spread / COLOUR_SPREAD


def _resnets(half: Any, blocks: Any) -> list[Any]:
    return [*half.mid_block.resnets, *(resnet for block in blocks for resnet in block.resnets)]


def _set_encoder(encoder: Any, vae: AutoencoderKL) -> None:
    vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
    vae.quant_conv.bias.zero_()
    _enter(encoder.conv_in, torch.eye(3), torch.zeros(3))
    group = encoder.conv_norm_out.num_channels // encoder.conv_norm_out.num_groups
    for resnet in _resnets(encoder, encoder.down_blocks):
        deepest = resnet.conv2.out_channels == encoder.conv_norm_out.num_channels
        silent = list(range(CARRIED, group)) if deepest else []
        _silence(resnet.conv2, [*range(CARRIED), *silent])
        _hear_colours(resnet.norm1)
        if resnet.conv_shortcut is not None:
            _carry(resnet.conv_shortcut, [(0, 0)], silent)
    for block in encoder.down_blocks:
        for downsampler in block.downsamplers or []:
            _carry(downsampler.conv, [(0, 0), (0, 1), (1, 0), (1, 1)], [])
    encoder.conv_out.weight[4:] = 0
    encoder.conv_out.bias[3] = 0
    encoder.conv_out.bias[4:] = 2 * math.log(DOUBT)
    matrix, offset = _from_colours()
    _leave(encoder.conv_norm_out, encoder.conv_out, matrix, offset, math.sqrt((6 * ANCHOR**2 + 2) / group))


def _leave(norm: nn.GroupNorm, conv: nn.Conv2d, matrix: Tensor, offset: Tensor, spread: float) -> None:
    """Makes the first outputs matrix @ (red, green, blue) + offset, undoing the GroupNorm before them."""
    assert conv.bias is not None
    conv.weight[: len(matrix)] = 0
    middle = conv.kernel_size[0] // 2
    for colour in range(3):
        plus, minus = 4 * colour, 4 * colour + 1
        norm.weight[[plus, minus]] = spread
        conv.weight[: len(matrix), plus, middle, middle] = matrix[:, colour]
        conv.weight[: len(matrix), minus, middle, middle] = -matrix[:, colour]
    conv.bias[: len(matrix)] = offset


def hold_colours(vae: AutoencoderKL) -> None:
    """Keeps training from touching what carries the colours: the decoder may only add to them."""
    carried = list(range(CARRIED))
    anchors = [row for row in carried if row % 4 > 1]
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    group = encoder.conv_norm_out.num_channels // encoder.conv_norm_out.num_groups
    for half, blocks in ((encoder, encoder.down_blocks), (decoder, decoder.up_blocks)):
        for resnet in _resnets(half, blocks):
            added = anchors
            if half is encoder:
                deepest = resnet.conv2.out_channels == encoder.conv_norm_out.num_channels
                added = list(range(group)) if deepest else carried
            _hold_conv(resnet.conv2, added)
            if resnet.conv_shortcut is not None:
                _hold_conv(resnet.conv_shortcut, added if half is encoder else carried)
        for block in blocks:
            for sampler in (block.downsamplers if half is encoder else block.upsamplers) or []:
                _hold_conv(sampler.conv, carried)
        _hold_conv(half.conv_in, carried)
        _hold(half.conv_norm_out.weight, carried)
        _hold(half.conv_norm_out.bias, carried)
    _hold_conv(encoder.conv_out, [0, 1, 2, 4, 5, 6, 7])
    _hold(decoder.conv_out.weight, [0, 1, 2], carried)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _hold_conv(conv, list(range(conv.out_channels)))


def _hold_conv(conv: nn.Conv2d, rows: list[int]) -> None:
    assert conv.bias is not None
    _hold(conv.weight, rows)
    _hold(conv.bias, rows)
