"""What a refusal of Triton's means to a job."""

from orchestrator.clients.kserve import Refusal
from orchestrator.errors import GenerationFailed, ModelUnavailable, OutOfMemory, RemarqueError

NOT_FINITE = "NaN or infinity"
"""How model.py and this client say that a network answered no numbers."""
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "failed to allocate")
_DEAD_STUB = ("stub process", "not healthy")
_UNAVAILABLE = (
    "unknown model",
    "not ready",
    "not found",
    "no available versions",
    NOT_FINITE.lower(),
    "unavailable",
    "server exiting",
)


def is_dead_stub(refusal: Refusal) -> bool:
    """Whether the model's process died; Triton never starts it again."""
    said = str(refusal).lower()
    return all(sign in said for sign in _DEAD_STUB)


def is_unknown_region(refusal: Refusal) -> bool:
    """Whether the server does not know a region of shared memory: it was started anew since."""
    said = str(refusal).lower()
    return "shared memory region" in said and ("unable to find" in said or "not found" in said)


def is_not_finite(error: RemarqueError) -> bool:
    """Whether a network answered NaN or infinity."""
    return NOT_FINITE in str(error)


def translated(model: str, refusal: Refusal) -> RemarqueError:
    """One of our errors that says what the server said."""
    said = str(refusal).lower()
    if any(sign in said for sign in _OUT_OF_MEMORY):
        return OutOfMemory(f"{model} does not fit into the server's memory: {refusal}")
    if refusal.status in (404, 503) or any(sign in said for sign in _UNAVAILABLE) or is_dead_stub(refusal):
        return ModelUnavailable(f"{model} is not served: {refusal}")
    return GenerationFailed(f"{model} failed: {refusal}")
