#!/usr/bin/env bash
# Every measurement of the matmul kernels, on a machine with the GPU. Arguments choose steps; default: the first six.
#
#   benchmarks/evidence.sh [build] [compile_accuracy] [peers] [accuracy] [sanitize] [tests] [tune] [gain] [gemm] [dense] [e2e]
#
#   OUT              folder for the JSON files and logs (default: benchmarks/results, and build/evidence for logs)
#   NVFP4_TVM_CACHE  folder for compiled kernels; the steps `build` and `compile_accuracy` fill it, need no GPU, and may
#                    run on another machine with the same sources
#   JOBS             processes that compile (default: all processors)
#   PEER_GEMM        the script that measures contenders side by side: takes --peer MODULE:CLASS, --m, --json
#   PEER_ARGS        more of its arguments: which others to measure
#   ROWS             rows of activations for it
#   TESTS            files or folders with tests (default: tests)
#   LIMIT            seconds a step may take (default: 300)
#   ARCH             whose shipped records `tune` completes, all GPUs at once, and `gain` measures (default: sm_90)
#   FOLDERS          compiled folders for `e2e`
#   DEVICES          for `gain` (default: cuda; several: cuda:0,cuda:1)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LOGS="${OUT:-build/evidence}"
OUT="${OUT:-benchmarks/results}"
JOBS="${JOBS:-$(nproc)}"
LIMIT="${LIMIT:-300}"
ARCH="${ARCH:-sm_90}"
RECORDS="schedules/database/$ARCH.jsonl"
ROWS="${ROWS:-1,2,3,4,5,8,12,16,24,32,48,64,96,128,192,256,300,482,777,1024,2048,4096}"
mkdir -p "$OUT" "$LOGS"
failed=()

# step NAME COMMAND...: with a limit, into a log, and on to the next one if it fails
step() {
  local name="$1" start=$SECONDS
  shift
  timeout "$LIMIT" "$@" >"$LOGS/$name.log" 2>&1
  local code=$?
  echo "== $name: exit code $code, $((SECONDS - start)) s"
  tail -n 12 "$LOGS/$name.log" | cut -c1-300
  if [ "$code" -ne 0 ]; then failed+=("$name"); fi
}

# A process a GPU, each with its part of the shapes; a stopped run is continued by the same command
tune() {
  local gpus index pids=()
  gpus="$(nvidia-smi --list-gpus | wc -l)"
  for ((index = 0; index < gpus; index++)); do
    python3 -m nvfp4_tvm.cli.main tune --device "cuda:$index" --near "$RECORDS" --trials 6 --jobs "$((JOBS / gpus))" \
      --shapes "$(python3 -m benchmarks.model_shapes --untuned "$ARCH" --part "$((index + 1))/$gpus")" \
      --seconds "$((LIMIT * 9 / 10))" -o "$OUT/tuning_$index.jsonl" &
    pids+=($!)
  done
  local failed=0
  for index in "${pids[@]}"; do wait "$index" || failed=1; done
  return "$failed"
}
export -f tune
export ARCH RECORDS OUT JOBS LIMIT

for name in "${@:-build compile_accuracy peers accuracy sanitize tests}"; do
  for part in $name; do
    case "$part" in
      build)
        step build python3 -m benchmarks.peer build --shapes all --jobs "$JOBS"
        ;;
      compile_accuracy)
        step compile_accuracy python3 -m benchmarks.gemm_accuracy --only-compile --archs sm_90,sm_89 --jobs "$JOBS"
        ;;
      peers)
        # shellcheck disable=SC2086  # several arguments in one variable
        step peers python3 "${PEER_GEMM:?names the script that measures contenders side by side}" ${PEER_ARGS:-} \
          --peer benchmarks.peer:NVFP4TVM --peer benchmarks.peer:NVFP4TVMSm89 --m "$ROWS" --json "$OUT/peer_gemm.json"
        ;;
      accuracy)
        step accuracy python3 -m benchmarks.gemm_accuracy --jobs "$JOBS" --seconds "$((LIMIT * 8 / 10))" \
          -o "$OUT/gemm_accuracy_h200.json"
        ;;
      sanitize)
        step sanitize python3 -m benchmarks.sanitize --timeout "$((LIMIT * 8 / 10))" -o "$OUT/sanitizer_h200.json"
        ;;
      tests)
        # shellcheck disable=SC2086  # several arguments in one variable
        step tests python3 -m pytest -q -m gpu -p no:cacheprovider -n "$JOBS" --dist worksteal ${TESTS:-tests}
        ;;
      tune)
        step tune bash -c tune
        ;;
      gain)
        step gain python3 -m benchmarks.tuning_gain "$RECORDS" --device "${DEVICES:-cuda}" --jobs "$JOBS" \
          -o "$OUT/tuning_gain_h200.json"
        ;;
      gemm)
        step gemm python3 -m benchmarks.gemm --shapes all --rows "$ROWS" -o "$OUT/gemm_h200.json"
        ;;
      dense)
        step dense python3 -m benchmarks.dense -o "$OUT/dense_h200.json"
        ;;
      e2e)
        # shellcheck disable=SC2086  # several folders in one variable
        step e2e python3 -m benchmarks.e2e ${FOLDERS:?names compiled folders} -o "$OUT/e2e_h200.json"
        ;;
      *)
        echo "found the step '$part', expected build, compile_accuracy, peers, accuracy, sanitize, tests, tune, gain," \
          "gemm, dense or e2e" >&2
        exit 2
        ;;
    esac
  done
done
if [ "${#failed[@]}" -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
