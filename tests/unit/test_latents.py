"""Latents made larger, the rough picture they show, and the embeddings that are kept."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from orchestrator.diffusion.embeddings import EmbeddingCache
from orchestrator.diffusion.resize import enlarged, rough_picture


def encode(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.repeat(ids[..., None].astype(np.float32), 2, axis=2)
    return hidden, hidden.mean(axis=1)


def test_enlarged_latents_keep_a_constant():
    assert np.allclose(enlarged(np.full((1, 4, 8, 16), 0.7, np.float32), 16, 40), 0.7)


def test_enlarged_latents_keep_a_straight_line_away_from_the_edges():
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32), (1, 1, 4, 16))
    large = enlarged(ramp, 8, 32)[0, 0, 0]
    np.testing.assert_allclose(large[4:-4], (np.arange(32)[4:-4] + 0.5) / 2 - 0.5, atol=1e-5)


def test_enlarging_to_the_same_size_changes_nothing():
    latents = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(enlarged(latents, 8, 8), latents, atol=1e-6)


def test_a_rough_picture_has_one_pixel_per_latent_within_black_and_white():
    latents = np.array([-10.0, 0.0, 10.0, 0.25], np.float32).reshape(1, 1, 2, 2)
    picture = rough_picture(latents, [[0.5, 0.5, 0.5]], [0.5, 0.5, 0.5])
    assert picture[..., 0].tolist() == [[0, 128], [255, 159]]


def test_the_least_recently_used_embeddings_go_first():
    cache, calls = EmbeddingCache(2), []

    def counted(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(ids.tolist())
        return encode(ids)

    for ids in ((1,), (2,), (1,), (3,), (1,), (2,)):
        cache.find("w", [ids], counted)
    assert calls == [[[1]], [[2]], [[3]], [[2]]]


def test_unknown_prompts_are_encoded_in_one_call_and_each_once():
    calls = []

    def counted(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(ids.tolist())
        return encode(ids)

    states = EmbeddingCache(8).find("w", [(1,), (2,), (1,)], counted)
    assert calls == [[[1], [2]]] and [state.hidden[0, 0] for state in states] == [1.0, 2.0, 1.0]


def test_more_chunks_at_once_than_are_kept_are_all_answered():
    states = EmbeddingCache(1).find("w", [(i,) for i in range(5)], encode)
    assert [state.hidden[0, 0] for state in states] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_jobs_side_by_side_get_their_own_embeddings():
    cache = EmbeddingCache(4)

    def ask(index: int) -> bool:
        (state,) = cache.find("w", [(index % 9,)], encode)
        return bool(state.hidden[0, 0] == index % 9)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(2000)))
