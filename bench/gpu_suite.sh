#!/usr/bin/env bash
# Everything that only a GPU can show, in one command. NOT RUN ON A GPU yet: only its dry run is tested.
#
#   bash bench/gpu_suite.sh [--dry-run] [OUT]        # OUT: folder of logs, rows and charts (default: runs/gpu-suite)
#
# Works from a clean checkout with nothing but PYTHONPATH: it builds the kernels in place and makes synthetic studies.
# A step that fails does not stop the others; failures are counted and named, and are the exit status's reason.
# PYTHON chooses the interpreter (default: .venv/bin/python where it is, else python3).
set -u -o pipefail

dry_run=0
if [ "${1:-}" = "--dry-run" ]; then dry_run=1; shift; fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="${1:-$root/runs/gpu-suite}"
mkdir -p "$out" && out="$(cd "$out" && pwd)" || exit 1
cd "$root" || exit 1

if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
work="$out/work"
rows="$out/gpu.jsonl"
failed=()

# step NAME COMMAND...: run it, its output in OUT/NAME.log, its result and seconds on one line.
step() {
  local name="$1" started status
  shift
  if [ "$dry_run" = 1 ]; then
    printf '%-14s %s\n' "$name" "$*"
    return
  fi
  started=$SECONDS
  "$@" > "$out/$name.log" 2>&1
  status=$?
  if [ $status = 0 ]; then
    printf 'ok     %-14s %5d s\n' "$name" $((SECONDS - started))
  else
    printf 'FAILED %-14s %5d s  exit status %d: %s\n' "$name" $((SECONDS - started)) $status "$(tail -n 1 "$out/$name.log")"
    failed+=("$name")
  fi
}

bench() { # bench STAGE: its table in the log, its rows and chart in OUT
  step "$1" "$PYTHON" bench/throughput.py --stage "$1" --work "$work" --json "$rows" --chart "$out/$1.png" --strict --debug
}

step machine      nvidia-smi
step torch_cuda   "$PYTHON" -c 'import sys, torch; ok = torch.cuda.is_available(); print(torch.__version__, ok and torch.cuda.get_device_name()); sys.exit(not ok)'
step build        "$PYTHON" setup.py build_ext --inplace
step backend      "$PYTHON" -c 'from fastich import ops; print(ops.backend())'
# Correctness first: the CUDA operator against numpy on random and damaged input, then its slices/s.
step check_cuda   "$PYTHON" bench/check_cuda.py
# The DALI loader on the GPU against the loaders on the CPU: the load stage checks pixels before it times.
bench load
# AMP with and without compile, fed by the loader and from memory.
bench train
# The verb itself, with what only it uses: the copy stream, a cache on the GPU, one CUDA graph a step, compiled steps.
train() { # train NAME FLAG...: two epochs on the synthetic records
  step "train_$1" "$PYTHON" -m fastich.train --records "$work/records" --out "$out/run-$1" --weights none --size 128 \
    --batch-size 32 --epochs 2 --amp --augment --device cuda "${@:2}"
}
train plain       --profile
train cache       --cache device
train graph       --cuda-graph
train compiled    --compile
train overhead    --compile reduce-overhead
train options     --loss focal --class-weights inverse --ema 0.999 --clip-norm 1 --accumulate 2 --schedule cosine --warmup-epochs 0.5
train graph_loss  --cuda-graph --class-weights challenge --ema 0.999 --clip-norm 1
# Every GPU of the machine as one process: NCCL. With one GPU this is the ordinary run.
step train_ddp    "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node gpu -m fastich.train --records "$work/records" \
  --out "$out/run-ddp" --weights none --size 128 --batch-size 32 --epochs 2 --amp --device cuda --cache device
# torch, ONNX Runtime CUDA in float32 and float16; each checked against torch in float32.
bench infer
bench codec
bench pack
bench end-to-end
bench scale
# All of it in one run, for rows that may be compared with each other.
step throughput   "$PYTHON" bench/throughput.py --work "$work" --json "$out/all.jsonl" --chart "$out/all.png" --strict --debug

if [ "$dry_run" = 1 ]; then exit 0; fi
echo
if [ ${#failed[@]} = 0 ]; then
  echo "all steps done; results in $out"
  exit 0
fi
echo "${#failed[@]} steps failed: ${failed[*]}; logs in $out"
exit 1
