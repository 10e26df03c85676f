"""Remarque's orchestrator: jobs, denoise loop, styles, signatures, storage, queue, webhooks; not a line of torch."""

__version__ = "0.1.0"
