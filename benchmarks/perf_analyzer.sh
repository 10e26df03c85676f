#!/usr/bin/env bash
# NVIDIA's perf_analyzer against the models of a running Triton, with inputs of real shapes and answers checked first.
#
#   benchmarks/perf_analyzer.sh                                   # the demo's models; starts a Triton and ends it
#   benchmarks/perf_analyzer.sh -u HOST:8000                      # a Triton that runs; HTTP
#   benchmarks/perf_analyzer.sh -u triton:8000 -b perf_analyzer   # in nvcr.io/nvidia/tritonserver:YY.MM-py3-sdk
#
#   -p PYTHON   the interpreter (python3); -s PX size (512); -c "1 2 4 8" concurrencies; -n REQUESTS per window (20)
#   -m "unet ..." models (unet text_encoder vae_decoder)
set -euo pipefail
cd "$(dirname "$0")/.."

url="" binary="" python="${PYTHON:-python3}" size=512 sweep="1 2 4 8" requests=20 models="unet text_encoder vae_decoder"
while getopts "u:b:p:s:c:n:m:h" flag; do
  case "$flag" in
    u) url="$OPTARG" ;; b) binary="$OPTARG" ;; p) python="$OPTARG" ;; s) size="$OPTARG" ;; c) sweep="$OPTARG" ;;
    n) requests="$OPTARG" ;; m) models="$OPTARG" ;;
    *) sed -n '2,9p' "$0"; exit 2 ;;
  esac
done
[ -n "$binary" ] || binary="$("$python" -m benchmarks.perf_environment)"

inputs="$(mktemp -d)"
server=""
cleanup() {
  rm -rf "$inputs"
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
}
trap cleanup EXIT

if [ -z "$url" ]; then
  url="127.0.0.1:18000"
  repository="${MODELS:-${REMARQUE_STATE:-.remarque}/models}"
  "$python" -m local.triton --models "$repository" --http-port 18000 --grpc-port 18001 --metrics-port 18002 >"$inputs/triton.out" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    grep -q "^Triton serves" "$inputs/triton.out" && break
    kill -0 "$server" 2>/dev/null || { cat "$inputs/triton.out" >&2; exit 1; }
    sleep 0.5
  done
fi

for model in $models; do
  "$python" benchmarks/perf_inputs.py --url "http://$url" --model "$model" --size "$size" --out "$inputs"
  rows=1
  [ "$model" = unet ] && rows=2  # a guidance pair
  for concurrency in $sweep; do
    echo "== $model, $rows row(s) a request, $concurrency request(s) at once"
    # shellcheck disable=SC2046
    "$binary" -m "$model" -u "$url" -i http -b "$rows" --concurrency-range "$concurrency" \
      --input-data "$inputs/$model.json" $(cat "$inputs/$model.shapes") \
      --measurement-mode count_windows --measurement-request-count "$requests" --stability-percentage 999 --max-trials 3 \
      --percentile 95 2>&1 | grep -E "infer/sec|Throughput|latency|Avg|p95|queue|compute|count|rror|ailed" || echo "perf_analyzer gave no figures for $model"
  done
done
