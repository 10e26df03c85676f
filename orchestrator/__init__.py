"""Remarque's orchestrator: jobs, the denoise loop, styles, signatures, storage, queue and webhooks, without a line of torch."""

__version__ = "0.1.0"
