"""What Triton's log says about a start that failed, with what helps against it."""

import re

_REMEDIES = (
    (r"GLIBC_[\d.]+' not found", "use a distribution with glibc 2.35 or newer (Debian 12, Ubuntu 22.04)"),
    (
        r"loading shared libraries: libpython",
        "install that libpython, delete the state folder's triton/ and start again",
    ),
    (
        r"loading shared libraries",
        "install the library named above, or delete the state folder's triton/ and start again",
    ),
    (r"cannot be executed", "delete the state folder's triton/ and run python -m local.environment"),
    (
        r"unable to find backend library|Unable to find python backend|triton_python_backend_stub.*(No such|not found)",
        "the python backend is missing: delete the state folder's triton/ and run python -m local.environment",
    ),
    (r"lock_exception", "a model's process ended or was too slow: free memory or processor time and start again"),
    (
        r"[Nn]o module named '?(numpy|openvino|onnxruntime)",
        "the stub environment is broken: delete the state folder's stub/ and run python -m local.environment",
    ),
    (r"No space left on device|[Ss]hared memory", "enlarge /dev/shm: every model needs 64 MiB of it"),
    (r"failed to load|failed to stat|model repository|not found", "mend the model repository that was given"),
)
_ADDRESS_TAKEN = re.compile(r"already in use|Socket .* in use", re.IGNORECASE)


def means_overload(said: str) -> bool:
    """Whether the server aborted because a starting stub got no processor for a second; a new start may succeed."""
    return "lock_exception" in said


def means_taken_port(said: str) -> bool:
    """Whether the server ended because somebody else listens on one of its ports."""
    return _ADDRESS_TAKEN.search(said) is not None


def reason_and_remedy(said: str) -> str | None:
    """The telling line of the log and the remedy, as one sentence; None for a log that is not understood."""
    for pattern, remedy in _REMEDIES:
        if found := re.search(f"^.*(?:{pattern}).*$", said, re.MULTILINE):
            return f"{_told(found[0])}; {remedy}"
    return None


def _told(line: str) -> str:
    """A log line without severity, time, source position and the traceback that Triton appends."""
    line = line.partition(r"\n\nAt:")[0]
    return re.sub(r"^[IWE]\d{4} [\d:.]+ +\d+ \S+\] ?", "", line).strip(' "|')
