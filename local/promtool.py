"""Prometheus' own checker of rules, for tests: an installed ``promtool``, or the one in Debian's package, unpacked.

``python -m local.promtool`` fetches it once (25 MB) and prints where it lies.
"""

import shutil
import sys
from pathlib import Path

from local.debian import unpack
from local.environment import state_folder
from orchestrator.errors import ServiceError

REMEDY = "install promtool (Debian, Ubuntu: apt install prometheus) or run this where it is"


def promtool(state: Path) -> Path:
    """The program; :class:`ServiceError` where it can neither be found nor fetched."""
    installed = shutil.which("promtool")
    if installed is not None:
        return Path(installed)
    folder = state / "promtool"
    if not (folder / "usr/bin/promtool").exists():
        unpack(["prometheus"], folder, instead=REMEDY)
    return folder / "usr/bin/promtool"


def main() -> int:
    """0 and the path; 1 and one sentence where there is none."""
    try:
        print(promtool(state_folder()))
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
