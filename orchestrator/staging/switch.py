"""The routing as an operator sets it while the service runs: a document in the store, read by every replica."""

import json
import logging
import threading
from collections.abc import Collection, Mapping
from typing import Any, Final

from orchestrator.errors import InvalidInput, ObjectNotFound, Refused, RemarqueError
from orchestrator.staging.ledger import DOCUMENT_LIMIT_BYTES, PRIVATE_CACHE_CONTROL, Store
from orchestrator.staging.request import read_object
from orchestrator.staging.routing import Mode, Routing, read_routing

KEY: Final = "staging-routing.json"
LOG = logging.getLogger(__name__)


class Switch:
    """What counts is the document in the store where there is one, else the settings. Threads share one."""

    def __init__(self, store: Store, root: str, configured: Routing, built: Collection[Mode]) -> None:
        self._store = store
        self._uri = f"{root.rstrip('/')}/{KEY}"
        self._configured = configured
        self._built = frozenset(built)
        self._current = configured
        self._lock = threading.Lock()

    def current(self) -> Routing:
        """The routing that counts now."""
        return self._current

    def set(self, values: Mapping[str, Any]) -> Routing:
        """Change the named fields, here at once and elsewhere at the next :meth:`refresh`; raises InvalidInput."""
        with self._lock:
            routing = self._checked(read_routing(values, self._latest()))
            self._store.write(
                self._uri,
                json.dumps(routing.document()).encode(),
                content_type="application/json",
                cache_control=PRIVATE_CACHE_CONTROL,
            )
            self._apply(routing)
        return routing

    def reset(self) -> Routing:
        """Forget the document: the settings count again."""
        with self._lock:
            self._store.delete(self._uri)
            self._apply(self._configured)
        return self._configured

    def refresh(self) -> None:
        """Take over what another replica was told; a document that cannot be read or served changes nothing."""
        with self._lock:
            try:
                self._apply(self._stored())
            except RemarqueError as error:
                LOG.warning("the routing stays as it is: %s", error)

    def _latest(self) -> Routing:
        """What a change builds on: another replica may have been told something since the last look."""
        try:
            return self._stored()
        except Refused:
            return self._current  # the change replaces a document that cannot be read or served

    def _stored(self) -> Routing:
        try:
            values = read_object(self._store.read(self._uri, limit_bytes=DOCUMENT_LIMIT_BYTES))
        except ObjectNotFound:
            return self._configured
        return self._checked(read_routing(values, self._configured))

    def _checked(self, routing: Routing) -> Routing:
        if missing := [mode for mode in routing.modes if mode not in self._built]:
            raise InvalidInput(
                f"{missing[0]} is not set up in this service; {', '.join(sorted(self._built))} can be chosen"
            )
        return routing

    def _apply(self, routing: Routing) -> None:
        if routing != self._current:
            LOG.warning("the routing changed to %s", json.dumps(routing.document()))
            self._current = routing
