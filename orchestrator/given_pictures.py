"""Fetches the pictures that a job brings, by the limits of photographs that are staged."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InvalidInput, ObjectNotFound
from orchestrator.finishing import Inputs
from orchestrator.job import Job
from orchestrator.pictures import NO_PICTURES, ControlPicture, Pictures, SourcePicture
from orchestrator.staging.original import PhotoLimits, read_picture

LIMITS: Final = PhotoLimits()


def given_pictures(job: Job, inputs: Inputs) -> Pictures:
    """The job's pictures, uint8 [h,w,3] each and its mask [h,w].

    Raises:
        InvalidInput: one of them is not there, is not to be read, or is no photograph that is served.
    """
    refs = job.pictures
    if refs is None:
        return NO_PICTURES
    source = None
    if refs.source_path is not None:
        mask = None if refs.mask_path is None else _read(inputs, "data.mask_path", refs.mask_path)
        source = SourcePicture(
            picture=_read(inputs, "data.init_image_path", refs.source_path),
            strength=refs.strength,
            mask=None if mask is None else _grey(mask),
        )
    controls = tuple(
        ControlPicture(
            name=one.name,
            picture=_read(inputs, f"the picture of control {one.name}", one.path),
            scale=one.scale,
            start=one.start,
            end=one.end,
        )
        for one in refs.controls
    )
    return Pictures(source=source, controls=controls)


def _read(inputs: Inputs, what: str, path: str) -> NDArray[np.uint8]:
    try:
        data = inputs.read(path, limit_bytes=LIMITS.max_bytes)
    except ObjectNotFound:
        raise InvalidInput(f"{what} names an object that is not there") from None
    return read_picture(data, what, LIMITS)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of the channels, uint8 [h,w]: of a mask they are the same."""
    return np.asarray(np.rint(picture.mean(axis=2)), np.uint8)
