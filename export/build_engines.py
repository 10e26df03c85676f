"""Turns a Stable Diffusion 1.x checkpoint into a model repository that Triton serves.

  python export/build_engines.py --checkpoint demo/checkpoint --runtime onnx --out models
  python export/build_engines.py --checkpoint owner/name --runtime tensorrt --precision fp16 --out model_repository

The checkpoint is a folder in diffusers layout (what save_pretrained writes) or a hub id, which is downloaded once. Four
graphs are made of it: text_encoder, unet, vae_decoder, vae_encoder; batch, height and width stay open. Each is compared
with the checkpoint's own network in torch, and the largest difference of every output is printed.

A graph depends on the architecture alone. Where one was prepared before, in --graphs or in the folders searched by
default, it is only filled with this checkpoint's weights: that takes seconds and needs no torch. Without torch the
comparison is left out, and the build says so.

  runtime        what is built                               who runs it
  onnx           ONNX graphs                                 Triton on a CPU; with --device gpu its ONNX Runtime backend
  tensorrt       TensorRT engines for this machine's GPU     Triton's TensorRT backend of the same TensorRT version
  tensorrt-rtx   TensorRT-RTX engines for --sm               TensorRT-RTX's own runtime; Triton has no backend for it

--depth and --upscaler name networks that see pictures and nothing of the checkpoint; each becomes one model more.

With --style the repository at --out must exist, and only models with those styles merged in are added to it.

With --tune nothing is built: the repository at --out is measured on this machine, and how it is served best is written
into it (--tune --help says more).

The repository appears as a whole or not at all: it is built in a folder beside --out, within it where --out is a mount,
and moved to its place at the end.
Exit codes: 0 built; 1 a graph does not agree with torch; 2 the input or this machine is at fault, said in a sentence;
130 interrupted.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    # Called as a script, Python puts this file's folder in front of the checkout's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export import tune
from export.build import build
from export.build_styles import build_styles
from export.checkpoint import Checkpoint, open_checkpoint
from export.companions import with_depth, with_upscaler
from export.config_pbtxt import LOCAL_RUNTIMES, NATIVE, Serving
from export.dry_run import tell
from export.engine_record import Target, target_of
from export.errors import ExportError
from export.graph_cache import SHIPPED, GraphCache, user_folder
from export.profiles import BUCKETS_PX, check_sizes
from export.request import Request
from export.specs import STYLE_RANK, Device, Precision, Runtime
from export.styles import open_style

FP8_FROM = (8, 9)
"""Ada; Hopper is 9.0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if "--tune" in words:
        return tune.main([word for word in words if word != "--tune"])
    options = _parser().parse_args(words)
    try:
        request = _request(options)
        if options.dry_run:
            tell(request, sys.stdout)
        elif request.styles:
            build_styles(request, sys.stdout)
        else:
            build(request, sys.stdout)
    except ExportError as error:
        print(f"build_engines: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"build_engines: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return ExportError.exit_code
    except KeyboardInterrupt:
        print(f"\nbuild_engines: interrupted; {options.out} is as it was", file=sys.stderr)
        return 130
    return 0


def _request(options: argparse.Namespace) -> Request:
    serving, precision = _serving(options)
    checkpoint = _checkpoint(options)
    check_sizes(checkpoint.architecture, serving.buckets_px)
    target = None
    if serving.runtime is not Runtime.ONNX and not options.dry_run:
        target = target_of(serving.runtime, options.sm)
        if options.fp8:
            _check_fp8(target, checkpoint)
        serving = replace(serving, plan_file=target.plan_file, compute_capability=_only_gpu(target))
    return Request(
        checkpoint=checkpoint,
        name=options.name or checkpoint.name,
        out=options.out,
        serving=serving,
        precision=precision,
        cache=GraphCache((options.graphs,) if options.graphs else (*SHIPPED, user_folder())),
        retrace=options.retrace,
        compute_capabilities=tuple(options.sm),
        style_rank=options.style_rank,
        styles=tuple(map(open_style, options.style)),
        target=target,
        timings=user_folder("timings"),
        fp8=options.fp8,
        max_rows=options.max_rows,
    )


def _check_fp8(target: Target, checkpoint: Checkpoint) -> None:
    if checkpoint.family != "sd1":
        raise ExportError(f"--fp8 is for SD 1.x; {checkpoint.name} is {checkpoint.family}")
    for capability in target.compute_capabilities:
        if tuple(map(int, capability.split("."))) < FP8_FROM:
            raise ExportError(
                f"--fp8 is for compute capability 8.9 and later; one of {capability} does not multiply in it"
            )


def _checkpoint(options: argparse.Namespace) -> Checkpoint:
    checkpoint = open_checkpoint(options.checkpoint, dict(options.controlnet))
    if options.depth is not None:
        checkpoint = with_depth(checkpoint, options.depth, options.depth_size)
    elif options.depth_size is not None:
        raise ExportError(f"--depth-size is {options.depth_size}; it is the edge of what --depth sees")
    return checkpoint if options.upscaler is None else with_upscaler(checkpoint, options.upscaler)


def _only_gpu(target: Target) -> str:
    """Triton picks a plan by one GPU's compute capability; it has no backend for TensorRT-RTX's portable ones."""
    return target.compute_capabilities[0] if target.library == "tensorrt" else ""


def _rows(said: str) -> int:
    if not said.isdecimal() or int(said) < 2:
        raise argparse.ArgumentTypeError(f"{said} rows do not hold a guided job, which is two")
    return int(said)


def _count(said: str) -> int:
    if not said.isdecimal():
        raise argparse.ArgumentTypeError(f"{said} is no count; a whole number from 0 on is expected")
    return int(said)


def _size(said: str) -> tuple[int, int]:
    width, _, height = said.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{said} is no size; WIDTHxHEIGHT in pixels is expected, such as 512x768")
    return int(width), int(height)


def _serving(options: argparse.Namespace) -> tuple[Serving, Precision]:
    """Resolves what was left open and refuses options that would have no effect."""
    runtime = Runtime(options.runtime)
    usual = Device.CPU if runtime is Runtime.ONNX else Device.GPU
    device = usual if options.device is None else Device(options.device)
    usual_precision = Precision.FP32 if device is Device.CPU else Precision.FP16
    precision = usual_precision if options.precision is None else Precision(options.precision)
    if runtime is not Runtime.ONNX and device is Device.CPU:
        raise ExportError(f"--device is cpu; {runtime} engines run on a GPU")
    if options.fp8 and runtime is Runtime.ONNX:
        raise ExportError("--fp8 is for engines; ONNX Runtime would only round to it and multiply as before")
    if options.sm and runtime is not Runtime.TENSORRT_RTX:
        raise ExportError(f"--sm is for tensorrt-rtx; {runtime} builds for the machine it runs on")
    if device is Device.CPU and precision is not Precision.FP32:
        raise ExportError(
            f"--precision is {precision}; graphs for a CPU are fp32, and --local-runtime openvino-bf16 computes in bf16"
        )
    if device is Device.GPU and (options.local_runtime or options.threads):
        raise ExportError("--local-runtime and --threads are for a CPU; on a GPU Triton's own backends run the graphs")
    serving = Serving(runtime, device, options.local_runtime or LOCAL_RUNTIMES[0], options.threads)
    return replace(serving, buckets_px=tuple(options.sizes)), precision


def _named_folder(text: str) -> tuple[str, Path]:
    name, given, folder = text.partition("=")
    if not (name and given and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=FOLDER")
    return name, Path(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build_engines.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FOLDER_OR_ID", help="diffusers folder, or hub id such as owner/name")
    add("--runtime", required=True, choices=[runtime.value for runtime in Runtime], help="what runs the graphs (above)")
    add(
        "--out", required=True, type=Path, metavar="FOLDER", help="the model repository; its other files are left alone"
    )
    add(
        "--precision",
        choices=[precision.value for precision in Precision],
        help="default: fp32 for a CPU, fp16 for a GPU",
    )
    add(
        "--device",
        choices=[device.value for device in Device],
        help="of --runtime onnx (default: cpu)",
    )
    add(
        "--local-runtime",
        choices=(*LOCAL_RUNTIMES, NATIVE),
        help="on a CPU; auto, the default, is OpenVINO in the fastest precision this CPU computes in; "
        "triton-onnxruntime is for servers that bring that backend",
    )
    add("--threads", type=_count, default=0, metavar="N", help="of each model on a CPU (default: every core)")
    add(
        "--sm",
        nargs="+",
        type=int,
        default=(),
        metavar="NN",
        help="compute capabilities of a TensorRT-RTX engine, for example 86 89 (default: this machine's GPU)",
    )
    add(
        "--style-rank",
        type=_count,
        default=STYLE_RANK,
        metavar="N",
        help="up to which rank a style travels with its row (default: %(default)s); 0 builds a UNet without styles",
    )
    add(
        "--style",
        action="append",
        default=[],
        metavar="PATH[=WEIGHT]",
        help="add models with this style merged in to the repository at --out; several are merged together",
    )
    add(
        "--controlnet",
        action="append",
        default=[],
        type=_named_folder,
        metavar="NAME=FOLDER",
        help="a ControlNet to be fused with the UNet, under the name that jobs use (depth=FOLDER); may repeat",
    )
    add("--depth", metavar="FOLDER_OR_ID", help="a depth network of transformers, served as the model depth")
    add("--depth-size", type=int, metavar="PX", help="edge of the squares it sees (default: what its folder says)")
    add("--upscaler", type=Path, metavar="FOLDER", help="a compact Real-ESRGAN network, served as the model upscaler")
    add(
        "--sizes",
        nargs="+",
        type=_size,
        default=BUCKETS_PX,
        metavar="WxH",
        help="of pictures that get an engine profile of their own (default: 512x512 1024x512 512x1024 1024x1024)",
    )
    add(
        "--max-rows",
        type=_rows,
        metavar="N",
        help="of one execution of the UNet; a guided job is two, and fewer rows take less memory",
    )
    add(
        "--fp8",
        action="store_true",
        help="engines: the convolutions and projections of the UNet in fp8, for GPUs from Ada and Hopper on",
    )
    add("--dry-run", action="store_true", help="print graphs, profiles, memory and time, and build nothing")
    add("--name", help="what pictures call the checkpoint (default: the folder's name or the hub id)")
    add(
        "--graphs",
        type=Path,
        metavar="FOLDER",
        help="prepared graphs; new ones are kept there (default: the committed ones, then ~/.cache/remarque/graphs)",
    )
    add("--retrace", action="store_true", help="trace every graph anew, prepared or not")
    return parser


if __name__ == "__main__":
    # Being told to stop cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
