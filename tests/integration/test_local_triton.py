"""The server from the wheel, the shared model.py in it and the orchestrator's client of it."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tiny_graphs

from local import environment
from local.triton import LocalTriton, Ports
from orchestrator.clients.triton import TritonModels
from orchestrator.errors import DeadlineExceeded, GenerationFailed, ModelUnavailable, RemarqueError, ServiceError

ROOT = Path(__file__).parents[2]


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The calls' results or errors, all begun at once, so that the server's batcher sees them side by side."""
    start = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return call()
        except RemarqueError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))


def step(models: TritonModels, sample: np.ndarray, timestep: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """One call of the UNet."""
    with models.conditioned("unet", {"encoder_hidden_states": embeddings}) as network:
        return network(sample, timestep)


def executions(triton: LocalTriton, model: str) -> tuple[int, int]:
    """How many rows ``model`` ran, in how many executions."""
    address = urlsplit(triton.http_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("GET", f"/v2/models/{model}/stats")
    told = json.loads(connection.getresponse().read())["model_stats"][0]
    connection.close()
    return told["inference_count"], told["execution_count"]


Run = Callable[..., dict[str, np.ndarray]]
GRAPHS = ("convolutions", "convolutions_of_one_shape", "lookup", "reciprocal", "reciprocal_unchecked")


@pytest.fixture(scope="module")
def graph_server(serve_models: Callable[..., LocalTriton], tiny_repository: Path) -> LocalTriton:
    return serve_models(tiny_repository, models=GRAPHS)


@pytest.fixture
def run(graph_server: LocalTriton) -> Iterator[Run]:
    """Call one of GRAPHS with its inputs as keywords."""
    models = TritonModels(graph_server.http_url, deadline_s=60)
    yield lambda name, **inputs: models.run(name, inputs, tuple(tiny_graphs.GRAPHS[name].outputs))
    models.close()


def living() -> list[tuple[int, int, int, str]]:
    """Process id, parent, group and command line of every process that is no zombie."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append((int(folder.name), int(parent), int(group), command))
    return found


def processes_of(group: int) -> list[str]:
    return [command for _, _, its_group, command in living() if its_group == group]


def stub_of(triton: LocalTriton, model: str) -> int:
    [found] = [pid for pid, parent, _, command in living() if parent == triton.server_pid and f"/{model}/" in command]
    return found


def until(condition: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


# The four networks


def test_every_network_answers_in_the_shapes_of_the_table(triton_models: TritonModels) -> None:
    assert triton_models.ready() == ()
    embeddings, _ = triton_models.encode_text(np.arange(154).reshape(2, 77))
    assert embeddings.shape == (2, 77, tiny_graphs.WIDTH)
    latents = np.zeros((2, 4, 8, 16), np.float32)
    predicted = step(triton_models, latents, np.full((2, 1), 999, np.float32), embeddings)
    assert (predicted.shape, predicted.dtype) == ((2, 4, 8, 16), np.float32)
    picture = triton_models.decode(predicted)
    assert (picture.shape, picture.dtype) == ((2, 64, 128, 3), np.uint8)
    mean, std = triton_models.encode(picture)
    assert mean.shape == std.shape == (2, 4, 8, 16)


def test_answers_are_what_the_graph_computes(run: Run) -> None:
    values = np.array([[0.5, -4.0, 8.0]], np.float32)
    np.testing.assert_array_equal(run("reciprocal", value=values)["result"], 1 / values)


def test_a_shape_that_runs_often_gets_a_graph_of_its_own_with_the_same_answers(
    run: Run, graph_server: LocalTriton
) -> None:
    sample = np.random.default_rng(3).standard_normal((1, 4, 256, 256)).astype(np.float32)
    said = f"a graph of its own for sample {list(sample.shape)}".encode()
    begun = graph_server.log.stat().st_size
    first = run("convolutions_of_one_shape", sample=sample)["out_sample"]

    def has_its_own() -> bool:
        run("convolutions_of_one_shape", sample=sample)
        return said in graph_server.log.read_bytes()[begun:]

    assert until(has_its_own, within_s=60)
    np.testing.assert_allclose(run("convolutions_of_one_shape", sample=sample)["out_sample"], first, atol=1e-5)
    other = run("convolutions_of_one_shape", sample=sample[:, :, :16, :32])["out_sample"]
    assert other.shape == (1, 32, 16, 32)


def test_arrays_that_are_not_contiguous_or_of_another_dtype_arrive_whole(run: Run) -> None:
    values = np.arange(1, 13, dtype=np.float64).reshape(3, 4).T
    np.testing.assert_allclose(run("reciprocal", value=values)["result"], 1 / values, rtol=1e-6)


def test_latents_with_nan_are_never_decoded(triton_models: TritonModels) -> None:
    latents = np.full((1, 4, 8, 8), np.nan, np.float32)
    with pytest.raises(ModelUnavailable, match="NaN"):
        triton_models.decode(latents)


def test_overflow_inside_the_decoder_is_no_picture(triton_models: TritonModels) -> None:
    latents = np.full((1, 4, 8, 8), 3e38, np.float32)
    with pytest.raises(ModelUnavailable, match="mean"):
        triton_models.decode(latents)


# Joint execution


def test_calls_of_different_jobs_share_executions(local_triton: LocalTriton, triton_models: TritonModels) -> None:
    embeddings = np.zeros((2, 77, tiny_graphs.WIDTH), np.float32)
    samples = [np.random.default_rng(seed).standard_normal((2, 4, 8, 8)).astype(np.float32) for seed in range(8)]
    levels = [np.full((2, 1), 100 * index, np.float32) for index in range(8)]
    rows_before, runs_before = executions(local_triton, "unet")
    calls = [
        lambda sample=sample, level=level: step(triton_models, sample, level, embeddings)
        for sample, level in zip(samples, levels, strict=True)
    ]
    shared = together(calls)
    rows, runs = executions(local_triton, "unet")
    assert rows - rows_before == 16
    assert runs - runs_before <= 4
    for call, answer in zip(calls, shared, strict=True):
        np.testing.assert_array_equal(answer, call())


def test_calls_of_different_sizes_share_an_execution_and_stay_apart(graph_server: LocalTriton, run: Run) -> None:
    sizes = [(8, 8), (8, 16), (16, 8), (8, 8), (8, 16), (16, 8), (8, 8), (8, 16)]
    samples = [
        np.random.default_rng(i).standard_normal((1, 4, *size)).astype(np.float32) for i, size in enumerate(sizes)
    ]
    calls = [lambda sample=sample: run("convolutions", sample=sample)["out_sample"] for sample in samples]
    runs_before = executions(graph_server, "convolutions")[1]
    shared = together(calls)
    assert executions(graph_server, "convolutions")[1] - runs_before <= 4
    for call, answer in zip(calls, shared, strict=True):
        np.testing.assert_array_equal(answer, call())


@pytest.mark.parametrize("rows", [2, 3, 4, 8])
def test_on_onnx_runtime_a_row_has_the_same_bits_alone_and_at_any_place_of_a_batch(run: Run, rows: int) -> None:
    samples = np.random.default_rng(rows).standard_normal((rows, 4, 24, 16)).astype(np.float32)
    batch = run("convolutions", sample=samples)["out_sample"]
    for row in range(rows):
        alone = run("convolutions", sample=samples[row : row + 1])["out_sample"][0]
        np.testing.assert_array_equal(alone, batch[row])


def test_a_request_that_breaks_the_joint_run_fails_alone(run: Run) -> None:
    indices = [0, 1, 99, 3, 4, 5]
    table = run("lookup", index=np.arange(8).reshape(8, 1))["row"]
    answers = together([lambda index=index: run("lookup", index=np.array([[index]]))["row"] for index in indices])
    assert isinstance(answers[2], GenerationFailed)
    assert "99" in str(answers[2])
    for index, answer in zip(indices, answers, strict=True):
        if index != 99:
            np.testing.assert_array_equal(answer[0], table[index])


def test_a_request_that_gives_infinity_fails_alone(run: Run) -> None:
    values = [1.0, 2.0, 0.0, 4.0]
    answers = together(
        [lambda value=value: run("reciprocal", value=np.array([[value]], np.float32))["result"] for value in values]
    )
    assert isinstance(answers[2], ModelUnavailable)
    assert [float(answer[0, 0]) for index, answer in enumerate(answers) if index != 2] == [1.0, 0.5, 0.25]


def test_infinity_passes_where_no_check_was_declared(run: Run) -> None:
    assert np.isinf(run("reciprocal_unchecked", value=np.zeros((1, 2), np.float32))["result"]).all()


@pytest.mark.parametrize("runtime", ["openvino-f32", "auto"])
def test_openvino_answers_what_onnx_runtime_answers(tiny_repository: Path, run: Run, runtime: str) -> None:
    samples = np.random.default_rng(3).standard_normal((2, 4, 16, 24)).astype(np.float32)
    with LocalTriton(tiny_repository, models=["convolutions"], runtime=runtime) as triton:
        models = TritonModels(triton.http_url, models=["convolutions"])
        answer = models.run("convolutions", {"sample": samples}, ("out_sample",))["out_sample"]
        models.close()
    expected = run("convolutions", sample=samples)["out_sample"]
    tolerance = 1e-5 if runtime == "openvino-f32" else 0.03  # bf16 keeps 8 bits
    np.testing.assert_allclose(answer, expected, atol=tolerance * np.abs(expected).max())


# What goes wrong


def test_a_wrong_shape_is_refused_with_the_model_s_name(triton_models: TritonModels) -> None:
    with pytest.raises(GenerationFailed, match="unet"):
        step(
            triton_models,
            np.zeros((1, 5, 8, 8), np.float32),
            np.zeros((1, 1), np.float32),
            np.zeros((1, 77, 16), np.float32),
        )


def test_an_unknown_model_is_unavailable(triton_models: TritonModels) -> None:
    with pytest.raises(ModelUnavailable, match="no_such_model"):
        triton_models.run("no_such_model", {}, ())


def test_models_that_are_not_loaded_are_named_as_not_ready(local_triton: LocalTriton) -> None:
    models = TritonModels(local_triton.http_url, models=("unet", "unet_of_tomorrow"))
    assert models.ready() == ("unet_of_tomorrow",)
    models.close()


def test_a_killed_stub_is_revived_once_for_all_threads(graph_server: LocalTriton, run: Run) -> None:
    samples = np.ones((1, 4, 8, 8), np.float32)
    expected = run("convolutions", sample=samples)["out_sample"]
    killed = stub_of(graph_server, "convolutions")
    os.kill(killed, signal.SIGKILL)
    assert until(lambda: killed not in [pid for pid, *_ in living()], 5)
    answers = together([lambda: run("convolutions", sample=samples)["out_sample"]] * 6)
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)
    assert stub_of(graph_server, "convolutions") != killed


def test_a_killed_server_is_unavailable_at_once_and_can_be_started_again(tiny_repository: Path) -> None:
    with LocalTriton(tiny_repository, models=["unet"]) as triton:
        models = TritonModels(triton.http_url, models=["unet"])
        assert models.ready() == ()
        assert triton.server_pid is not None
        os.kill(triton.server_pid, signal.SIGKILL)
        assert until(lambda: not triton.alive, 5)
        began = time.monotonic()
        with pytest.raises(ModelUnavailable):
            models.encode_text(np.zeros((1, 77), np.int64))
        assert time.monotonic() - began < 1
        assert models.ready() == ("triton",)
        models.close()
        triton.start()
        again = TritonModels(triton.http_url, models=["unet"])
        assert again.ready() == ()
        again.close()


def test_a_server_that_hangs_runs_into_the_deadline(tiny_repository: Path) -> None:
    with LocalTriton(tiny_repository, models=["text_encoder"]) as triton:
        models = TritonModels(triton.http_url, deadline_s=1.0)
        ids = np.zeros((1, 77), np.int64)
        models.encode_text(ids)
        assert triton.server_pid is not None
        os.kill(triton.server_pid, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded, match="1 s"):
            models.encode_text(ids)
        models.close()


# Starting and ending


def test_ending_the_parent_by_force_ends_server_and_stubs(tiny_repository: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from local.triton import LocalTriton\n"
        f"triton = LocalTriton(Path({str(tiny_repository)!r}), models=['unet'])\n"
        "triton.start(); print(triton.server_pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert any("triton_python_backend_stub" in command for command in processes_of(group))
        parent.kill()
    assert until(lambda: not processes_of(group), 5)
    assert until(lambda: not list(Path("/dev/shm").glob(f"remarque_{parent.pid}_*")), 5)


def test_a_stopped_server_leaves_no_process_and_can_be_stopped_twice(tiny_repository: Path) -> None:
    triton = LocalTriton(tiny_repository, models=[])
    triton.start()
    group = triton.server_pid
    assert group is not None
    triton.stop()
    triton.stop()
    assert not triton.alive
    assert until(lambda: not processes_of(group), 5)


def test_a_log_named_from_the_callers_folder_is_written_there(
    tmp_path: Path, tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServiceError, match="nothing"):
        LocalTriton(tiny_repository, models=["nothing"], log=Path("triton.log")).start()
    assert "nothing" in (tmp_path / "triton.log").read_text()


def test_a_taken_port_is_named(tiny_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} .* choose another port"):
            LocalTriton(tiny_repository, models=[], ports=Ports(http=port)).start()


@pytest.mark.parametrize(
    ("ports", "told"),
    [
        (Ports(http=70_000), "port is 70000; 0 to 65535 are served"),
        (Ports(metrics=-1), "port is -1; 0 to 65535 are served"),
        (Ports(http=18_000, grpc=18_000), "ports are 18000, 18000; each protocol needs one of its own"),
    ],
)
def test_ports_that_cannot_be_are_refused_in_a_sentence(tiny_repository: Path, ports: Ports, told: str) -> None:
    with pytest.raises(ServiceError, match=told):
        LocalTriton(tiny_repository, models=[], ports=ports).start()


@pytest.mark.parametrize("written", ["", '{"executable": "/usr', "[]", '{"executable": "/usr/bin/python3"}'])
def test_a_record_of_the_interpreter_that_was_half_written_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    chosen = environment.StubPython(sys.executable, "3.11", sys.executable)
    monkeypatch.setattr(environment, "_choose_python", lambda state: chosen)
    (tmp_path / "stub-python.json").write_text(written)
    assert environment._python(tmp_path) == chosen
    assert json.loads((tmp_path / "stub-python.json").read_text())["executable"] == sys.executable


def test_a_server_that_cannot_be_executed_is_told_with_its_remedy(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = environment.Environment(tmp_path)
    broken.server.parent.mkdir(parents=True)
    broken.server.write_bytes(b"\x7fELF of another machine")
    broken.server.chmod(0o755)
    monkeypatch.setattr("local.triton.prepare", lambda: broken)
    with pytest.raises(ServiceError, match=r"cannot be executed.*python -m local\.environment"):
        LocalTriton(tiny_repository, models=[]).start()


def test_a_missing_backend_is_told_with_its_remedy(
    triton_environment: environment.Environment,
    tiny_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = environment.Environment(tmp_path)
    (tmp_path / "triton").symlink_to(triton_environment.state / "triton")
    monkeypatch.setattr(environment.Environment, "backends", property(lambda self: tmp_path / "none"))
    monkeypatch.setattr("local.triton.prepare", lambda: broken)
    with pytest.raises(ServiceError, match=r"backend.*python -m local\.environment"):
        LocalTriton(tiny_repository, models=[]).start()


def test_a_stub_without_numpy_is_told_with_its_remedy(
    triton_environment: environment.Environment,
    tiny_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = environment.Environment(tmp_path)
    (tmp_path / "triton").symlink_to(triton_environment.state / "triton")
    python = json.loads((triton_environment.state / "stub-python.json").read_text())["executable"]
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "stub"], check=True)
    monkeypatch.setattr("local.triton.prepare", lambda: broken)
    with pytest.raises(ServiceError, match=r"numpy.*delete the state folder's stub"):
        LocalTriton(tiny_repository, models=[]).start()


def test_a_model_that_cannot_be_loaded_is_named_with_the_reason(tiny_repository: Path) -> None:
    with pytest.raises(ServiceError, match="runtime is tensorrt; auto, openvino-bf16"):
        LocalTriton(tiny_repository, models=["unet"], runtime="tensorrt").start()


def test_a_model_repository_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="is not a folder"):
        LocalTriton(tmp_path / "nothing").start()


def test_the_second_set_up_takes_no_time(triton_environment: environment.Environment) -> None:
    began = time.monotonic()
    assert environment.prepare() == triton_environment
    assert time.monotonic() - began < 0.2


def test_in_the_foreground_the_server_ends_with_an_interrupt(tiny_repository: Path) -> None:
    command = [sys.executable, "-m", "local.triton", "--models", tiny_repository, "--only", "unet"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, *ports], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if "Triton serves" in line)
            models = TritonModels(line.split(" at ")[1].split(" ")[0], models=["unet"])
            assert models.ready() == ()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert models.ready() == ("triton",)
    models.close()
