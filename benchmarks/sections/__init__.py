"""One module per question. Each has ``run(bench) -> Section``; the list is in :mod:`benchmarks.run`."""
