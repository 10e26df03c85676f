"""The networks as the graphs have them: what lies between a tensor on the wire and the network is in here."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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

    SDXL's also takes text_embeds [n,width] and time_ids float32 [n,6]; one that inpaints takes masked [n,5,h,w].
    ``names`` are those of the inputs, in the order they come in.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], wire: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)
        self.wire = wire

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        told = _told(next(self.network.parameters()).dtype, given)
        noise = self.network(_seen(told[0], given), *told[1:], added_cond_kwargs=_added(given), return_dict=False)[0]
        return noise.to(self.wire)  # type: ignore[no-any-return]


class ControlledUNet(nn.Module):
    """A UNet and its ControlNets: as ``UNet``, and a picture uint8 [n,8h,8w,3] each, control_scales float32 [n,k]."""

    def __init__(
        self, network: nn.Module, controlnets: Sequence[nn.Module], names: Sequence[str], wire: torch.dtype
    ) -> None:
        super().__init__()
        self.network = network
        self.controlnets = nn.ModuleList(controlnets)
        self.names = tuple(names)
        self.wire = wire

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        dtype = next(self.network.parameters()).dtype
        told, added = _told(dtype, given), _added(given)
        pictures = [given[name] for name in self.names if name.startswith("control_") and name != "control_scales"]
        residuals: list[Tensor] = []
        for index, (controlnet, seen) in enumerate(zip(self.controlnets, pictures, strict=True)):
            picture = seen.float().permute(0, 3, 1, 2) / 255.0
            scale = given["control_scales"][:, index].reshape(-1, 1, 1, 1).to(dtype)
            down, middle = controlnet(
                *told, picture.to(dtype), conditioning_scale=scale, added_cond_kwargs=added, return_dict=False
            )
            said = [*down, middle]
            residuals = said if not residuals else [one + other for one, other in zip(residuals, said, strict=True)]
        noise = self.network(
            _seen(told[0], given),
            *told[1:],
            added_cond_kwargs=added,
            down_block_additional_residuals=tuple(residuals[:-1]),
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
        )[0]
        return noise.to(self.wire)  # type: ignore[no-any-return]


def _told(dtype: torch.dtype, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What every UNet reads, and every ControlNet."""
    return given["sample"].to(dtype), given["timestep"].squeeze(-1), given["encoder_hidden_states"].to(dtype)


def _seen(sample: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """The latents, with the mask and the masked picture's latents behind them where the UNet inpaints.

    A ControlNet sees the latents alone, also beside such a UNet.
    """
    if "masked" not in given:
        return sample
    return torch.cat([sample, given["masked"].to(sample.dtype)], dim=1)


def _added(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What SDXL's UNet reads besides.

    The time ids' embedding is float32 when the two are joined; in fp16 a graph that joins both kinds is invalid.
    """
    if "time_ids" not in given:
        return {}
    return {"text_embeds": given["text_embeds"].float(), "time_ids": given["time_ids"]}


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
        latents = latent_sample.to(next(network.parameters()).dtype)
        scale, centre = _scale_and_centre(network.config, latents)
        latents = latents / scale if centre is None else latents / scale + centre
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
        scale, centre = _scale_and_centre(network.config, mean)
        mean = mean if centre is None else mean - centre
        return (mean * scale).to(self.wire), (deviation * scale).to(self.wire)


def _scale_and_centre(config: Any, latents: Tensor) -> tuple[Any, Tensor | None]:
    """What the VAE's latents are multiplied with for the UNet; where they have a centre, it is taken off first.

    Playground v2.5's VAE has one, and a scale for each channel [1,4,1,1].
    """
    if config.latents_mean is None or config.latents_std is None:
        return config.scaling_factor, None
    centre, spread = (torch.tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
    return config.scaling_factor / spread.to(latents), centre.to(latents)
