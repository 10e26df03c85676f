"""The loop that the demo's networks are trained in, with a network of one layer."""

import argparse
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
training = pytest.importorskip("demo.training")


class Doubling(training.Teacher):
    """Teaches a layer to double what it sees; each process sees something else."""

    def __init__(self, layer: "torch.nn.Linear", seed: int) -> None:
        super().__init__(seed)
        self.layer = layer

    def lesson(self, spent: float) -> "training.Lesson":
        assert 0 <= spent < 1
        seen = torch.randn(4, 1)
        return training.Lesson((self.layer(seen) - 2 * seen).square().mean(), (1, 1), 4)


def save(layer: "torch.nn.Linear", out: Path) -> None:
    torch.save(layer.state_dict(), out / "layer.pt")


def run(args: argparse.Namespace) -> None:
    layer = torch.nn.Linear(1, 1)
    training.train(layer, torch.nn.Linear(1, 1), Doubling(layer, args.seed), save, args)
    save(layer, args.out / f"process-{torch.distributed.get_rank()}")


def test_processes_learn_one_network_until_their_time_is_over(tmp_path: Path) -> None:
    out = tmp_path / "layer"
    words = ["--out", str(out), "--minutes", "0.05", "--lr", "0.05"]
    args = training.parser_of(None, minutes=1, seed=1).parse_args(words)
    for rank in range(args.processes):
        (out / f"process-{rank}").mkdir(parents=True)

    training.start(run, args)

    first, second = (torch.load(out / f"process-{rank}" / "layer.pt")["weight"].item() for rank in range(2))
    kept = torch.load(out / "layer.pt")["weight"].item()
    record = json.loads((out / "training.json").read_text())
    assert first == second == pytest.approx(2, abs=0.05)
    assert kept == pytest.approx(2, abs=0.1)
    assert record["pictures"] == {"1x1": 8 * record["steps"]}


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [training.learning_rate(spent, step, 1.0) for spent, step in ((0, 0), (0.3, 500), (0.65, 900), (1, 2000))]

    assert rates == pytest.approx([1 / 40, 1, 1, 0.02])
