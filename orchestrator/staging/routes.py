"""What each route of the staging service does; refusals are errors of the tree, of which the API makes problems."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.errors import Conflict, NotFound, RateLimited, RemarqueError, Unauthorized
from orchestrator.fields import Fields
from orchestrator.staging.accounts import Account, Accounts, same_token
from orchestrator.staging.answers import Answer, Call, Endpoint, Following, Looking, Outcome, Pending, refusal
from orchestrator.staging.desk import Desk
from orchestrator.staging.job import Snapshot, StagingJob
from orchestrator.staging.ledger import ImageName, Manifest, StagingLedger
from orchestrator.staging.managed import ManagedProvider
from orchestrator.staging.openapi import openapi_document
from orchestrator.staging.preference import Preference, read_preference
from orchestrator.staging.problems import problem, problem_of
from orchestrator.staging.promises import Promises
from orchestrator.staging.quota import Quota, Verdict
from orchestrator.staging.request import StagingRequest, checked_image_id, read_object, read_request
from orchestrator.staging.switch import Switch

REQUEST_LIMIT_BYTES: Final = 64 << 10
WEBHOOK_LIMIT_BYTES: Final = 4 << 20  # a provider sends the whole prediction, its inputs included
LOOK_AGAIN_S: Final = "1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagingRoutes:
    """The routes' bodies; ``root`` is where the keys of originals begin, ``managed`` hears of webhooks."""

    desk: Desk
    ledger: StagingLedger
    promises: Promises
    accounts: Accounts
    quota: Quota
    switch: Switch
    root: str
    admin_token: str | None
    managed: ManagedProvider | None

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every route but health and metrics."""
        caller, admin, anybody = self._caller, self._admin, _anybody
        image, routing = "/infer/{image_id}", "/admin/routing"
        limit = REQUEST_LIMIT_BYTES
        found = [
            Endpoint(method="POST", path="/infer", authorize=caller, handle=self.infer, limit_bytes=limit),
            Endpoint(method="GET", path=image, authorize=caller, handle=self.status),
            Endpoint(method="DELETE", path=image, authorize=caller, handle=self.cancel),
            Endpoint(method="GET", path=f"{image}/events", authorize=caller, handle=self.events),
            Endpoint(method="GET", path="/openapi.json", authorize=anybody, handle=self.openapi),
        ]
        if self.admin_token is not None:
            found += [
                Endpoint(method="GET", path=routing, authorize=admin, handle=self.show_routing),
                Endpoint(method="PUT", path=routing, authorize=admin, handle=self.set_routing, limit_bytes=limit),
                Endpoint(method="DELETE", path=routing, authorize=admin, handle=self.reset_routing),
            ]
        if self.managed is not None:
            path, limit = "/webhooks/predictions", WEBHOOK_LIMIT_BYTES
            found.append(Endpoint(method="POST", path=path, authorize=anybody, handle=self.webhook, limit_bytes=limit))
        return tuple(found)

    def infer(self, call: Call) -> Outcome:
        """Stage a picture, or give the answer that the same wish got before."""
        account, request = _account(call), read_request(call.body)
        tier = account.tier(request.tier)
        verdict = self.quota.take(account.payer(request), tier)
        if not verdict.allowed:
            said = f"{verdict.rate.limit} requests in {verdict.rate.window_s} s are served at the tier {tier}"
            limited = problem_of(RateLimited(said, retry_after_s=verdict.reset_s))
            return refusal(limited).plus(verdict.headers())
        try:
            return self._staged(account, request, verdict, read_preference(call.headers.get("prefer", "")))
        except RemarqueError as error:
            return refusal(problem_of(error)).plus(verdict.headers())

    def _staged(self, account: Account, request: StagingRequest, verdict: Verdict, prefers: Preference) -> Outcome:
        account.allowed(self.root, request)
        name = ImageName(account=account.name, image_id=request.image_id)
        settled = self.ledger.settled(name, request.fingerprint)
        if settled is not None:
            return _result(settled).plus({"Idempotent-Replayed": "true", **verdict.headers()})
        most_s = self.desk.settings.deadline_s
        wait_s = min(most_s, prefers.wait_s or most_s)
        job = self.desk.submit(
            request,
            account,
            verdict.tier,
            deadline_s=most_s if prefers.respond_async else wait_s,
            prepare=self.promises.make if prefers.respond_async else None,
        )
        headers = {**prefers.applied(), **verdict.headers()}
        accepted = Answer(
            status=202,
            document=_state(job),
            headers={"Location": f"/infer/{request.image_id}", "Retry-After": LOOK_AGAIN_S, **headers},
        )
        if prefers.respond_async and not prefers.wait_s:  # 202 at once
            return accepted
        late = refusal(problem("TIMEOUT", f"image {request.image_id} was not staged within {wait_s:g} s"))
        return Pending(
            done=job.done,
            timeout_s=wait_s,
            then=lambda done: accepted if prefers.respond_async and job.handed_over else _outcome(done).plus(headers),
            late=lambda: accepted if prefers.respond_async else late.plus(headers),
        )

    def status(self, call: Call) -> Outcome:
        """How the staging of an image stands."""
        document = self._document(_name(call))
        going_on = document["status"] in ("queued", "running")
        return Answer(status=200, document=document, headers={"Retry-After": LOOK_AGAIN_S} if going_on else {})

    def events(self, call: Call) -> Outcome:
        """The same as a stream, until it ends."""
        name = _name(call)
        job = self.desk.find(name)
        if job is not None and not job.snapshot().final:
            return Following(
                after=job.after, document=lambda snapshot: None if job.handed_over else _state(job, snapshot)
            )
        self._document(name)  # what nobody knows of is refused at once
        return Looking(look=lambda: None if self.desk.stopping else self._document(name))

    def cancel(self, call: Call) -> Outcome:
        """Ask for a staging to end, here or in another replica."""
        name = _name(call)
        job = self.desk.find(name)
        if job is not None and not job.snapshot().final:
            self.desk.cancel(job)
            return Answer(status=202, document=_state(job))
        if self.ledger.find(name) is not None:
            raise Conflict(f"image {name.image_id} is staged already; nothing was cancelled")
        if self.ledger.accepted(name) is None:
            raise NotFound(f"no staging of image {name.image_id} is under way")
        self.ledger.request_cancel(name)
        return Answer(status=202, document=self._recorded(name))

    def openapi(self, call: Call) -> Outcome:
        """The service's own description."""
        return Answer(status=200, document=openapi_document(), headers={"Cache-Control": "max-age=300"})

    def show_routing(self, call: Call) -> Outcome:
        """The routing that counts."""
        return Answer(status=200, document=self.switch.current().document())

    def set_routing(self, call: Call) -> Outcome:
        """Change the routing for this and every replica."""
        return Answer(status=200, document=self.switch.set(read_object(call.body)).document())

    def reset_routing(self, call: Call) -> Outcome:
        """Go back to the settings."""
        return Answer(status=200, document=self.switch.reset().document())

    def webhook(self, call: Call) -> Outcome:
        """A provider's word that a prediction ended: a reason to look at it, and nothing that is believed."""
        prediction_id = Fields(read_object(call.body), "").text("id", 100)
        if self.managed is not None and prediction_id:
            self.managed.ring(prediction_id)
        return Answer(status=204, document=None)

    def _document(self, name: ImageName) -> dict[str, Any]:
        """How an image stands. What came to nothing here may go on elsewhere, so of that the store speaks first."""
        job = self.desk.find(name)
        if job is not None and job.snapshot().status not in ("failed", "cancelled"):
            return _state(job)
        try:
            return self._recorded(name)
        except NotFound:
            if job is None:
                raise
            return _state(job)

    def _recorded(self, name: ImageName) -> dict[str, Any]:
        """What the store knows of an image that is not in hand here."""
        found = {"image_id": name.image_id, "status": "succeeded", "percent": 100}
        if (manifest := self.ledger.find(name)) is not None:
            return found | {"result": dict(manifest.answer)}
        if (failure := self.ledger.failure(name)) is not None:
            status = "cancelled" if failure.code == "CANCELLED" else "failed"
            said = problem(failure.code, failure.message)
            return found | {"status": status, "percent": 0, "problem": said.document()}
        if self.ledger.accepted(name) is not None:
            return found | {"status": "queued", "percent": 0}
        raise NotFound(f"no staging of image {name.image_id} is known")

    def _caller(self, headers: Mapping[str, str]) -> Account:
        return self.accounts.authenticate(headers.get("authorization"))

    def _admin(self, headers: Mapping[str, str]) -> None:
        if self.admin_token is None or not same_token(headers.get("authorization"), self.admin_token):
            raise Unauthorized("the Authorization header does not hold the operators' token")


def _anybody(headers: Mapping[str, str]) -> None:
    return None


def _account(call: Call) -> Account:
    assert call.account is not None, "this route is for callers"
    return call.account


def _name(call: Call) -> ImageName:
    return ImageName(account=_account(call).name, image_id=checked_image_id(call.parameters["image_id"]))


def _result(manifest: Manifest) -> Answer:
    return Answer(status=200, document=manifest.answer)


def _outcome(done: Future[Manifest]) -> Answer:
    error = done.exception()
    if error is None:
        return _result(done.result())
    assert isinstance(error, RemarqueError), "the desk settles with our errors only"
    return refusal(problem_of(error))


def _state(job: StagingJob, snapshot: Snapshot | None = None) -> dict[str, Any]:
    """A job as its status document; result and problem are there once ``done`` is."""
    seen = job.snapshot() if snapshot is None else snapshot
    document: dict[str, Any] = {"image_id": job.request.image_id, "status": seen.status, "percent": seen.percent}
    if seen.final and job.done.done():
        answer = _outcome(job.done)
        document["result" if answer.status == 200 else "problem"] = answer.document
    return document
