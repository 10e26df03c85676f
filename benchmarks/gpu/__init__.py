"""One command for a machine with an NVIDIA GPU and no network: ``python -m benchmarks.gpu.run``."""
