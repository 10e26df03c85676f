"""The two ways a style reaches a network, and which one a job's styles take.

*Mixed*: its low-rank factors travel as an input, one row of the batch each, so that rows of different styles share an
execution. *Merged*: they are added to the weights of a model of their own, which is loaded beside the base model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.diffusion.deltas import Delta
from orchestrator.diffusion.lora import Lora
from orchestrator.errors import LoraIncompatible
from orchestrator.imaging.provenance import StyleRecord

Way = Literal["none", "mixed", "merged"]
StyleMode = Literal["auto", "mixed", "merged"]
KEY_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Style:
    """A style's weights, whole and checked. ``sha256`` of the weights file is its name everywhere.

    ``identity`` is that too, and covers the file beside it that says how strongly peft's weights count.
    ``lora`` is None where no network takes part: a mock checks the file and has no layers to match.
    """

    sha256: str
    identity: str
    size_bytes: int
    dtypes: tuple[str, ...]
    lora: Lora | None = field(repr=False)

    def deltas(self, network: str) -> Mapping[str, Delta]:
        """What it does to the layers of one of ``lora_names.NETWORKS``."""
        return {} if self.lora is None else self.lora.of(network)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AppliedStyle:
    """One style of one job, with what the picture says about it."""

    style: Style
    weight: float
    path: str = field(repr=False)
    record: StyleRecord = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How a job's styles reach each network; ``unmixed`` is why the UNet's row does not take what is merged."""

    unet: Way = "none"
    text_encoder: Literal["none", "merged"] = "none"
    unmixed: str | None = field(default=None, repr=False)


def ways_of(styles: Sequence[AppliedStyle], checkpoint: CheckpointInfo, mode: StyleMode) -> Ways:
    """Which way each network gets ``styles``: under ``auto`` mixed where they fit the UNet's input, else merged.

    Raises:
        LoraIncompatible: the mode is ``mixed`` and they do not fit.
    """
    unet = [deltas for one in styles if (deltas := one.style.deltas("unet"))]
    unmixed = checkpoint.style_layout.misfit(unet) if unet else None
    text = any(one.style.deltas(encoder) for encoder in checkpoint.layout.text_encoders for one in styles)
    if mode == "mixed" and (unmixed or text):
        reason = unmixed or "it changes the text encoder, which takes styles merged only"
        raise LoraIncompatible(
            f"style {_paths(styles)} cannot be applied: {reason}; STYLE_MODE is mixed, so nothing is merged"
        )
    merged: Way = "merged" if mode == "merged" or unmixed else "mixed"
    return Ways(
        unet=merged if unet else "none", text_encoder="merged" if text else "none", unmixed=unmixed if unet else None
    )


def merged_name(model: str, weights_sha256: str, styles: Sequence[AppliedStyle]) -> str:
    """The folder and name of ``model`` with ``styles`` merged into it: equal for equal weights, styles and order."""
    said = {"model": weights_sha256, "styles": [[one.style.identity, float(one.weight)] for one in styles]}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return f"{model}--{hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]}"


def _paths(styles: Sequence[AppliedStyle]) -> str:
    return " and ".join(one.path for one in styles)
