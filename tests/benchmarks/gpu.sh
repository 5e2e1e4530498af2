#!/usr/bin/env bash
# What only a GPU can show, in under eight minutes: run it from anywhere, from a source tree.
#
#     tests/benchmarks/gpu.sh --data DIR [--until 450] [--device cuda] [--parts "losses steps ..."]
#     tests/benchmarks/gpu.sh --device cpu --quick        a dry run of every part on a CPU
#
# Parts, in this order; each has a report NAME.json, with the machine's name, in $OUT (default results/):
#   losses   the losses of 50 steps, by the ordinary loop and by one CUDA graph, within 1e-3 of the CPU's
#   steps    training steps a second and peak memory: plain, channels-last, bfloat16, compiled, graph, both
#   upscale  the folded head within 1e-5 under TF32 settings; a 4,000x3,000 image at each depth, peak memory
#   train    the preset best until --until seconds after the start, in $OUT/run.tar; as a graph if `losses` and
#            `steps` were well, and compiled if that was faster
#
# On an NVIDIA H200 with 16 cores, PyTorch 2.11, losses took 27 s, three of the six rows of steps (bfloat16 and
# both graphs) 104 s, and upscale 55 s. The other rows have not run there, and neither has train by this script:
# the same recipe has, started by itself. Reports: docs/results/gpu-*.json.
#
# A part whose report says "ok": true is left out, and run.tar is resumed: the same call goes on where the
# last one ended. On a machine that starts empty, bring both back and name their folder by --from.
# One part's failure does not stop the others; the exit status is then 1.
#
# Options:
#   --data DIR      photographs to train on (or $ELASTICNET_DATA); without any, all parts but `train` take noise.
#                   Where the tree is carried to the machine, a few hundred are enough: 45 MiB, say, in an
#                   ignored folder of it
#   --from DIR      reports and run.tar of an earlier call, which are copied into $OUT first
#   --until N       seconds after the start at which the training stops and is saved (default 450); no part
#                   takes longer, and what is not done then is left to the next call
#   --device NAME   cuda or cpu
#   --quick         as small as possible: numbers that mean nothing, in a minute or two
#   --parts NAMES   some of the parts, in quotes
#
# What such a machine may lack: tyro, which the recipe's command line needs. Where there is a registry, fetch
# the wheels, unpack them into a folder, and carry it along:
#     pip download --no-deps -d wheels tyro docstring-parser typeguard
#     for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" carried; done
#     PYTHONPATH=carried tests/benchmarks/gpu.sh --data DIR
# PYTHON names the interpreter (default python3). $WORK holds decoded photographs and the run (default: a
# folder of its own in /tmp).
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-results}
data=${ELASTICNET_DATA:-}
work=${WORK:-${TMPDIR:-/tmp}/elasticnet-gpu}
earlier=""
until=450
device=cuda
quick=""
parts="losses steps upscale train"

usage() {
  sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'
}

while [ $# -gt 0 ]; do
  case "$1" in
    --quick) quick=--quick; shift; continue ;;
    -h | --help) usage; exit 0 ;;
    --data | --from | --until | --device | --parts) ;;
    *) echo "gpu.sh: $1: there is no such option; see --help" >&2; exit 2 ;;
  esac
  [ $# -ge 2 ] || { echo "gpu.sh: $1: expected a value" >&2; exit 2; }
  case "$1" in
    --data) data=$2 ;;
    --from) earlier=$2 ;;
    --until) until=$2 ;;
    --device) device=$2 ;;
    --parts) parts=$2 ;;
  esac
  shift 2
done

if [ -n "$data" ] && [ ! -d "$data" ]; then
  echo "gpu.sh: --data $data: there is no such folder" >&2
  exit 2
fi
for part in $parts; do
  case "$part" in
    losses | steps | upscale | train) ;;
    *) echo "gpu.sh: --parts $part: expected some of losses, steps, upscale, train" >&2; exit 2 ;;
  esac
done

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out" "$work" || exit 2
out=$(cd "$out" && pwd)
work=$(cd "$work" && pwd)
[ -z "$data" ] || data=$(cd "$data" && pwd)
if [ -n "$earlier" ]; then
  cp "$earlier"/*.json "$out"/ 2>/dev/null
  cp "$earlier"/run.tar "$out"/ 2>/dev/null
fi

# --- what is missing, named at the start

"$python" - "$device" <<'PY' || exit 2
import importlib.util
import sys

device = sys.argv[1]
needed = {
    "torch": "PyTorch from 2.6 on, with CUDA for a GPU",
    "numpy": "pip install numpy",
    "PIL": "pip install pillow",
    "timm": "pip install timm",
    "einops": "pip install einops",
    "safetensors": "pip install safetensors",
    "tqdm": "pip install tqdm",
    "filelock": "pip install filelock",
}
for_training = {
    "tyro": "tyro",
    "docstring_parser": "docstring-parser",
    "typeguard": "typeguard",
}


def missing(names):
    return [name for name in names if importlib.util.find_spec(name) is None]


for name in missing(for_training):
    print(
        f"gpu.sh: {name} is not installed, and the part train needs it: carry its wheel, unpacked, in a folder "
        f"that PYTHONPATH names (pip download --no-deps {for_training[name]}; see --help)"
    )
for name in missing(needed):
    print(f"gpu.sh: {name} is not installed, and every part needs it: {needed[name]}", file=sys.stderr)
if missing(needed):
    sys.exit(1)
if device.startswith("cuda"):
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"gpu.sh: --device {device}: torch {torch.__version__} sees no GPU; a dry run: --device cpu --quick")
PY
[ -n "$data" ] || echo "gpu.sh: no photographs (--data or ELASTICNET_DATA): noise takes their place"

# --- the parts

failed=""

is_done() { # NAME: whether its report says that all was well
  grep -q '"ok": true' "$out/$1.json" 2>/dev/null
}

# run_part NAME SECONDS COMMAND...: run it unless it is done; note its failure
run_part() {
  local name=$1 seconds=$2 begin=$SECONDS status=0
  shift 2
  if is_done "$name"; then
    echo "== $name: done before ($out/$name.json)"
    return
  fi
  if [ $((until - SECONDS)) -lt 10 ]; then
    failed="$failed $name"
    echo "== $name: FAILED: no time left; call again"
    return
  fi
  [ "$seconds" -le $((until - SECONDS)) ] || seconds=$((until - SECONDS))
  echo "== $name"
  timeout "$seconds" "$@" || status=$?
  if [ $status -ne 0 ]; then
    failed="$failed $name"
    echo "== $name: FAILED with status $status after $((SECONDS - begin)) s"
  else
    echo "== $name: $((SECONDS - begin)) s"
  fi
}

run_bench() { # NAME SECONDS [with_data]
  local words=(--device "$device" --json "$out/$1.json")
  [ -z "$quick" ] || words+=("$quick")
  if [ "${3:-}" = with_data ] && [ -n "$data" ]; then
    words+=(--data "$data" --cache-dir "$work/cache")
  fi
  run_part "$1" "$2" "$python" "$here/bench_gpu_$1.py" "${words[@]}"
}

# Print how the training is to run, by the reports of the parts before it.
fastest_steps() {
  "$python" - "$out/losses.json" "$out/steps.json" <<'PY'
import json
import sys


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError:
        return {}


losses, rows = (read(path) for path in sys.argv[1:])
rates = {name: row.get("steps_a_second", 0) for name, row in rows.get("rows", {}).items()}
options = ["--cuda-graph", "off"]
names = ["bfloat16", "compiled"]
if losses.get("ok") and rates.get("graph"):
    options = ["--cuda-graph", "on"]
    names = ["graph", "graph, compiled"]
if rates.get(names[1], 0) > rates.get(names[0], 0):
    options.append("--compile")
print(" ".join(options))
PY
}

# The training goes on from run.tar, and leaves a new one, also where it fails.
train() {
  local words=(--no-figures --no-costs) left=$((until - SECONDS)) status=0 begin=$SECONDS
  if [ -z "$data" ] && [ -z "$quick" ]; then
    echo "== train: FAILED: it needs photographs, --data or ELASTICNET_DATA"
    failed="$failed train"
    return
  fi
  [ $left -ge 10 ] || left=10
  echo "== train: for $left s"
  if [ ! -d "$work/run" ] && [ -f "$out/run.tar" ]; then
    tar -xf "$out/run.tar" -C "$work"
  fi
  if [ -d "$work/run" ]; then
    words+=(--resume "$work/run" --device "$device")
  else
    words+=(--out "$work/run" --preset best --scale 4 --device "$device")
    words+=(--no-tensorboard --keep 1)
    if [ -n "$quick" ]; then
      words+=(--cuda-graph on)
    else
      # shellcheck disable=SC2207 # words without blanks inside
      words+=($(fastest_steps))
    fi
    [ -z "$quick" ] || words+=(--num-blocks 2 --channels 16 --patch-size 16 --batch-size 2 --steps 20)
    [ -z "$quick" ] || words+=(--eval-every 10 --log-every 5 --warmup 2)
  fi
  [ -z "$data" ] || words+=(--data "$data" --cache-dir "$work/cache")
  # SIGTERM lets it save; what does not end by itself then is killed.
  timeout --preserve-status --kill-after=60 "$left" "$python" "$root/recipes/asrn_div2k.py" "${words[@]}" \
    || status=$?
  [ ! -d "$work/run" ] || tar -cf "$out/run.tar" -C "$work" run
  # 143: it was stopped by SIGTERM, and has saved its state
  if [ $status -ne 0 ] && [ $status -ne 143 ]; then
    failed="$failed train"
    echo "== train: FAILED with status $status after $((SECONDS - begin)) s"
    return
  fi
  tail -n 1 "$work/run/log.jsonl" | cut -c 1-300
  echo "== train: $((SECONDS - begin)) s, $out/run.tar"
}

for part in $parts; do
  case "$part" in
    losses) run_bench losses 150 with_data ;;
    steps) run_bench steps 300 with_data ;;
    upscale) run_bench upscale 150 ;;
    train) train ;;
  esac
done

echo "gpu.sh: $SECONDS s; reports in $out"
if [ -n "$failed" ]; then
  echo "gpu.sh: FAILED:$failed" >&2
  exit 1
fi
