"""``python rabbitmq_consumer.py``: the name under which older deployments start the worker."""

import sys

from orchestrator.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["work", *sys.argv[1:]]))
