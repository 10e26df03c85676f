"""The most recent prompt embeddings, so that a prompt seen before costs no call of the text encoder."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

TokenIds = tuple[int, ...]
Encode = Callable[[NDArray[np.int64]], NDArray[np.float32]]


class EmbeddingCache:
    """Hidden states [tokens, width] by the digest of the weights and the token ids; the least recently used go first.

    Shared by every job of the process. Triton's own response cache is no substitute: after a model is reloaded it still
    answers with the old weights' embeddings.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[tuple[str, TokenIds], NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def hidden_states(self, weights: str, wanted: Sequence[TokenIds], encode: Encode) -> list[NDArray[np.float32]]:
        """One array for each of ``wanted``; those not kept are encoded, all in one call."""
        with self._lock:
            found = {ids: kept for ids in wanted if (kept := self._kept.get((weights, ids))) is not None}
        missing = [ids for ids in dict.fromkeys(wanted) if ids not in found]
        if missing:
            # Outside the lock: a job whose prompt is known must not wait for the text encoder of another.
            found.update(zip(missing, encode(np.asarray(missing, np.int64)), strict=True))
        with self._lock:
            for ids in dict.fromkeys(wanted):
                self._kept[weights, ids] = found[ids]
                self._kept.move_to_end((weights, ids))
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)
        return [found[ids] for ids in wanted]
