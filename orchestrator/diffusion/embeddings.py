"""The most recent prompt embeddings, so that a prompt seen before costs no call of the text encoder."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TokenIds = tuple[int, ...]
Encode = Callable[[NDArray[np.int64], str], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""``(input_ids [n,77], name of the encoder) -> hidden states [n,77,width], pooled output [n,width]``."""


class Embedding(NamedTuple):
    """What a text encoder says of one context: hidden states [tokens,width] and the pooled output [width]."""

    hidden: NDArray[np.float32]
    pooled: NDArray[np.float32]


class EmbeddingCache:
    """Embeddings by the name of the weights and the token ids; the least recently used go first.

    Shared by every job of the process. Triton's own response cache is no substitute: after a model is reloaded it still
    answers with the old weights' embeddings.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[tuple[str, TokenIds], Embedding] = OrderedDict()
        self._lock = Lock()

    def find(
        self,
        weights: str,
        wanted: Sequence[TokenIds],
        encode: Callable[[NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> list[Embedding]:
        """One embedding for each of ``wanted``; those not kept are encoded, all in one call."""
        with self._lock:
            found = {ids: kept for ids in wanted if (kept := self._kept.get((weights, ids))) is not None}
        missing = [ids for ids in dict.fromkeys(wanted) if ids not in found]
        if missing:
            # Outside the lock: a job whose prompt is known must not wait for the text encoder of another.
            encoded = zip(*encode(np.asarray(missing, np.int64)), strict=True)
            found.update(zip(missing, (Embedding(*each) for each in encoded), strict=True))
        with self._lock:
            for ids in dict.fromkeys(wanted):
                self._kept[weights, ids] = found[ids]
                self._kept.move_to_end((weights, ids))
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)
        return [found[ids] for ids in wanted]
