"""What can go wrong while a model repository is built.

::

    ExportError            the input or this machine is at fault: one sentence, exit code 2
    └── VerificationError  a graph computes something else than torch does: exit code 1
"""

from typing import ClassVar


class ExportError(Exception):
    """The build cannot go on; the message is one sentence that names the thing and the remedy."""

    exit_code: ClassVar[int] = 2


class VerificationError(ExportError):
    """A graph's output is further from torch than its precision explains."""

    exit_code = 1
