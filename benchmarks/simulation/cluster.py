"""Nodes that denoise, step by step or request by request, and the queue before them.

A node's batch changes only when a job joins or leaves, so the simulation jumps from one such moment to the next: ten
million steps cost what their jobs do. Time passes at step boundaries: who arrives during a step joins after it.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.simulation.arrivals import Arrival

Curve = Callable[[float], float]
"""Seconds of one UNet execution of so many rows (of 512x512; larger ones count by their weight)."""
ROWS_PER_JOB = 2
"""A guidance pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node can do. ``extra_s`` is text and decoding, per job, which the card does beside its steps.

    ``policy`` "step" admits jobs at every step; "whole" begins a batch of jobs of equal length only when the former
    batch has ended, as a server without continuous batching does. ``mixed`` False runs one execution per style, as
    servers do that cannot put two styles into one batch.
    """

    curve: Curve
    at_once: int = 10
    extra_s: float = 0.0
    policy: Literal["step", "whole"] = "step"
    mixed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many nodes there are and when.

    With ``least`` below ``most`` a node is asked for whenever ``wait_jobs`` jobs wait per node that is on or coming; it
    serves after ``cold_start_s`` and goes after ``idle_s`` without a job. ``loss_per_hour`` is how often a spot node is
    taken away; its jobs go back to the queue with the steps of their last checkpoint (every ``checkpoint_s``).
    """

    least: int
    most: int
    cold_start_s: float = 120.0
    idle_s: float = 300.0
    wait_jobs: int = 10
    loss_per_hour: float = 0.0
    checkpoint_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trace."""

    waits_s: list[float]
    latencies_s: list[float]
    node_seconds: float
    busy_seconds: float
    lost_nodes: int
    lost_steps: int
    most_nodes: int
    ended_s: float


@dataclass(slots=True, eq=False)
class _Job:
    arrival: Arrival
    left: int
    begun_s: float = math.nan


@dataclass(slots=True, eq=False)
class _Machine:
    """One node's state. ``boundary_s`` is the end of the step it is in, or of the last one where it is idle."""

    on_s: float
    boundary_s: float
    jobs: list[_Job] = field(default_factory=list)
    joining: list[_Job] = field(default_factory=list)
    step_s: float = 0.0
    version: int = 0
    gone: bool = False
    held: int = 0


class Cluster:
    """Runs one trace; :meth:`run` is called once."""

    def __init__(self, node: Node, fleet: Fleet, seed: int = 0) -> None:
        self._node = node
        self._fleet = fleet
        self._draw = random.Random(seed)
        self._queue: deque[_Job] = deque()
        self._machines: list[_Machine] = []
        self._events: list[tuple[float, int, str, _Machine | None, int]] = []
        self._order = 0
        self._coming = 0
        self._free: list[tuple[int, int, _Machine]] = []
        self._open = 0
        self._warmup_s = 0.0
        self._waits: list[float] = []
        self._latencies: list[float] = []
        self._node_s = self._busy_s = self._now = 0.0
        self._lost_nodes = self._lost_steps = self._most = 0

    def run(self, trace: Iterable[Arrival], warmup_s: float = 0.0) -> Outcome:
        """Every job of ``trace`` to its end; those that arrive before ``warmup_s`` are served but not counted."""
        self._warmup_s = warmup_s
        for _ in range(self._fleet.least):
            self._start(0.0)
        coming = iter(trace)
        following = next(coming, None)
        while following is not None or self._open:
            if following is not None and (not self._events or following.at_s <= self._events[0][0]):
                self._now = following.at_s
                self._queue.append(_Job(following, following.steps))
                self._open += 1
                self._dispatch()
                self._grow()
                following = next(coming, None)
            else:
                self._turn()
        for machine in self._machines:
            self._node_s += self._now - machine.on_s
        return Outcome(
            self._waits, self._latencies, self._node_s, self._busy_s,
            self._lost_nodes, self._lost_steps, self._most, self._now,
        )  # fmt: skip

    def _turn(self) -> None:
        self._now, _, kind, machine, version = heapq.heappop(self._events)
        if kind == "ready":
            self._coming -= 1
            self._start(self._now)
            self._dispatch()
            self._grow()
        elif machine is None or machine.gone:
            return
        elif kind == "lost":
            self._lose(machine)
        elif kind == "boundary" and version == machine.version:
            self._boundary(machine)
            self._dispatch()
        elif kind == "idle" and version == machine.version and not machine.held:
            self._remove(machine)

    def _at(self, at_s: float, kind: str, machine: _Machine | None = None) -> None:
        self._order += 1  # two events at one time keep their order, so a seed decides everything
        heapq.heappush(self._events, (at_s, self._order, kind, machine, machine.version if machine else 0))

    def _start(self, at_s: float) -> None:
        machine = _Machine(at_s, at_s)
        self._machines.append(machine)
        self._most = max(self._most, len(self._machines))
        if self._fleet.loss_per_hour:
            self._at(at_s + self._draw.expovariate(self._fleet.loss_per_hour / 3600), "lost", machine)
        self._offer(machine)
        self._rest(machine)

    def _rest(self, machine: _Machine) -> None:
        """An idle node above the least goes after a while."""
        if self._fleet.most > self._fleet.least:
            machine.version += 1
            self._at(self._now + self._fleet.idle_s, "idle", machine)

    def _grow(self) -> None:
        """Ask for another node where too many wait for those that are on or coming."""
        nodes = len(self._machines) + self._coming
        if nodes < self._fleet.most and len(self._queue) > self._fleet.wait_jobs * nodes:
            self._coming += 1
            self._at(self._now + self._fleet.cold_start_s, "ready")

    def _remove(self, machine: _Machine) -> None:
        if len(self._machines) + self._coming <= self._fleet.least:
            return
        machine.gone = True
        self._machines.remove(machine)
        self._node_s += self._now - machine.on_s

    def _lose(self, machine: _Machine) -> None:
        """A spot node is taken: its jobs lose what they did since their last checkpoint and wait in front."""
        self._lost_nodes += 1
        machine.gone = True
        self._machines.remove(machine)
        self._node_s += self._now - machine.on_s
        done = self._steps_done(machine, self._now)
        for job in reversed(machine.jobs + machine.joining):
            job.left -= done if job in machine.jobs else 0
            lost = min(job.arrival.steps - job.left, self._since_checkpoint(machine))
            self._lost_steps += lost
            job.left += lost
            self._queue.appendleft(job)
        self._coming += 1
        self._at(self._now + self._fleet.cold_start_s, "ready")

    def _since_checkpoint(self, machine: _Machine) -> int:
        return math.ceil(self._draw.random() * self._fleet.checkpoint_s / machine.step_s) if machine.step_s else 0

    def _dispatch(self) -> None:
        """Waiting jobs to the nodes that hold the fewest, as many as these may hold."""
        while self._queue and (machine := self._freest()) is not None:
            if self._node.policy == "whole":
                self._take_batch(machine)
            else:
                self._take(machine, self._queue.popleft())
            self._offer(machine)
            self._schedule(machine)

    def _offer(self, machine: _Machine) -> None:
        """Say that a node may take jobs. Old offers of the same node are recognised by how many jobs it held."""
        if machine.held < (self._node.at_once if self._node.policy == "step" else 1):
            self._order += 1
            heapq.heappush(self._free, (machine.held, self._order, machine))

    def _freest(self) -> _Machine | None:
        while self._free:
            held, _, machine = heapq.heappop(self._free)
            if not machine.gone and machine.held == held:
                return machine
        return None

    def _take(self, machine: _Machine, job: _Job) -> None:
        machine.joining.append(job)
        machine.held += 1

    def _take_batch(self, machine: _Machine) -> None:
        """The first in the queue and those behind it that are like it, up to a batch."""
        head = self._queue[0]
        like = [job for job in self._queue if self._alike(job, head)][: self._node.at_once]
        for job in like:
            self._queue.remove(job)
            self._take(machine, job)

    @staticmethod
    def _alike(job: _Job, head: _Job) -> bool:
        return (job.left, job.arrival.weight) == (head.left, head.arrival.weight)

    def _steps_done(self, machine: _Machine, at_s: float) -> int:
        """Whole steps that the running jobs took since ``boundary_s``."""
        if not machine.jobs or at_s < machine.boundary_s:
            return 0
        return min(min(job.left for job in machine.jobs), int((at_s - machine.boundary_s) / machine.step_s + 1e-9))

    def _schedule(self, machine: _Machine) -> None:
        """The next boundary at which the batch changes."""
        machine.version += 1
        if machine.jobs:
            steps = min(job.left for job in machine.jobs)
            if machine.joining:
                passed = max(0.0, self._now - machine.boundary_s)
                steps = min(steps, max(0, math.ceil(passed / machine.step_s - 1e-9)))
            self._at(machine.boundary_s + steps * machine.step_s, "boundary", machine)
        elif machine.joining:
            self._at(max(self._now, machine.boundary_s), "boundary", machine)

    def _boundary(self, machine: _Machine) -> None:
        """Take the steps up to now; who is done leaves, who waits joins."""
        done = self._steps_done(machine, self._now)
        self._busy_s += done * machine.step_s
        leaving = 0
        for job in machine.jobs:
            job.left -= done
        for job in [job for job in machine.jobs if job.left == 0]:
            machine.jobs.remove(job)
            machine.held -= 1
            leaving += 1
            self._open -= 1
            if job.arrival.at_s >= self._warmup_s:
                self._latencies.append(self._now + leaving * self._node.extra_s - job.arrival.at_s)
        # The card decodes between two steps: those who stay and those who come wait for it.
        machine.boundary_s = self._now + leaving * self._node.extra_s
        self._busy_s += leaving * self._node.extra_s
        for job in machine.joining:
            if math.isnan(job.begun_s):
                job.begun_s = machine.boundary_s
                if job.arrival.at_s >= self._warmup_s:
                    self._waits.append(job.begun_s - job.arrival.at_s)
        machine.jobs += machine.joining
        machine.joining = []
        machine.step_s = self._step_s(machine.jobs)
        if leaving:
            self._offer(machine)
        if machine.held:
            self._schedule(machine)
        else:
            self._rest(machine)

    def _step_s(self, jobs: list[_Job]) -> float:
        """One turn of all ``jobs``: one execution for each size, and for each style where styles cannot mix."""
        rows: dict[tuple[float, int], float] = {}
        for job in jobs:
            key = (job.arrival.weight, 0 if self._node.mixed else job.arrival.style)
            rows[key] = rows.get(key, 0.0) + ROWS_PER_JOB * job.arrival.weight
        return sum(self._node.curve(count) for count in rows.values())
