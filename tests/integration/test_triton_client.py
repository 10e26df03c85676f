"""The client against a server of a few lines that says what Triton says."""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from fakes.inference_server import DEAD_STUB, Error, Handler, Served, serving

from orchestrator.clients.kserve import InferenceServer
from orchestrator.clients.triton import TritonModels
from orchestrator.clients.wire import Connection, Response
from orchestrator.errors import (
    ConfigError,
    DeadlineExceeded,
    GenerationFailed,
    ModelUnavailable,
    OutOfMemory,
    RemarqueError,
)


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    with serving(served) as address:
        yield address


@pytest.fixture
def models(url: str) -> Iterator[TritonModels]:
    models = TritonModels(url, deadline_s=5, load_within_s=5)
    yield models
    models.close()


def step(models: TritonModels, value: float = 1.0) -> np.ndarray:
    """One call of the UNet on latents that are ``value`` everywhere."""
    sample = np.full((1, 4, 2, 2), value, np.float32)
    with models.conditioned("unet", {"encoder_hidden_states": np.zeros((1, 77, 8), np.float32)}) as network:
        return network(sample, np.ones((1, 1), np.float32))


def decoded(models: TritonModels, value: float) -> np.ndarray:
    """One call of the decoder."""
    return models.decode(np.full((1, 4, 1, 1), value, np.float32))


def test_arrays_cross_in_both_directions(models: TritonModels) -> None:
    np.testing.assert_array_equal(step(models, 1.5), np.full((1, 4, 2, 2), 3.0, np.float32))


def test_answers_are_writable_and_belong_to_the_caller(models: TritonModels) -> None:
    answer = step(models)
    answer += 1
    assert answer.flags.writeable
    assert answer.flags.aligned


def test_inputs_are_cast_to_what_the_server_declares_and_answers_to_float32(
    models: TritonModels, served: Served
) -> None:
    served.inputs["unet"] = {"sample": "FP16", "timestep": "FP32", "encoder_hidden_states": "FP16"}
    answer = step(models, 0.25)
    assert {name: array.dtype.name for name, array in served.received[0].items()} == {
        "sample": "float16",
        "timestep": "float32",
        "encoder_hidden_states": "float16",
    }
    assert answer.dtype == np.float32


def test_token_ids_are_sent_as_int32_where_an_engine_wants_them_so(models: TritonModels, served: Served) -> None:
    served.inputs["text_encoder"] = {"input_ids": "INT32"}
    served.answers["text_encoder"] = lambda inputs: {
        "last_hidden_state": np.ones((1, 77, 8), np.float16),
        "pooler_output": np.ones((1, 8), np.float16),
    }
    models.encode_text(np.full((1, 77), 49407))
    np.testing.assert_array_equal(served.received[0]["input_ids"], np.full((1, 77), 49407, np.int32))


def test_the_signature_is_asked_once(models: TritonModels, served: Served) -> None:
    step(models)
    step(models)
    assert served.log.count("GET /v2/models/unet/config") == 1


def test_a_connection_is_kept_for_the_next_call(models: TritonModels, served: Served) -> None:
    for _ in range(4):
        step(models)
    assert served.connections == 1


def test_a_connection_closed_since_its_last_use_is_replaced_without_an_error(
    models: TritonModels, served: Served
) -> None:
    served.hang_up_after = 2
    for _ in range(4):
        assert step(models).shape == (1, 4, 2, 2)


def test_a_server_that_hangs_up_on_every_connection_is_unavailable(models: TritonModels, served: Served) -> None:
    served.hang_up_after = 0
    with pytest.raises(ModelUnavailable, match="closed the connection"):
        step(models)
    assert len(served.log) == 1


def test_a_machine_that_vanished_is_noticed_by_the_kernel_within_a_minute(url: str) -> None:
    connection = Connection(urlsplit(url), 1.0, None)
    options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
    idle_s, every_s, probes = (connection._socket.getsockopt(socket.IPPROTO_TCP, each) for each in options)
    assert connection._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert idle_s + every_s * probes <= 60
    connection.close()


def test_a_kept_connection_that_the_kernel_gave_up_is_replaced_without_an_error(
    models: TritonModels, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(models)
    receive, gone = Connection.receive, [TimeoutError(errno.ETIMEDOUT, "Connection timed out")]

    def gives_up_once(self: Connection, end: float) -> Response:
        if gone:
            raise gone.pop()
        return receive(self, end)

    monkeypatch.setattr(Connection, "receive", gives_up_once)
    assert step(models).shape == (1, 4, 2, 2)
    assert served.connections == 2


def test_many_threads_use_one_client(models: TritonModels) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda value: step(models, value), range(40)))
    assert [float(answer[0, 0, 0, 0]) for answer in answers] == [2.0 * value for value in range(40)]


def test_no_server_is_unavailable_at_once() -> None:
    models = TritonModels("http://127.0.0.1:9", deadline_s=5)
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match="127.0.0.1:9"):
        step(models)
    assert time.monotonic() - began < 1
    assert models.ready() == ("triton",)


def test_a_call_that_takes_longer_than_its_deadline_says_so(url: str, served: Served) -> None:
    models = TritonModels(url, deadline_s=0.1)
    served.wait_s = 0.5
    with pytest.raises(DeadlineExceeded, match="0.1 s"):
        step(models)
    models.close()


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        ("unet ran out of memory: std::bad_alloc", 500, OutOfMemory),
        ("Failed to allocate memory for requested buffer of size 4294967296", 400, OutOfMemory),
        ("Request for unknown model: 'unet' has no available versions", 400, ModelUnavailable),
        ("Model 'unet' is not ready", 503, ModelUnavailable),
        ("unet gave NaN or infinity in out_sample", 500, ModelUnavailable),
        ("[request id: 1] unexpected shape for input 'sample'", 400, GenerationFailed),
    ],
)
def test_what_the_server_says_becomes_one_of_our_errors(
    models: TritonModels, served: Served, said: str, status: int, expected: type[RemarqueError]
) -> None:
    def refuse(inputs: dict[str, np.ndarray]) -> Any:
        raise Error(said, status)

    served.answers["unet"] = refuse
    with pytest.raises(RemarqueError) as caught:
        step(models)
    assert type(caught.value) is expected
    assert said in str(caught.value)


def test_an_answer_that_is_not_the_protocol_is_unavailable(models: TritonModels, served: Served) -> None:
    step(models)
    served.garbage = b"<html>502</html>"
    with pytest.raises(ModelUnavailable, match="did not answer"):
        step(models)


@pytest.mark.parametrize("answer", ["half of the outputs", "one row for all"])
def test_an_answer_that_lacks_outputs_or_rows_is_unavailable(models: TritonModels, served: Served, answer: str) -> None:
    rows = 1 if answer == "one row for all" else 2
    outputs = {"sample": np.zeros((rows, 8, 8, 3), np.uint8), "mean": np.zeros((2, 1), np.float32)}
    served.answers["vae_decoder"] = lambda inputs: dict(list(outputs.items())[: 1 if rows == 2 else 2])
    with pytest.raises(
        ModelUnavailable, match=r"did not answer POST /v2/models/vae_decoder/infer: .*(mean|1, 8, 8, 3)"
    ):
        models.decode(np.zeros((2, 4, 1, 1), np.float32))


def test_a_step_that_comes_back_for_one_of_two_rows_is_unavailable(models: TritonModels, served: Served) -> None:
    served.answers["unet"] = lambda inputs: {"out_sample": inputs["sample"][:1]}
    with (
        models.conditioned("unet", {"encoder_hidden_states": np.zeros((2, 77, 8), np.float32)}) as network,
        pytest.raises(ModelUnavailable, match="for 2 rows"),
    ):
        network(np.zeros((2, 4, 2, 2), np.float32), np.ones((2, 1), np.float32))


def test_inputs_that_the_model_does_not_take_are_named(models: TritonModels, served: Served) -> None:
    served.inputs["unet"]["style"] = "FP32"
    with pytest.raises(ModelUnavailable, match="takes encoder_hidden_states, sample, style, timestep"):
        step(models)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_with_nan_or_infinity_is_unavailable(models: TritonModels, value: float) -> None:
    with pytest.raises(ModelUnavailable, match="unet held NaN or infinity"):
        step(models, value)


def test_a_decoder_whose_mean_is_nan_is_unavailable(models: TritonModels, served: Served) -> None:
    served.answers["vae_decoder"] = lambda inputs: {
        "sample": np.zeros((1, 8, 8, 3), np.uint8),
        "mean": np.full((1, 1), np.nan, np.float32),
    }
    with pytest.raises(ModelUnavailable, match="vae_decoder"):
        models.decode(np.zeros((1, 4, 1, 1), np.float32))
    assert served.log.count("POST /v2/models/vae_decoder/infer") == 2


def test_a_decoder_that_answers_nan_once_is_asked_again(models: TritonModels, served: Served) -> None:
    whole = served.answers["vae_decoder"]
    means = iter([np.nan, 0.5])

    def answer(inputs: dict[str, np.ndarray]) -> Any:
        return whole(inputs) | {"mean": np.full((1, 1), next(means), np.float32)}

    served.answers["vae_decoder"] = answer
    assert models.decode(np.zeros((1, 4, 1, 1), np.float32)).shape == (1, 8, 8, 3)


def test_depth_and_larger_pictures_come_from_models_of_their_own(models: TritonModels, served: Served) -> None:
    served.inputs |= {"depth": {"sample": "UINT8"}, "upscaler": {"sample": "UINT8"}}
    served.answers["depth"] = lambda inputs: {"inverse_depth": inputs["sample"][..., 0].astype(np.float32) / 2}
    served.answers["upscaler"] = lambda inputs: {"upscaled": inputs["sample"].repeat(2, axis=1).repeat(2, axis=2)}
    picture = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.testing.assert_array_equal(models.depth(picture), picture[..., 0] / 2)
    assert models.upscale(picture).shape == (2, 8, 8, 3)


def test_depth_with_nan_is_unavailable(models: TritonModels, served: Served) -> None:
    served.inputs["depth"] = {"sample": "UINT8"}
    served.answers["depth"] = lambda inputs: {"inverse_depth": np.full((1, 4, 4), np.nan, np.float32)}
    with pytest.raises(ModelUnavailable, match="depth held NaN"):
        models.depth(np.zeros((1, 4, 4, 3), np.uint8))


def test_models_that_are_not_ready_are_named(models: TritonModels, served: Served) -> None:
    served.not_ready = {"unet", "vae_encoder"}
    assert models.ready() == ("unet", "vae_encoder")


def test_everything_ready_is_an_empty_tuple(models: TritonModels) -> None:
    assert models.ready() == ()


def test_a_dead_stub_is_unloaded_loaded_and_asked_again(models: TritonModels, served: Served) -> None:
    served.kill_unet()
    served.states = ["UNLOADING", "UNLOADING", "UNAVAILABLE"]
    assert step(models, 7.0)[0, 0, 0, 0] == 7.0
    changes = [line for line in served.log if "repository" in line]
    assert changes == [
        "POST /v2/repository/models/unet/unload",
        *["POST /v2/repository/index"] * 3,
        "POST /v2/repository/models/unet/load",
    ]


def test_threads_that_meet_a_dead_stub_together_load_it_once(models: TritonModels, served: Served) -> None:
    together, begun, gathered = threading.Barrier(5), threading.Event(), threading.Event()

    def dead_until_loaded(inputs: dict[str, np.ndarray]) -> Any:
        value = inputs["latent_sample"].flat[0]
        if value == 0:
            begun.set()
            gathered.wait(5)
        elif "POST /v2/repository/models/vae_decoder/load" not in served.log:
            together.wait(5)
            raise Error(DEAD_STUB, 500)
        return {"sample": np.full((1, 8, 8, 3), value, np.uint8), "mean": np.zeros((1, 1), np.float32)}

    served.answers["vae_decoder"] = dead_until_loaded
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(decoded, models, 0)
        begun.wait(5)
        others = [pool.submit(decoded, models, value) for value in range(1, 6)]
        time.sleep(0.1)  # they come while the first one runs, and go together
        gathered.set()
        answers = [future.result() for future in (first, *others)]
    assert [int(answer[0, 0, 0, 0]) for answer in answers] == [0, 1, 2, 3, 4, 5]
    assert served.log.count("POST /v2/repository/models/vae_decoder/load") == 1


def test_a_stub_that_dies_again_is_given_up(models: TritonModels, served: Served) -> None:
    def dead(inputs: dict[str, np.ndarray]) -> Any:
        raise Error(DEAD_STUB, 500)

    served.answers["unet"] = dead
    with pytest.raises(ModelUnavailable, match="not healthy"):
        step(models)
    assert served.log.count("POST /v2/models/unet/infer") == 2


def test_a_load_forgets_the_old_signature(models: TritonModels, served: Served) -> None:
    step(models)
    served.inputs["unet"]["sample"] = "FP16"
    models.load("unet")
    step(models)
    assert served.received[-1]["sample"].dtype == np.float16


def test_an_unload_forgets_the_old_signature(models: TritonModels, served: Served) -> None:
    step(models)
    served.inputs["unet"]["sample"] = "FP16"
    served.states = ["UNAVAILABLE"]
    models.unload("unet")
    step(models)  # somebody else loaded it again
    assert served.received[-1]["sample"].dtype == np.float16


def test_a_refused_load_is_unavailable_with_the_reason(models: TritonModels, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Handler, body: bytes) -> Any:
        raise Error("failed to load 'unet', no version is available")

    monkeypatch.setattr(Handler, "answer", refuse)
    with pytest.raises(ModelUnavailable, match="did not load unet: .*no version is available"):
        models.load("unet")


@pytest.mark.parametrize("url", ["ftp://host:1", "", "http://"])
def test_an_address_that_cannot_be_called_is_a_setting_to_mend(url: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        InferenceServer(url, deadline_s=1, connect_timeout_s=1)


def test_an_address_may_leave_out_the_scheme(url: str) -> None:
    models = TritonModels(url.removeprefix("http://"))
    assert models.ready() == ()
    models.close()


def test_a_path_in_the_address_goes_before_every_call_as_a_proxy_wants_it(url: str, served: Served) -> None:
    models = TritonModels(f"{url}/gpu 1/", models=["unet"])
    models.ready()
    models.close()
    assert served.log == ["GET /gpu%201/v2/models/unet/ready"]


def test_a_truncated_answer_is_unavailable(models: TritonModels, served: Served) -> None:
    step(models)
    served.truncated = True
    with pytest.raises(ModelUnavailable, match="closed the connection"):
        step(models)
    served.truncated = False
    assert step(models).shape == (1, 4, 2, 2)


def test_an_answer_that_a_proxy_cut_into_chunks_is_read(models: TritonModels, served: Served) -> None:
    served.chunked = True
    np.testing.assert_array_equal(step(models, 1.5), np.full((1, 4, 2, 2), 3.0, np.float32))


def test_more_rows_than_one_execution_holds_go_in_several(models: TritonModels, served: Served) -> None:
    served.max_rows = 3
    latents = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) * np.ones((1, 4, 1, 1), np.float32)
    assert models.decode(latents).shape == (8, 8, 8, 3)
    assert [len(inputs["latent_sample"]) for inputs in served.received] == [3, 3, 2]


def test_a_server_that_is_about_to_exit_and_lists_nothing_is_unavailable(
    models: TritonModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exits(self: Handler, body: bytes) -> Any:
        raise Error("Server not ready", 503)

    monkeypatch.setattr(Handler, "answer", exits)
    with pytest.raises(ModelUnavailable, match="did not list its models: Server not ready"):
        models.loaded()


def test_models_that_the_server_holds_are_named(models: TritonModels, served: Served) -> None:
    assert models.loaded() == ("unet",)
    served.states = ["UNAVAILABLE"]
    assert models.loaded() == ()
