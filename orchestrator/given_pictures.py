"""Fetches the pictures that a job brings; none is decoded that the engines have no size for."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import InvalidInput, ObjectNotFound
from orchestrator.finishing import Inputs
from orchestrator.job import Job
from orchestrator.pictures import NO_PICTURES, ControlPicture, Pictures, SourcePicture, check_controls
from orchestrator.staging.original import PhotoLimits, read_picture


def given_pictures(job: Job, inputs: Inputs, checkpoint: CheckpointInfo) -> Pictures:
    """The job's pictures, uint8 [h,w,3] each and its mask [h,w].

    Raises:
        InvalidInput: one of them is not there, is not to be read, or is no photograph that is served.
    """
    refs = job.pictures
    if refs is None:
        return NO_PICTURES
    check_controls(refs.controls, checkpoint)
    # Ten pictures of 50 megapixels would take gigabytes, only to be refused for their size.
    read = partial(_read, inputs, PhotoLimits(max_pixels=checkpoint.max_size_px**2))
    source = None
    if refs.source_path is not None:
        mask = None if refs.mask_path is None else read("data.mask_path", refs.mask_path)
        source = SourcePicture(
            picture=read("data.init_image_path", refs.source_path),
            strength=refs.strength,
            mask=None if mask is None else _grey(mask),
        )
    controls = tuple(
        ControlPicture(
            name=one.name,
            picture=read(f"the picture of control {one.name}", one.path),
            scale=one.scale,
            start=one.start,
            end=one.end,
        )
        for one in refs.controls
    )
    return Pictures(source=source, controls=controls)


def _read(inputs: Inputs, limits: PhotoLimits, what: str, path: str) -> NDArray[np.uint8]:
    try:
        data = inputs.read(path, limit_bytes=limits.max_bytes)
    except ObjectNotFound:
        raise InvalidInput(f"{what} names an object that is not there") from None
    return read_picture(data, what, limits)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of the channels, uint8 [h,w]: of a mask they are the same."""
    return np.asarray(np.rint(picture.mean(axis=2)), np.uint8)
