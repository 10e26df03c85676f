"""A model repository whose UNets answer zeros: the checkpoint's other models, its UNet's tensors, and SD 1.5's."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

NULL = Path(__file__).resolve().parent / "null_unet" / "model.py"
SD15 = "unet_sd15"
PACED = "unet_paced"
PACED_FIXED_MS, PACED_ROW_MS = 20.0, 5.0
MOST_ROWS = 32
_SD15_STYLE = 1_594_368
_TENSORS = """input {{ name: "sample" data_type: {kind} dims: [ 4, -1, -1 ] }}
input {{ name: "timestep" data_type: TYPE_FP32 dims: [ 1 ] }}
input {{ name: "encoder_hidden_states" data_type: {kind} dims: [ -1, {width} ] }}
{more}output {{ name: "out_sample" data_type: {kind} dims: [ 4, -1, -1 ] }}
"""
_STYLE = f'input {{ name: "style" data_type: TYPE_FP16 dims: [ {_SD15_STYLE} ] }}\n'


@contextmanager
def null_repository(base: Path, *, paced: bool = False) -> Iterator[Path]:
    """``base`` with a UNet of no cost, one of SD 1.5's shapes in fp16 with styles, and one that takes its time.

    All three wait for neighbours as long as the UNet of ``base`` does. With ``paced`` the first takes its time too.
    """
    pace = {"fixed_ms": PACED_FIXED_MS, "row_ms": PACED_ROW_MS}
    with TemporaryDirectory(prefix="remarque-null-") as place:
        repository = Path(place)
        for path in base.iterdir():
            if path.is_file():
                shutil.copy(path, repository)
            elif path.name != "unet" and "--" not in path.name:
                (repository / path.name).symlink_to(path.absolute())
        config = (base / "unet" / "config.pbtxt").read_text("utf-8")
        [delay] = re.findall(r"max_queue_delay_microseconds: \d+", config)
        if paced:
            config = re.sub(r"max_batch_size: \d+", f"max_batch_size: {MOST_ROWS}", config) + _parameters(pace)
        _write(repository, "unet", config)
        _write(repository, SD15, _config(SD15, _TENSORS.format(kind="TYPE_FP16", width=768, more=_STYLE), delay))
        _write(repository, PACED, _config(PACED, _TENSORS.format(kind="TYPE_FP32", width=128, more=""), delay, pace))
        yield repository


def _write(repository: Path, name: str, config: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    shutil.copy(NULL, version / "model.py")
    (repository / name / "config.pbtxt").write_text(config, "utf-8")


def _config(name: str, tensors: str, delay: str, pace: Mapping[str, float] | None = None) -> str:
    return (
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: {MOST_ROWS}\n{tensors}'
        f"dynamic_batching {{ {delay} }}\ninstance_group [ {{ count: 1 kind: KIND_CPU }} ]\n"
    ) + _parameters({"null": 0.0, **(pace or {})})


def _parameters(values: Mapping[str, float]) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items()
    )
