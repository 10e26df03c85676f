"""Everything that can go wrong, as one tree.

::

    RemarqueError
    ├── Refused                        the job will fail the same way every time
    │   ├── InvalidInput               INVALID_INPUT
    │   ├── UnsupportedAspectRatio     UNSUPPORTED_ASPECT_RATIO
    │   ├── LoraNotFound               LORA_NOT_FOUND
    │   ├── LoraIncompatible           LORA_INCOMPATIBLE
    │   ├── SignatureNotFound          SIGNATURE_NOT_FOUND
    │   ├── SignatureInvalid           SIGNATURE_INVALID
    │   ├── ContentRejected            CONTENT_REJECTED
    │   ├── InferenceDisabled          MODEL_UNAVAILABLE, by an operator's switch
    │   ├── NotFound                   NOT_FOUND, nothing lies under the key or id that was named
    │   ├── Conflict                   CONFLICT, the id was used with other parameters
    │   ├── Unauthorized               UNAUTHORIZED, no token or one that nobody has
    │   └── Cancelled                  CANCELLED
    ├── GenerationFailed               GENERATION_FAILED, nothing better is known
    │   ├── OutOfMemory                GPU_OOM
    │   ├── ModelUnavailable           MODEL_UNAVAILABLE
    │   │   └── ProviderRefused        a hosted provider will not take our call however often it is made
    │   ├── DeadlineExceeded           TIMEOUT
    │   └── StorageError               STORAGE_ERROR
    │       ├── ObjectNotFound         the key does not exist
    │       └── ObjectExists           a create-only write came second
    ├── RateLimited                    RATE_LIMITED, one caller asks too often; says when to come back
    │   └── Overloaded                 OVERLOADED, the queue is full or the process stops
    ├── Interrupted                    OVERLOADED, the process stops; the job goes back to the queue with its checkpoint
    ├── WebhookUndelivered             the backend cannot be reached now
    │   └── WebhookRefused             the backend answered that repeating will not help
    ├── BrokerError                    the queue cannot be reached or did not confirm
    ├── ServiceError                   a local service cannot start; the message names the remedy
    └── ConfigError                    a setting is wrong; the process does not start

Each class carries ``code``, the ``error_code`` that clients see, and ``retryable``, whether another attempt may
succeed. Policy reads those two and never asks for the class.
"""

from typing import ClassVar


class RemarqueError(Exception):
    """Base of the tree: the message is one sentence that a user can act on."""

    code: ClassVar[str] = "GENERATION_FAILED"
    retryable: ClassVar[bool] = False


class Refused(RemarqueError):
    """The job as it stands can never succeed."""

    code = "INVALID_INPUT"


class InvalidInput(Refused):
    """A field is missing, of the wrong type, out of range or contradicts another."""


class UnsupportedAspectRatio(Refused):
    """The aspect ratio is not one of those served."""

    code = "UNSUPPORTED_ASPECT_RATIO"


class LoraNotFound(Refused):
    """The style's file does not exist where the job says."""

    code = "LORA_NOT_FOUND"


class LoraIncompatible(Refused):
    """The style's file is broken or was trained for another base model."""

    code = "LORA_INCOMPATIBLE"


class SignatureNotFound(Refused):
    """The signature's image does not exist where the job says."""

    code = "SIGNATURE_NOT_FOUND"


class SignatureInvalid(Refused):
    """The signature's file is not an image that can be stamped."""

    code = "SIGNATURE_INVALID"


class ContentRejected(Refused):
    """The content policy refused the prompt or the picture."""

    code = "CONTENT_REJECTED"


class InferenceDisabled(Refused):
    """An operator switched inference off, and had jobs refused rather than mocked."""

    code = "MODEL_UNAVAILABLE"


class NotFound(Refused):
    """Nothing lies under the key or the id that the caller named."""

    code = "NOT_FOUND"


class Conflict(Refused):
    """The id was used before with other parameters."""

    code = "CONFLICT"


class Unauthorized(Refused):
    """The caller showed no token, or none that is known."""

    code = "UNAUTHORIZED"


class Cancelled(Refused):
    """Somebody asked for the job to stop."""

    code = "CANCELLED"


class GenerationFailed(RemarqueError):
    """The attempt broke; another one may succeed."""

    retryable = True


class OutOfMemory(GenerationFailed):
    """A network did not fit into the accelerator's memory."""

    code = "GPU_OOM"


class ModelUnavailable(GenerationFailed):
    """The inference server or one of its models does not answer, or answers NaN."""

    code = "MODEL_UNAVAILABLE"


class ProviderRefused(ModelUnavailable):
    """A hosted provider refused our token, our model or our input; another provider may still serve the caller."""

    retryable = False


class DeadlineExceeded(GenerationFailed):
    """The job or one call of it took longer than it may."""

    code = "TIMEOUT"


class StorageError(GenerationFailed):
    """The object store refused or did not answer."""

    code = "STORAGE_ERROR"


class ObjectNotFound(StorageError):
    """No object lies under that key."""

    retryable = False


class ObjectExists(StorageError):
    """A create-only write found the key taken."""

    retryable = False


class RateLimited(RemarqueError):
    """Too much was asked at once; ``retry_after_s`` is when to come back, None where nobody can say."""

    code = "RATE_LIMITED"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(RateLimited):
    """The queue is full or the process stops, whoever asks."""

    code = "OVERLOADED"


class Interrupted(RemarqueError):
    """The process was asked to stop before the job was done; nothing is lost."""

    code = "OVERLOADED"
    retryable = True


class WebhookUndelivered(RemarqueError):
    """The backend did not accept the event this time.

    ``status`` is the HTTP status it answered, None where it answered nothing; ``retry_after_s`` is how long it asked
    us to wait, None where it did not say.
    """

    retryable = True

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class WebhookRefused(WebhookUndelivered):
    """The backend refused the event for good."""

    retryable = False


class BrokerError(RemarqueError):
    """The message broker cannot be reached, or did not confirm in time."""

    retryable = True


class ServiceError(RemarqueError):
    """A service of this machine cannot be started; the message says what to install or change."""


class ConfigError(RemarqueError):
    """A setting has a value that cannot be served."""
