#!/usr/bin/env bash
# What wants a GPU: the checks, then the measurements beside PyTorch, from prebuilt binaries. Meant to take
# under nine minutes: after DEADLINE seconds no measurement is begun. Prints its table last. Results go to
# $OUT (default: ./gpu).
#
#   cargo build --release -p sar-train
#   cargo test --release --no-run -p sar-backend-cuda --test gpu -p sar-train --test cuda   # prints two paths
#   benches/gpu.sh target/release/sar PATH/TO/gpu-… PATH/TO/cuda-… torch_flexvar.py
#
# The comparison script may be left out; then our side alone is measured.
set -uo pipefail
sar=${1:?path of the program} gpu_tests=${2:?path of the test binary gpu} step_tests=${3:?path of the test binary cuda}
peer=${4:-}
out=${OUT:-gpu}
DEADLINE=${DEADLINE:-480}
mkdir -p "$out"
export SAR_REQUIRE_GPU=1 SAR_CUBIN_DIR="$out/cubin"
lines="$out/lines.jsonl"
: >"$lines"
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
failed=()
check() { # name, command: goes on after a failure, and says so at the end
    local name=$1
    shift
    step "$name"
    "$@" 2>&1 | tail -40 || failed+=("$name")
}

step "machine"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
    "$sar" doctor
} 2>&1 | tee "$out/machine.txt"

check "conformance kit on the GPU, f32 and bf16" "$gpu_tests" --nocapture
check "whole steps and sampling runs beside the CPU" "$step_tests" --nocapture --skip order_of_threads --skip plan_is
check "sar check" "$sar" check --backend cuda --cases 1

if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
        check "compute-sanitizer $tool" timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$sar" check --backend cuda --cases 1 attention
    done
else
    failed+=("compute-sanitizer: not on this machine")
fi

# 200 steps of a small generator on the glyphs, on both backends from the same seed.
follow() {
    local work
    work=$(mktemp -d)
    trap 'rm -rf "$work"' RETURN
    "$sar" tokenizer train --data builtin:glyphs10 --out "$work/tokenizer" --quiet \
        --set tokenizer_train.steps=300 --backend cuda || return 1
    for backend in cpu cuda; do
        "$sar" train --data builtin:glyphs10 --tokenizer "$work/tokenizer" --out "$work/$backend" --quiet \
            --set train.steps=200 --set train.batch=32 --set train.log_every=10 --set train.sample_every=0 \
            --set generator.depth=2 --backend "$backend" || return 1
        cp "$work/$backend/log.jsonl" "$out/follow-$backend.jsonl"
    done
    python3 - "$out" <<'PY'
import json, sys
def losses(name):
    rows = (json.loads(line) for line in open(f"{sys.argv[1]}/follow-{name}.jsonl"))
    return {row["step"]: row["loss"] for row in rows if "loss" in row and "step" in row}
cpu, cuda = losses("cpu"), losses("cuda")
steps = sorted(set(cpu) & set(cuda))
worst = max(abs(cpu[s] - cuda[s]) / cpu[s] for s in steps)
print(f"{len(steps)} points to step {steps[-1]}: loss {cpu[steps[-1]]:.4f} on the CPU, "
      f"{cuda[steps[-1]]:.4f} on the GPU in bf16, at most {worst:.2%} apart")
# Two curves in bf16 and f32 from one seed drift apart by rounding; a wrong gradient by far more.
BF16_DRIFT = 0.02
sys.exit(not worst <= BF16_DRIFT)
PY
}
check "200 steps follow the CPU's curve" follow

# One configuration on either side; a side that runs out of memory leaves no line.
measure() { # depth, batch, what, mode
    local depth=$1 batch=$2 what=$3 mode=$4
    local flags=(--depth "$depth" --batch "$batch" --mode "$mode" --warmup 3 --steps 10)
    if [ "$SECONDS" -gt "$DEADLINE" ]; then
        failed+=("$what $mode, depth $depth, batch $batch: no time left")
        return
    fi
    timeout 60 "$sar" bench "$what" "${flags[@]}" --backend cuda --dtype bf16 >>"$lines" 2>>"$out/errors.txt" ||
        failed+=("sar bench $what $mode, depth $depth, batch $batch: $(tail -1 "$out/errors.txt")")
    [ -n "$peer" ] || return 0
    timeout 60 python3 "$peer" "$what" "${flags[@]}" --device cuda --dtype bf16 >>"$lines" 2>>"$out/errors.txt"
    if [ "$depth" = 16 ] && [ "$what" = step ]; then
        timeout 90 python3 "$peer" "$what" "${flags[@]}" --device cuda --dtype bf16 --compile \
            >>"$lines" 2>>"$out/errors.txt"
    fi
}
step "ceilings, and where a step's time goes"
"$sar" bench ceilings --backend cuda --dtype bf16 2>&1 | tee "$out/ceilings.json" || failed+=("ceilings")
for mode in tf sar-all; do
    "$sar" bench step --depth 16 --batch 64 --mode $mode --warmup 3 --steps 5 --backend cuda --dtype bf16 \
        --profile 2>&1 | tee "$out/profile-$mode.txt" || failed+=("profile of $mode")
done

step "measurements"
for mode in tf sar-all; do
    for batch in 64 128; do measure 16 $batch step $mode; done
done
for batch in 1 64; do measure 16 $batch sample tf; done
for depth in 20 24; do
    for mode in tf sar-all; do measure $depth 32 step $mode; done
done

step "table"
python3 - "$lines" <<'PY' | tee "$out/table.txt"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
key = lambda r: (r["what"], r["mode"], r["depth"], r["batch"])
ours = {key(r): r for r in rows if r["peer"].startswith("sar")}
print(f"{'what':8}{'mode':9}{'depth':>6}{'batch':>6}{'ours img/s':>12}{'torch':>10}{'faster':>8}{'ours GB':>9}{'torch':>8}{'memory':>8}")
for k, mine in ours.items():
    theirs = [r for r in rows if key(r) == k and not r["peer"].startswith("sar")]
    best = max(theirs, key=lambda r: r["images_per_s"], default=None)
    cells = [f"{k[0]:8}{k[1]:9}{k[2]:6}{k[3]:6}{mine['images_per_s']:12.1f}"]
    if best:
        memory = min(r["peak_bytes"] for r in theirs)
        cells.append(f"{best['images_per_s']:10.1f}{mine['images_per_s'] / best['images_per_s']:7.2f}x"
                     f"{mine['peak_bytes'] / 1e9:9.2f}{memory / 1e9:8.2f}{mine['peak_bytes'] / memory:7.2f}x")
    print("".join(cells))
PY
printf '\n%s checks failed in %s s\n' "${#failed[@]}" "$SECONDS"
[ ${#failed[@]} -eq 0 ] || printf '  %s\n' "${failed[@]}"
[ ${#failed[@]} -eq 0 ]
