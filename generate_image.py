"""``python generate_image.py --generation_id 1``: one job without a broker, from ``--job FILE`` or from its fields.

The picture is written to ``generations/gen-1.png`` or to ``--out``; every option of ``python -m orchestrator generate``
is understood. Where nothing says what to make, ``demo/message.json`` does.
"""

import argparse
import sys
from pathlib import Path

from orchestrator.__main__ import main
from orchestrator.orders import add_arguments

DEMO_JOB = Path(__file__).with_name("demo") / "message.json"

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args()
    unsaid = args.prompt is None and args.message is None
    sys.exit(main(["generate", *sys.argv[1:], *(["--job", str(DEMO_JOB)] if unsaid else [])]))
