#!/usr/bin/env bash
# Wheels for a GPU machine without network: benchmarks/gpu/bundle.sh FOLDER [PYTHON_VERSION]
#
# The machine brings torch, onnx, transformers, accelerate, safetensors and their needs; what it lacks besides is here.
set -euo pipefail
out="${1:?usage: benchmarks/gpu/bundle.sh FOLDER [PYTHON_VERSION]}" version="${2:-3.12}"
cd "$(dirname "$0")/../.."
flags=(--no-deps --only-binary=:all: --python-version "$version" --implementation cp --dest "$out" --quiet)
for platform in manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  flags+=(--platform "${platform}_x86_64")
done
packages=(numpy==1.26.4 nvidia-pytriton==0.7.0)
for name in diffusers obstore pika c2pa-python prometheus-client starlette uvicorn peft; do
  packages+=("$(grep -i "^$name==" constraints.txt)")
done
python3 -m pip --disable-pip-version-check download "${flags[@]}" "${packages[@]}"
ls -l "$out"
