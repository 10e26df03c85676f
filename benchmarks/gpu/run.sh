#!/usr/bin/env bash
# The whole run on a GPU machine without network: benchmarks/gpu/run.sh WHEELS [options of benchmarks.gpu.run]
set -euo pipefail
wheels="$(realpath "${1:?usage: benchmarks/gpu/run.sh WHEELS [options]}")"
shift
cd "$(dirname "$0")/../.."
export REMARQUE_STATE="${REMARQUE_STATE:-$PWD/.remarque}"
site="$REMARQUE_STATE/gpu-site"
mkdir -p "$site"
mapfile -t brought < <(find "$wheels" -name '*.whl' ! -name 'numpy-*' ! -name 'nvidia_pytriton-*')
python3 -m pip --disable-pip-version-check install --quiet --no-index --no-deps --upgrade --target "$site" "${brought[@]}"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
exec python3 -m benchmarks.gpu.run --wheels "$wheels" "$@"
