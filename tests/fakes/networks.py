"""A Triton of formulas in this process, with a depth network, an upscaler and ControlNets."""

import threading

import numpy as np
from unit.small_checkpoint import FormulaModels

from orchestrator.errors import RemarqueError


class FormulaServer(FormulaModels):
    """Fits what the staging service asks of a server; ``fault`` breaks every call of the model that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.controls: list[dict[str, np.ndarray]] = []
        self.depths: list[np.ndarray] = []
        self.pictures: list[np.ndarray] = []
        """What the VAE encoded."""
        self.upscaled: list[np.ndarray] = []
        self.missing: tuple[str, ...] = ()
        self.fault: dict[str, RemarqueError] = {}
        self.steps = threading.Semaphore(0)
        self.hold: threading.Event | None = None
        """Steps wait for it, if there is one."""

    def predict(self, sample, timestep, encoder_hidden_states, style=None, masked=None, **controls):
        self.break_("unet")
        self.steps.release()
        if self.hold is not None:
            assert self.hold.wait(30)
        if controls:
            self.controls.append(controls)
        return super().predict(sample, timestep, encoder_hidden_states, style, masked)

    def encode(self, picture):
        self.pictures.append(picture)
        return super().encode(picture)

    def decode(self, latents):
        self.break_("vae_decoder")
        return super().decode(latents)

    def depth(self, picture: np.ndarray) -> np.ndarray:
        """A floor in the lower half that grows nearer, and a wall above it."""
        self.break_("depth")
        self.depths.append(picture)
        rows = np.arange(picture.shape[1]) / picture.shape[1]
        told = np.maximum(rows - 0.45, 0.15)[None, :, None] * 2
        return np.broadcast_to(told, picture.shape[:3]).astype(np.float32)

    def upscale(self, picture: np.ndarray) -> np.ndarray:
        self.break_("upscaler")
        self.upscaled.append(picture)
        return picture.repeat(2, axis=1).repeat(2, axis=2)

    def break_(self, model: str) -> None:
        if model in self.fault:
            raise self.fault[model]

    def ready(self) -> tuple[str, ...]:
        return self.missing

    def close(self) -> None:
        pass
