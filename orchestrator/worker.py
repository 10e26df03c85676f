"""Deliveries in, outcomes out: the only place that decides between another attempt and giving up.

The dispatching thread takes deliveries off the inbox and starts jobs; each job has a thread of its own. Whatever
happens to a job ends in exactly one of: an ack after its outcome is safe, a confirmed copy for a later attempt, or the
message back in the queue.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from orchestrator.attempt import Attempt, Control
from orchestrator.backlog import Backlog
from orchestrator.clients.queues import Delivery, life, tried
from orchestrator.conclusion import Conclusion
from orchestrator.denoising import Emit
from orchestrator.errors import GenerationFailed, Interrupted, InvalidInput, RemarqueError, StorageError
from orchestrator.job import Event, HandedBack, Job, Progress, Staged, Started
from orchestrator.ledger import Ledger, Manifest
from orchestrator.outbox import Broker
from orchestrator.progress import ProgressLane
from orchestrator.schema import (
    Cancel,
    fingerprint,
    generation_id_from,
    message_from_bytes,
    request_from_message,
    webhook_url_from,
)
from orchestrator.stages import Stage, listening
from orchestrator.trace import HEADER as TRACEPARENT
from orchestrator.trace import working_on

PROGRESS_PATIENCE_S = 2.0
CANCEL_POLL_S = 2.0
FAREWELL_S = 2.0
UNSETTLED_PAUSE_S = 1.0
SendProgress = Callable[[Progress, str | None, int], None]
LOG = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs one attempt to its manifest; ``prepare`` begins in the background what it can while a job waits."""

    def run(self, attempt: Attempt, control: Control, emit: Emit) -> Manifest: ...

    def prepare(self, job: Job) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """``fairness_window`` deliveries are held beyond those that run, to choose the next from."""

    max_concurrent: int
    fairness_window: int
    job_timeout_s: float
    grace_s: float


class Ticket:
    """A job this worker has in hand, with every delivery that asked for it."""

    def __init__(self, attempt: Attempt, delivery: Delivery, timeout_s: float, send: SendProgress) -> None:
        self.attempt = attempt
        self.deliveries = [delivery]
        self.control = Control(timeout_s)
        self.lane = ProgressLane(self._tell)
        self._send = send
        self._delivered_s = time.time()

    def started(self) -> Started:
        """The event of the attempt's begin. Only of a first attempt is it known how long it waited."""
        attempt, (delivery, *_) = self.attempt, self.deliveries
        since_s = self._delivered_s if delivery.published_s is None else delivery.published_s
        first = attempt.number == 1 and attempt.life == 0 and not attempt.redelivered
        return Started(
            generation_id=attempt.job.generation_id,
            attempt=attempt.number,
            waited_s=max(0.0, time.time() - since_s) if first else None,
            waited_from="delivered" if delivery.published_s is None else "published",
            trace=attempt.trace,
        )

    def _tell(self, event: Progress) -> None:
        """Once the attempt is to end the backend may know the outcome; 100 % is said only of one that was made here."""
        if event.progress_percent == 100 or not self.control.cancelled.is_set():
            self._send(event, self.attempt.job.webhook_url, self.attempt.life)

    @property
    def priority(self) -> int:
        return self.attempt.job.priority

    @property
    def user(self) -> object:
        return self.attempt.job.user_id

    @property
    def style(self) -> object:
        return self.attempt.job.styles[0].path if self.attempt.job.styles else None


class Worker:
    """Consumes the queue until :meth:`stop`, at most ``max_concurrent`` jobs at once."""

    def __init__(
        self,
        broker: Broker,
        runner: Runner,
        ledger: Ledger,
        conclusion: Conclusion,
        *,
        settings: WorkerSettings,
        listen: Emit,
        send_progress: SendProgress,
    ) -> None:
        self._broker = broker
        self._runner = runner
        self._ledger = ledger
        self._conclusion = conclusion
        self._settings = settings
        self._listen = listen
        self._send_progress = send_progress
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._backlog: Backlog[Ticket] = Backlog(time.monotonic)
        # Only the dispatching thread adds and removes tickets; the others read under the lock.
        self._tickets: dict[int, Ticket] = {}
        self._running: set[Ticket] = set()
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def run(self) -> None:
        """Work until :meth:`stop`, then hand back or finish what is in hand; returns within the grace period."""
        prefetch = self._settings.max_concurrent + self._settings.fairness_window
        self._broker.consume(self._broker.queues.work, prefetch, self._inbox.put)
        watcher = threading.Thread(target=self._watch_cancels, name="cancels", daemon=True)
        watcher.start()
        while not self.stopping.is_set():
            delivery = self._inbox.get()
            if delivery is not None:
                self._accept(delivery)
            self._start_waiting()
        self._wind_down()

    @property
    def waiting(self) -> int:
        """Jobs that were taken from the queue and wait here for their turn."""
        return len(self._backlog)

    def stop(self) -> None:
        """Ask :meth:`run` to return; safe in a signal handler."""
        self.stopping.set()
        self._inbox.put(None)

    def _accept(self, delivery: Delivery) -> None:
        """Read one delivery: a job to queue, a job to cancel, or a message to refuse."""
        message: Mapping[str, Any] = {}
        try:
            message = message_from_bytes(delivery.body)
            request, identity = request_from_message(message), fingerprint(message)
        except InvalidInput as error:
            _in_background(self._refuse, delivery, message, error)
            return
        except Exception as error:  # left to itself, the message would end every worker it is delivered to
            LOG.exception("a message broke the reader")
            unforeseen = GenerationFailed(f"the message broke the reader inside the server ({type(error).__name__})")
            _in_background(self._refuse, delivery, message, unforeseen)
            return
        if isinstance(request, Cancel):
            self._cancel(delivery, request)
        else:
            self._queue(delivery, _attempt(delivery, request, identity))

    def _queue(self, delivery: Delivery, attempt: Attempt) -> None:
        """Put the job into the backlog, or join it where it is in hand already."""
        with self._lock:
            known = self._tickets.get(attempt.job.generation_id)
            if known is None:
                ticket = Ticket(attempt, delivery, self._settings.job_timeout_s, self._send_progress)
                self._tickets[attempt.job.generation_id] = ticket
                self._backlog.put(ticket)
                self._runner.prepare(attempt.job)
                return
            if known.attempt.fingerprint == attempt.fingerprint:
                known.deliveries.append(delivery)
                return
        error = InvalidInput(f"generation_id {attempt.job.generation_id} is running with other parameters")
        _in_background(self._settle, [delivery], partial(self._conclusion.rejected, [delivery], error))

    def _start_waiting(self) -> None:
        """Give each free place to the job whose turn it is."""
        while len(self._running) < self._settings.max_concurrent and not self.stopping.is_set():
            with self._lock:
                ticket = self._backlog.take(self._running)
                if ticket is None:
                    return
                self._running.add(ticket)
            _in_background(self._work, ticket)

    def _work(self, ticket: Ticket) -> None:
        """One attempt, from its first event to its end; nothing escapes."""
        attempt = ticket.attempt
        end: Callable[[], None]
        try:
            ticket.control.begin()
            if self._ledger.cancel_requested(attempt.job.generation_id):
                ticket.control.cancelled.set()
            self._listen(ticket.started())
            with working_on(attempt.trace), listening(partial(self._staged, attempt.job.generation_id)):
                manifest = self._runner.run(attempt, ticket.control, self._emitter(ticket))
            end = partial(self._conclusion.ended, attempt, ticket.deliveries, manifest)
        except Interrupted:
            self._listen(HandedBack(generation_id=attempt.job.generation_id))
            end = partial(self._conclusion.handed_back, ticket.deliveries)
        except RemarqueError as error:
            end = partial(self._conclusion.broken, attempt, ticket.deliveries, error)
        except Exception as error:
            LOG.exception("generation %d broke in a way nobody foresaw", attempt.job.generation_id)
            foreseen = GenerationFailed(f"the generation broke inside the server ({type(error).__name__})")
            end = partial(self._conclusion.broken, attempt, ticket.deliveries, foreseen)
        self._end(ticket, end)

    def _end(self, ticket: Ticket, end: Callable[[], None]) -> None:
        """Settle the job. From here on a further delivery of it is a new ticket, which finds the outcome."""
        ticket.lane.close(PROGRESS_PATIENCE_S)
        with self._lock:
            del self._tickets[ticket.attempt.job.generation_id]
        self._settle(ticket.deliveries, end)
        with self._lock:
            self._running.discard(ticket)
        self._inbox.put(None)

    def _settle(self, deliveries: Sequence[Delivery], end: Callable[[], None]) -> None:
        """Whatever happens to ``end``, no delivery stays in hand: those would use up what the broker hands out."""
        try:
            end()
        except Exception:
            LOG.exception("%d deliveries could not be settled; they come again", len(deliveries))
            time.sleep(UNSETTLED_PAUSE_S)
            self._conclusion.handed_back(deliveries)

    def _staged(self, generation_id: int, stage: Stage, began_s: float, seconds: float) -> None:
        self._listen(Staged(generation_id=generation_id, stage=stage, began_s=began_s, seconds=seconds))

    def _emitter(self, ticket: Ticket) -> Emit:
        def emit(event: Event) -> None:
            self._listen(event)
            if isinstance(event, Progress):
                ticket.lane.put(event)

        return emit

    def _refuse(self, delivery: Delivery, message: Mapping[str, Any], error: RemarqueError) -> None:
        """Dead-letter what cannot be read; where it names a generation, that generation failed."""
        try:
            self._fail_unread(delivery, message, error)
        except Exception:
            LOG.exception("what a refused message asked for could not be failed; it is dead-lettered")
            self._settle([delivery], partial(self._conclusion.rejected, [delivery], error))

    def _fail_unread(self, delivery: Delivery, message: Mapping[str, Any], error: RemarqueError) -> None:
        generation_id = generation_id_from(message)
        if generation_id is None or message.get("type") != "image_generation":
            self._conclusion.rejected([delivery], error)
            return
        job = Job(generation_id=generation_id, task_id="", prompt="", webhook_url=webhook_url_from(message))
        self._conclusion.failed(_attempt(delivery, job, fingerprint(message)), [delivery], error)

    def _cancel(self, delivery: Delivery, request: Cancel) -> None:
        """Stop the job at its next step where it is in hand here; the word in the store reaches it anywhere."""
        with self._lock:
            ticket = self._tickets.get(request.generation_id)
        if ticket is not None:
            ticket.control.cancelled.set()
        _in_background(self._leave_word, delivery, request)

    def _leave_word(self, delivery: Delivery, request: Cancel) -> None:
        """Kept before it is acked: the attempt in hand may break, or be handed back, before it hears of it."""
        try:
            self._ledger.request_cancel(request.generation_id)
        except StorageError as error:
            LOG.warning("the cancel of generation %d waits: %s", request.generation_id, error)
            time.sleep(CANCEL_POLL_S)
            self._broker.requeue(delivery)
        else:
            self._broker.ack(delivery)

    def _watch_cancels(self) -> None:
        """Look now and then whether what runs here was cancelled, or ended, at another worker."""
        while not self.stopping.wait(CANCEL_POLL_S):
            with self._lock:
                running = list(self._running)
            for ticket in running:
                try:
                    if self._is_over(ticket.attempt):
                        ticket.control.cancelled.set()
                except RemarqueError as error:
                    LOG.warning("cancels cannot be looked up: %s", error)
                    break

    def _is_over(self, attempt: Attempt) -> bool:
        """Whether it was cancelled, or a worker that has the job too, since a connection was lost, was quicker."""
        if self._ledger.cancel_requested(attempt.job.generation_id):
            return True
        found = self._ledger.find(attempt.job.generation_id)
        return found is not None and found.fingerprint == attempt.fingerprint and found.life >= attempt.life

    def _wind_down(self) -> None:
        """Hand back what has not begun; let the rest finish for half the grace, then stop it at its next step."""
        until_s = time.monotonic() + self._settings.grace_s
        self._broker.stop_consuming(self._broker.queues.work)
        for ticket in self._backlog.drain():
            self._conclusion.handed_back(ticket.deliveries)
        while not self._inbox.empty():
            delivery = self._inbox.get()
            if delivery is not None:
                self._conclusion.handed_back([delivery])
        self._await_running(until_s - self._settings.grace_s / 2)
        for ticket in list(self._running):
            ticket.control.stopping.set()
        # However short the grace, a checkpoint is written and its message handed back before the process ends.
        self._await_running(max(until_s, time.monotonic() + FAREWELL_S))

    def _await_running(self, until_s: float) -> None:
        while self._running and time.monotonic() < until_s:
            time.sleep(0.02)


def _in_background(act: Callable[..., None], *args: object) -> None:
    """A daemon thread: one that hangs in a call of Triton's must not keep the process from ending in time.

    There are never more of them than the broker delivers unacked.
    """
    threading.Thread(target=act, args=args, name=act.__name__.strip("_"), daemon=True).start()


def _attempt(delivery: Delivery, job: Job, identity: str) -> Attempt:
    return Attempt(
        job=job,
        fingerprint=identity,
        number=tried(delivery) + 1,
        life=life(delivery),
        redelivered=delivery.redelivered,
        traceparent=traceparent if isinstance(traceparent := delivery.headers.get(TRACEPARENT), str) else None,
    )
