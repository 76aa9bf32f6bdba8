#!/usr/bin/env bash
# What wants a GPU: the checks, then the measurements beside PyTorch, from prebuilt binaries. Prints its
# table last; results and the whole output of every check go to $OUT (default: ./gpu), what can be made
# again (kernels, PyTorch's compiled code) to $CACHE (default: ~/.cache/sar-gpu).
#
#   cargo build --release -p sar-train
#   cargo test --release --no-run -p sar-backend-cuda --test gpu -p sar-train --test cuda   # prints two paths
#   benches/gpu.sh target/release/sar PATH/TO/gpu-… PATH/TO/cuda-… benches/torch_flexvar.py
#
# For a machine that they have to be carried to, strip them (`strip target/release/sar …`): six sevenths of the program
# say which line is which. PACK=FILE.tgz packs all of $OUT when the script ends, also where it is stopped. What has been
# compiled ahead by the machine's own NVRTC (`sar kernels build --arch sm_90 --out $CACHE/cubin`) is not compiled there.
#
# The comparison script may be left out; then our side alone is measured. After $DEADLINE seconds nothing is
# begun, and what runs is stopped $GRACE later, so that one call takes less than nine minutes; what was left out is
# named as not measured. PARTS picks what a call does, so that a second one can do the rest into the same folder (the
# table is of all lines there; take another folder for another program or machine):
#
#   checks    the test binaries that $MORE_TESTS names beside those two, conformance kit, whole steps and
#             sampling runs beside the CPU, `sar check`
#   sanitize  `sar check` under compute-sanitizer: memcheck, racecheck, initcheck; slow, so it comes last
#   follow    200 steps of the glyph recipe beside the CPU's curve
#   profile   ceilings, and the table of every kernel
#   d16       training steps at batch 64; sampling at batch 1 and 64
#   d20, d24  likewise
#   largest   the training steps of those depths, or of all where none is named, also at the largest batch that both
#             fit, which takes many tries
#   frechet   a longer run on either backend, and its Fréchet distance over three sampling seeds
#
# SMOKE=1 rehearses all of it on the processor with a tiny generator: numbers without meaning, the script's
# own faults found where there is no GPU.
set -uo pipefail
sar=${1:?path of the program} gpu_tests=${2:?path of the test binary gpu} step_tests=${3:?path of the test binary cuda}
peer=${4:-}
out=${OUT:-gpu}
DEADLINE=${DEADLINE:-440} GRACE=${GRACE:-80}
CACHE=${CACHE:-${XDG_CACHE_HOME:-${HOME:-${TMPDIR:-/tmp}}/.cache}/sar-gpu}
PARTS=${PARTS:-checks follow profile d16 d20 d24 largest frechet sanitize}
here=$(cd "$(dirname "$0")" && pwd)
recipes=$here/../recipes
# Test binaries look for these where they were built, which may be on another machine.
export SAR_GOLDEN=${SAR_GOLDEN:-$here/../golden}
mkdir -p "$out"
out=$(cd "$out" && pwd)
mkdir -p "$CACHE"
export TORCHINDUCTOR_CACHE_DIR="$CACHE/inductor" SAR_CUBIN_DIR="${SAR_CUBIN_DIR:-$CACHE/cubin}"
lines="$out/lines.jsonl"
touch "$lines"
failed=() unmeasured=()
work=$(mktemp -d)
finish() {
    rm -rf "$work"
    [ -z "${PACK:-}" ] || tar czf "$PACK" -C "$(dirname "$out")" "$(basename "$out")"
}
trap finish EXIT

if [ -n "${SMOKE:-}" ]; then
    backend=cpu dtype=f32 device=cpu
    depths=(1 2 3) batch=2 large=(2 3 4) few_steps=10 many_steps=20
    shape=(--width 32 --heads 2 --vocab 64 --channels 4 --classes 10 --schedule 1_2_3_4)
    timing=(--warmup 1 --steps 2) profile=()
else
    export SAR_REQUIRE_GPU=1
    backend=cuda dtype=bf16 device=cuda
    depths=(16 20 24) batch=64 large=(32 48 64 96 128 160 192 256 320 384 512) few_steps=200 many_steps=800
    # Both programs' own defaults, which `sar plan` has to be told.
    shape=(--vocab 8912 --channels 32 --classes 1000 --schedule 1_2_3_4_5_6_8_10_13_16)
    timing=(--warmup 3 --steps 10) profile=(--profile)
fi
ours=(--backend "$backend" --dtype "$dtype" --quiet)
theirs=(--device "$device" --dtype "$dtype")

for name in $PARTS; do
    [[ " checks sanitize follow profile d16 d20 d24 largest frechet " == *" $name "* ]] || { echo "no part is called $name" >&2; exit 2; }
done
part() { [[ " $PARTS " == *" $1 "* ]]; }
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
late() { # what: whether there is no time left for it
    [ "$SECONDS" -le "$DEADLINE" ] && return 1
    unmeasured+=("$1: no time left")
}
# At most so many seconds, and no more than there are.
upto() {
    local left=$((DEADLINE + GRACE - SECONDS))
    left=$((left < $1 ? left : $1))
    echo $((left > 1 ? left : 1))
}
# A command that is stopped when its check's time is over, also where it no longer listens.
limited() {
    local left=$((stop - SECONDS))
    timeout -k 10 $((left > 1 ? left : 1)) "$@"
}
check() { # name, command: goes on after a failure, and says so at the end
    local name=$1 log rc limit
    shift
    late "$name" && return
    step "$name"
    # All of it to a file as it comes, so that nothing is lost where this script is stopped.
    log="$out/$(tr -cs 'a-zA-Z0-9\n' - <<<"$name").log"
    limit=$(upto 240)
    stop=$((SECONDS + limit))
    "$@" >"$log" 2>&1
    rc=$?
    tail -40 "$log"
    case $rc in
    0) ;;
    124 | 137) # Instrumented code is slow, and near the deadline there is little time; else it is a fault.
        if [ "$SECONDS" -ge "$stop" ] && { [ "$limit" -lt 240 ] || [[ $name == compute-sanitizer* ]]; }; then
            unmeasured+=("$name: took too long")
        else
            failed+=("$name: stopped ($rc)")
        fi
        ;;
    *)
        if [[ $name == compute-sanitizer* ]] && grep -q "Device not supported" "$log"; then
            unmeasured+=("$name: it does not support this device")
        else
            failed+=("$name")
        fi
        ;;
    esac
}

step "machine"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
    "$sar" doctor
} 2>&1 | tee "$out/machine.txt"

if part checks; then
    check "conformance kit on the GPU, f32 and bf16" limited "$gpu_tests" --nocapture
    check "whole steps and sampling runs beside the CPU" limited "$step_tests" --nocapture --skip order_of_threads --skip plan_is
    for more in ${MORE_TESTS:-}; do check "tests of $(basename "$more")" limited "$more"; done
    check "sar check" limited "$sar" check --backend "$backend" --cases 1
fi
# The glyph recipe, trained on both backends from the same seed: folders $work/NAME-cpu and -gpu.
train_both() { # name, steps
    if [ ! -e "$work/tokenizer.done" ]; then
        rm -rf "$work/tokenizer"
        limited "$sar" tokenizer train --data builtin:glyphs10 --out "$work/tokenizer" --quiet \
            --set tokenizer_train.steps=$few_steps --backend "$backend" || return
        touch "$work/tokenizer.done"
    fi
    local side on
    for side in cpu gpu; do
        on=$([ $side = cpu ] && echo cpu || echo "$backend")
        limited "$sar" train --data builtin:glyphs10 --tokenizer "$work/tokenizer" --out "$work/$1-$side" --quiet \
            --config "$recipes/glyphs10.toml" --set train.steps="$2" --set train.log_every=10 \
            --set train.sample_every=0 --backend "$on" || return
        cp "$work/$1-$side/log.jsonl" "$out/$1-$side.jsonl"
    done
}

follow() {
    train_both follow $few_steps || return
    python3 - "$out" <<'PY'
import json, sys
def losses(name):
    rows = (json.loads(line) for line in open(f"{sys.argv[1]}/follow-{name}.jsonl"))
    return {row["step"]: row["loss"] for row in rows if "loss" in row and "step" in row}
cpu, gpu = losses("cpu"), losses("gpu")
steps = sorted(set(cpu) & set(gpu))
worst = max(abs(cpu[s] - gpu[s]) / cpu[s] for s in steps)
print(f"{len(steps)} points to step {steps[-1]}: loss {cpu[steps[-1]]:.4f} on the CPU, "
      f"{gpu[steps[-1]]:.4f} on the GPU, at most {worst:.2%} apart")
# Two curves in bf16 and f32 from one seed drift apart by rounding; a wrong gradient by far more.
BF16_DRIFT = 0.02
sys.exit(not worst <= BF16_DRIFT)
PY
}
part follow && check "$few_steps steps follow the CPU's curve" follow

# Our side or theirs, one configuration: a JSON line; none where it fails.
mine() { timeout -k 10 "$(upto 90)" "$sar" bench "$@" "${shape[@]}" "${timing[@]}" "${ours[@]}" >>"$lines" 2>"$out/error.txt"; }
peer() { # seconds at most, its flags
    local most=$1
    shift
    timeout -k 10 "$(upto "$most")" python3 "$peer" "$@" "${shape[@]}" "${timing[@]}" "${theirs[@]}" \
        >>"$lines" 2>"$out/error.txt"
}
# What gave no number is a fault, unless it was stopped because the time was over.
lost() { # what, its exit code
    if { [ "$2" = 124 ] || [ "$2" = 137 ]; } && [ "$SECONDS" -gt "$DEADLINE" ]; then
        unmeasured+=("$1: no time left")
    else
        failed+=("$1: $(tail -1 "$out/error.txt")")
    fi
}
measure() { # depth, batch, what, mode: ours, PyTorch's, and PyTorch's compiled
    local named="$3 $4, depth $1, batch $2"
    local flags=("$3" --depth "$1" --batch "$2" --mode "$4")
    late "$named" && return
    mine "${flags[@]}" || lost "sar bench $named" $?
    [ -n "$peer" ] || return 0
    late "PyTorch, $named" && return
    peer 90 "${flags[@]}" || unmeasured+=("PyTorch, $named: $(tail -1 "$out/error.txt")")
    # It compiles the training step alone: sampling would be measured twice.
    [ "$3" = step ] || return 0
    late "PyTorch compiled, $named" && return
    peer 180 "${flags[@]}" --compile || unmeasured+=("PyTorch compiled, $named: $(tail -1 "$out/error.txt")")
}
# Whether a side that failed did so for want of memory.
full() { grep -qi 'out of memory' "$out/error.txt"; }
# Bytes that our side plans for a step.
planned() { # depth, mode, batch
    "$sar" plan --json --backend "$backend" --dtype "$dtype" --depth "$1" --mode "$2" --batch "$3" "${shape[@]}" \
        --set sar.guidance=0 |
        python3 -c 'import json, sys
memory = json.load(sys.stdin)["memory"]
print(sum(memory[part] for part in ("weights", "gradients", "moments", "activations", "logits", "backend")))'
}
# Whether a batch fits: 0, 1 for want of memory, 2 for another error, which $out/error.txt has.
tries() { # depth, mode, batch
    local flags=(step --depth "$1" --mode "$2" --batch "$3" "${shape[@]}" --warmup 0 --steps 1)
    # What our side alone has no room for need not be tried.
    [ -n "$total" ] && [ "$(planned "$1" "$2" "$3")" -gt $((total << 20)) ] && return 1
    if [ -n "$peer" ]; then
        timeout -k 10 "$(upto 60)" python3 "$peer" "${flags[@]}" "${theirs[@]}" >/dev/null 2>"$out/error.txt" ||
            { full && return 1 || return 2; }
    fi
    timeout -k 10 "$(upto 60)" "$sar" bench "${flags[@]}" "${ours[@]}" >/dev/null 2>"$out/error.txt" ||
        { full && return 1 || return 2; }
}
# The largest of a list of batches whose step both sides have memory for: halved until one is left.
largest() { # depth, mode
    local total low=-1 high=${#large[@]} middle
    total=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
    while [ $((high - low)) -gt 1 ]; do
        [ "$SECONDS" -le "$DEADLINE" ] || { echo "no time left" >"$out/error.txt"; return 1; }
        middle=$(((low + high) / 2))
        tries "$1" "$2" "${large[middle]}"
        case $? in
        0) low=$middle ;;
        1) high=$middle ;;
        *)
            [ "$SECONDS" -le "$DEADLINE" ] || echo "no time left" >"$out/error.txt"
            return 1
            ;;
        esac
    done
    [ "$low" -ge 0 ] || { echo "none of ${large[*]} fits" >"$out/error.txt"; return 1; }
    echo "${large[low]}"
}

if part profile; then
    step "ceilings, and where a step's time goes"
    timeout -k 10 "$(upto 90)" "$sar" bench ceilings "${ours[@]}" | tee "$out/ceilings.json" ||
        { failed+=("ceilings"); rm -f "$out/ceilings.json"; }
    for mode in tf sar-all; do
        late "profile of $mode" && continue
        timeout -k 10 "$(upto 90)" "$sar" bench step --depth "${depths[0]}" --batch "$batch" --mode $mode "${shape[@]}" "${timing[@]}" "${ours[@]}" \
            "${profile[@]}" 2>&1 | tee "$out/profile-$mode.txt" || failed+=("profile of $mode")
    done
fi
names=(d16 d20 d24)
for i in 0 1 2; do
    part "${names[i]}" || continue
    depth=${depths[i]}
    step "depth $depth"
    for mode in tf sar-all; do measure "$depth" "$batch" step $mode; done
    for b in 1 "$batch"; do measure "$depth" "$b" sample tf; done
done
for i in 0 1 2; do
    part largest && { part "${names[i]}" || [[ ! $PARTS =~ d[0-9] ]]; } || continue
    depth=${depths[i]}
    step "depth $depth, the largest batch"
    for mode in tf sar-all; do
        late "depth $depth, largest batch, $mode" && continue
        if most=$(largest "$depth" $mode); then
            [ "$most" = "$batch" ] || measure "$depth" "$most" step $mode
        elif grep -q "no time left" "$out/error.txt"; then
            unmeasured+=("depth $depth, largest batch, $mode: no time left")
        else
            failed+=("depth $depth, largest batch, $mode: $(tail -1 "$out/error.txt")")
        fi
    done
done

frechet() {
    train_both longer $many_steps || return
    local side
    # Both in the features of one classifier, which the backend that evaluates trains.
    for side in cpu gpu; do
        limited "$sar" eval "$work/longer-$side" --guidance 0 --seeds 3 --samples 200 --json "$out/frechet-$side.json" \
            --backend "$backend" --quiet || return
    done
    python3 - "$out" <<'PY'
import json, sys
def distance(side):
    value = json.load(open(f"{sys.argv[1]}/frechet-{side}.json"))["points"][0]["frechet"]
    return value["mean"], value["spread"]
(cpu, cpu_spread), (gpu, gpu_spread) = distance("cpu"), distance("gpu")
print(f"Fréchet distance {cpu:.2f} ± {cpu_spread:.2f} on the CPU, {gpu:.2f} ± {gpu_spread:.2f} on the GPU")
# Spreads are those of sampling seeds. Trainings that differ by rounding may end as far apart as two training
# seeds: in the demo those were up to 1 apart.
TRAINING = 1.0
sys.exit(not abs(cpu - gpu) <= TRAINING + 3 * (cpu_spread**2 + gpu_spread**2) ** 0.5)
PY
}
part frechet && check "Fréchet distance after $many_steps steps" frechet

sanitize() { # tool
    local quiet=()
    # Calls that libraries make to ask what there is, and that fail, are no faults of ours.
    [ "$1" = memcheck ] && quiet=(--report-api-errors no)
    limited compute-sanitizer --tool "$1" "${quiet[@]}" --error-exitcode 1 "$sar" check --backend cuda --cases 1
}
if part sanitize; then
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck initcheck; do check "compute-sanitizer $tool" sanitize $tool; done
    else
        unmeasured+=("compute-sanitizer: not on this machine")
    fi
fi

step "table"
python3 - "$lines" "$out/ceilings.json" "$sar" "${shape[@]}" <<'PY' | tee "$out/table.txt"
import json, os, subprocess, sys
lines, ceilings, sar, *shape = sys.argv[1:]
rows = [json.loads(line) for line in open(lines) if line.endswith("}\n")] # a killed side leaves half a line
peak = json.load(open(ceilings))["flops_per_s"] if os.path.exists(ceilings) else None
key = lambda r: (r["what"], r["mode"], r["depth"], r["batch"])
ours = {key(r): r for r in rows if r["peer"].startswith("sar")}
def used(k, row): # FLOPs that the model asks for, of those that a plain product reaches; what is computed again does not count
    what, mode, depth, batch = k
    flags = ["--json", "--mode", mode, "--depth", str(depth), "--batch", str(batch), *shape, "--set", "sar.guidance=0"]
    plan = json.loads(subprocess.run([sar, "plan", *flags], capture_output=True, check=True).stdout)
    return plan["flops_step"] / row["median_s"] / peak
print(f"{'what':8}{'mode':9}{'depth':>6}{'batch':>6}{'ours img/s':>12}{'of peak':>9}{'eager':>10}{'compiled':>10}{'faster':>8}{'ours GB':>9}{'torch':>8}{'memory':>8}")
for k, mine in ours.items():
    theirs = [r for r in rows if key(r) == k and not r["peer"].startswith("sar")]
    rate = {r["compile"]: r["images_per_s"] for r in theirs}
    cells = [f"{k[0]:8}{k[1]:9}{k[2]:6}{k[3]:6}{mine['images_per_s']:12.1f}"]
    cells.append(f"{used(k, mine):9.0%}" if peak and k[0] == "step" else f"{'-':>9}")
    cells += [f"{rate[c]:10.1f}" if c in rate else f"{'-':>10}" for c in (False, True)]
    if theirs:
        memory = min(r["peak_bytes"] for r in theirs)
        cells.append(f"{mine['images_per_s'] / max(rate.values()):7.2f}x"
                     f"{mine['peak_bytes'] / 1e9:9.2f}{memory / 1e9:8.2f}{mine['peak_bytes'] / memory:7.2f}x")
    print("".join(cells))
PY
[ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("table")
[ ${#unmeasured[@]} -eq 0 ] || { printf '\nnot measured:\n' && printf '  %s\n' "${unmeasured[@]}"; }
printf '\n%s failed in %s s\n' "${#failed[@]}" "$SECONDS"
[ ${#failed[@]} -eq 0 ] || printf '  %s\n' "${failed[@]}"
# A rehearsal that left something out has rehearsed too little.
[ ${#failed[@]} -eq 0 ] && { [ -z "${SMOKE:-}" ] || [ ${#unmeasured[@]} -eq 0 ]; }
