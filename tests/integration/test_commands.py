"""Commands as a shell starts them, and what importing the orchestrator costs."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment or None, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_generate_image_runs_one_job_without_a_broker(tmp_path: Path) -> None:
    data = {"generation_id": 456, "prompt": "red boat", "aspect_ratio": "1:1", "seed": 42, "num_inference_steps": 3}
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps({"task_id": "660f9511-f3ac-52e5-b827-557766551111", "type": "image_generation", "data": data})
    )
    said = run(
        *(str(ROOT / "generate_image.py"), "--generation_id", "1", "--job", str(job)),
        cwd=tmp_path,
        INFERENCE_MODE="mock",
        MOCK_SECONDS="0",
        DEVELOPMENT_KEY_FOLDER=str(tmp_path / "key"),
    )
    assert said.startswith("generations/gen-1.png  512x512 px, seed 42, 3 steps")
    assert (tmp_path / "generations" / "gen-1.png").is_file()


def test_orchestrator_starts_without_torch_and_within_half_a_second() -> None:
    program = (
        "import re, sys, time; t = time.process_time(); import orchestrator.__main__\n"
        # The peak that resource knows is inherited from the process that started this one.
        "peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024\n"
        "print(time.process_time() - t, peak,"
        " [m for m in ('torch', 'diffusers', 'transformers', 'onnx') if m in sys.modules])"
    )
    seconds, mebibytes, heavy = run("-c", program).split(maxsplit=2)
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.5
    assert int(mebibytes) < 120


def test_importing_the_triton_client_imports_no_other_library() -> None:
    program = (
        "import sys, numpy; before = set(sys.modules); import orchestrator.clients.triton\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {'orchestrator', 'numpy'}))"
    )
    assert run("-c", program).strip() == "[]"
