#!/usr/bin/env bash
# What wants a GPU: the checks, then the measurements beside PyTorch, from prebuilt binaries. Prints its
# table last, also where it is stopped; results go to $OUT (default: ./gpu), what can be made again (kernels,
# PyTorch's compiled code) to $CACHE (default: ~/.cache/sar-gpu). For benches/results/ there are
#
#   table.txt       the table, with device, driver and date, and what is short of its goal
#   measured.txt    every command that measured, as it can be given again, and its output, after device, driver and date
#   profile-*.txt   where the time of a step, and of sampling, goes
#   machine.txt     device, driver and libraries; lines.jsonl, ceilings.json, largest.txt: what the table is made of
#
# and, of every check, its whole output.
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
# named as not measured. Parts come in the order below, those that matter most first; the first three, of which nothing
# is timed, go on beside one another. PARTS picks what a call does, so that a second one can do the rest into the same
# folder (the table is of all lines there; take another folder for another program or machine):
#
#   checks    the test binaries that $MORE_TESTS names beside those two, conformance kit, whole steps and
#             sampling runs beside the CPU, `sar check`
#   follow    200 steps of the glyph recipe beside the CPU's curve
#   sanitize  `sar check` under compute-sanitizer: memcheck, racecheck, initcheck
#   profile   ceilings, and the table of every kernel, in training steps and in sampling: depth 16 here, the others
#             once their steps are measured
#   d16       training steps at batch 64; sampling at batch 1 and 64
#   d20, d24  likewise
#   largest   the training steps of those depths, or of all where none is named, also at the largest batch that both
#             fit, which takes several tries
#   frechet   a longer run on either backend, and its Fréchet distance over three sampling seeds
#
# SMOKE=1 rehearses all of it on the processor with a tiny generator: numbers without meaning, the script's
# own faults found where there is no GPU. benches/rehearsal/run does so beside a stand-in for PyTorch.
set -uo pipefail
sar=${1:?path of the program} gpu_tests=${2:?path of the test binary gpu} step_tests=${3:?path of the test binary cuda}
peer=${4:-}
out=${OUT:-gpu}
DEADLINE=${DEADLINE:-440} GRACE=${GRACE:-80}
CACHE=${CACHE:-${XDG_CACHE_HOME:-${HOME:-${TMPDIR:-/tmp}}/.cache}/sar-gpu}
PARTS=${PARTS:-checks follow sanitize profile d16 d20 d24 largest frechet}
for name in $PARTS; do
    [[ " checks sanitize follow profile d16 d20 d24 largest frechet " == *" $name "* ]] || { echo "no part is called $name" >&2; exit 2; }
done
here=$(cd "$(dirname "$0")" && pwd)
recipes=$here/../recipes
# Test binaries look for these where they were built, which may be on another machine.
export SAR_GOLDEN=${SAR_GOLDEN:-$here/../golden}
mkdir -p "$out"
out=$(cd "$out" && pwd)
mkdir -p "$CACHE"
export TORCHINDUCTOR_CACHE_DIR="$CACHE/inductor" SAR_CUBIN_DIR="${SAR_CUBIN_DIR:-$CACHE/cubin}"
lines="$out/lines.jsonl"
touch "$lines" "$out/largest.txt"
failed=() unmeasured=() ended=
work=$(mktemp -d)
# What is printed last, whatever ended the script.
finish() {
    trap - EXIT
    for check in "${under_way[@]}"; do kill "${check%% *}" 2>/dev/null; done
    [ -n "$ended" ] || failed+=("$(basename "$0"): stopped before its end")
    step "table"
    table | tee "$out/table.txt"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("table")
    [ ${#unmeasured[@]} -eq 0 ] || { printf '\nnot measured:\n' && printf '  %s\n' "${unmeasured[@]}"; }
    printf '\n%s failed in %s s\n' "${#failed[@]}" "$SECONDS"
    [ ${#failed[@]} -eq 0 ] || printf '  %s\n' "${failed[@]}"
    rm -rf "$work"
    [ -z "${PACK:-}" ] || tar czf "$PACK" -C "$(dirname "$out")" "$(basename "$out")"
    # A rehearsal that left something out has rehearsed too little.
    [ ${#failed[@]} -eq 0 ] && { [ -z "${SMOKE:-}" ] || [ ${#unmeasured[@]} -eq 0 ]; }
    # Alone it would be the code from before this trap.
    exit $?
}

if [ -n "${SMOKE:-}" ]; then
    backend=cpu dtype=f32 device=cpu
    depths=(1 2 3) batch=2 large=(2 3 4) few_steps=10 many_steps=20
    shape=(--width 32 --heads 2 --vocab 64 --channels 4 --classes 10 --schedule 1_2_3_4)
    timing=(--warmup 1 --steps 2) profiled=()
else
    export SAR_REQUIRE_GPU=1
    backend=cuda dtype=bf16 device=cuda
    depths=(16 20 24) batch=64 large=(32 48 64 96 128 160 192 256 320 384 512) few_steps=200 many_steps=800
    # Both programs' own defaults, which `sar plan` has to be told.
    shape=(--vocab 8912 --channels 32 --classes 1000 --schedule 1_2_3_4_5_6_8_10_13_16)
    timing=(--warmup 3 --steps 10) profiled=(--profile)
fi
ours=(--backend "$backend" --dtype "$dtype" --quiet)
theirs=(--device "$device" --dtype "$dtype")

part() { [[ " $PARTS " == *" $1 "* ]]; }
names=(d16 d20 d24)
# Whether a depth's largest batch is asked for: of those named, or of all.
widest() { part largest && { part "$1" || [[ ! $PARTS =~ d[0-9] ]]; }; }
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
late() { # what: whether there is no time left for it
    [ "$SECONDS" -le "$DEADLINE" ] && return 1
    unmeasured+=("$1: no time left")
}
# A command as it can be given again.
spell() { printf '\n$' && printf ' %q' "$@" && echo; }
# At most so many seconds, and no more than there are.
upto() {
    local left=$((DEADLINE + GRACE - SECONDS))
    left=$((left < $1 ? left : $1))
    echo $((left > 1 ? left : 1))
}
# A command that is stopped when its check's time is over, also where it no longer listens.
limited() {
    local left=$((stop - SECONDS))
    spell "$@"
    timeout -k 10 $((left > 1 ? left : 1)) "$@"
}
# A check of its own process, of which nothing is timed; `all_over` waits for those that were begun.
begin() { # name, command
    local name=$1 limit
    shift
    late "$name" && return
    limit=$(upto 240)
    # All of it to a file as it comes, so that nothing is lost where this script is stopped.
    (stop=$((SECONDS + limit)) && "$@") >"$(log_of "$name")" 2>&1 &
    under_way+=("$! $limit $((SECONDS + limit)) $name")
}
under_way=()
log_of() { echo "$out/$(tr -cs 'a-zA-Z0-9\n' - <<<"$1").log"; }
# Goes on after a failure, and says so at the end.
all_over() {
    local check process limit stop name rc
    for check in "${under_way[@]}"; do
        read -r process limit stop name <<<"$check"
        wait "$process"
        rc=$?
        step "$name"
        tail -40 "$(log_of "$name")"
        judge "$name" "$rc" "$limit" "$stop"
    done
    under_way=()
}
judge() { # name, exit code, seconds it had, when they were over
    case $2 in
    0) ;;
    124 | 137) # Instrumented code is slow, and near the deadline there is little time; else it is a fault.
        if [ "$SECONDS" -ge "$4" ] && { [ "$3" -lt 240 ] || [[ $1 == compute-sanitizer* ]]; }; then
            unmeasured+=("$1: took too long")
        else
            failed+=("$1: stopped ($2)")
        fi
        ;;
    *)
        if [[ $1 == compute-sanitizer* ]] && grep -q "Device not supported" "$(log_of "$1")"; then
            unmeasured+=("$1: it does not support this device")
        else
            failed+=("$1")
        fi
        ;;
    esac
}
check() { # name, command
    begin "$@"
    all_over
}

# Every figure of every depth that was asked for or measured, on this call or an earlier one, beside its goal.
table() {
    local asked=() i
    for i in 0 1 2; do
        if part "${names[i]}" || widest "${names[i]}"; then asked+=("${depths[i]}"); fi
    done
    python3 - "$out" "${machine:-}" "$sar" "$backend" "$dtype" "$batch" "${asked[*]}" "${shape[@]}" <<'PY'
import json, os, subprocess, sys
out, machine, sar, backend, dtype, batch, asked, *shape = sys.argv[1:]
batch = int(batch)
# The goals: at least so many times as fast, and so much of what a plain product reaches; at most so much of PyTorch's
# memory; a plan so close to the peak.
FASTER, OF_PEAK, MEMORY, PLAN = {"step": 1.3, "sample": 2.0}, 0.5, 0.6, 0.1
rows = [json.loads(line) for line in open(f"{out}/lines.jsonl") if line.endswith("}\n")]
key = lambda r: (r["depth"], r["what"], r["mode"], r["batch"])
ours = {key(r): r for r in rows if r["peer"].startswith("sar")}
theirs = {(key(r), r["compile"]): r for r in rows if not r["peer"].startswith("sar")}
ceilings = f"{out}/ceilings.json"
peak = json.load(open(ceilings))["flops_per_s"] if os.path.exists(ceilings) else None
largest = {}
for line in open(f"{out}/largest.txt"):
    depth, mode, most = line.split()
    largest[int(depth), mode] = int(most)

def plan(depth, mode, batch): # FLOPs that the model asks for, what is computed again not counted; bytes of a step
    flags = ["--json", "--backend", backend, "--dtype", dtype, "--mode", mode, "--depth", str(depth), "--batch", str(batch)]
    done = subprocess.run([sar, "plan", *flags, *shape, "--set", "sar.guidance=0"], capture_output=True)
    if done.returncode: return None, None
    plan = json.loads(done.stdout)
    parts = "weights", "gradients", "moments", "activations", "logits", "backend"
    return plan["flops_step"], sum(plan["memory"][part] for part in parts)

figures = set(ours) | {k for k, _ in theirs}
for depth in {int(d) for d in asked.split()} | {k[0] for k in figures}:
    figures |= {(depth, "sample", "tf", b) for b in (1, batch)}
    # A largest batch that is not known yet is none.
    figures |= {(depth, "step", mode, b) for mode in ("tf", "sar-all") for b in (batch, largest.get((depth, mode), 0))}

columns = ["ours img/s", "of peak", "eager", "compiled", "faster", "ours GB", "torch GB", "memory", "plan GB", "plan"]
widths = [12, 9, 10, 10, 9, 9, 10, 9, 9, 8]
aligned = lambda cells: "".join(f" {cell:>{width - 1}}" for cell, width in zip(cells, widths))
show = lambda value, form, unit="": "-" if value is None else format(value, form) + unit
gigabytes = lambda bytes: show(bytes and bytes / 1e9, ".2f")
divided = lambda a, b: a / b if a and b else None
print(machine)
print(f"{'what':8}{'mode':9}{'depth':>6}{'batch':>9}" + aligned(columns))
short = []
order = lambda k: (k[0], k[1] != "step", k[2] != "tf", k[3] or 1 << 30)
for k in sorted(figures, key=order):
    depth, what, mode, images = k
    mine = ours.get(k, {})
    sides = {compiled: theirs[k, compiled] for compiled in (False, True) if (k, compiled) in theirs}
    rate = {compiled: row["images_per_s"] for compiled, row in sides.items()}
    flops, planned = plan(depth, mode, images) if what == "step" and images else (None, None)
    speed, held = mine.get("images_per_s"), mine.get("peak_bytes")
    torch = min((row["peak_bytes"] for row in sides.values()), default=None)
    of_peak = divided(divided(flops, mine.get("median_s")), peak)
    faster, memory = divided(speed, max(rate.values(), default=None)), divided(held, torch)
    off = divided(planned, held)
    cells = [show(speed, ".1f"), show(of_peak, ".0%"), show(rate.get(False), ".1f"), show(rate.get(True), ".1f"),
             show(faster, ".2f", "x"), gigabytes(held), gigabytes(torch), show(memory, ".2f", "x"), gigabytes(planned),
             show(off, ".2f", "x")]
    fullest = "  largest" if what == "step" and largest.get((depth, mode)) == images else ""
    print(f"{what:8}{mode:9}{depth:6}{images or 'largest':>9}" + aligned(cells) + fullest)
    name = f"{what} {mode}, depth {depth}, batch {images}"
    if faster and faster < FASTER[what]: short.append(f"{name}: {faster:.2f}x as fast, not {FASTER[what]}x")
    if of_peak and of_peak < OF_PEAK: short.append(f"{name}: {of_peak:.0%} of the product peak, not {OF_PEAK:.0%}")
    if memory and memory > MEMORY: short.append(f"{name}: {memory:.2f}x the memory, not {MEMORY}x")
    if off and abs(off - 1) > PLAN: short.append(f"{name}: the plan is {off:.2f}x what it took, not within {PLAN:.0%}")
if short: print("\nshort of the goal:", *short, sep="\n  ")
PY
}

trap finish EXIT
step "machine"
# A GPU that others use, or that is hot, measures something else.
{
    timeout 20 nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,utilization.gpu,temperature.gpu,clocks.max.sm,power.limit --format=csv
    timeout 60 "$sar" doctor
} 2>&1 | tee "$out/machine.txt"
gpu() { timeout 20 nvidia-smi --query-gpu="$1" --format="csv,noheader,nounits" 2>/dev/null | head -1; }
name=$(gpu name) driver=$(gpu driver_version)
machine="device ${name:-none}, driver ${driver:-none}, $(date -u '+%F %T UTC')"
{
    echo "# $machine"
    spell env PARTS="$PARTS" "$0" "$sar" "$gpu_tests" "$step_tests" ${peer:+"$peer"}
    cat "$out/machine.txt"
} >>"$out/measured.txt"

if part checks; then
    begin "conformance kit on the GPU, f32 and bf16" limited "$gpu_tests" --nocapture
    begin "whole steps and sampling runs beside the CPU" limited "$step_tests" --nocapture --skip order_of_threads --skip plan_is
    for more in ${MORE_TESTS:-}; do begin "tests of $(basename "$more")" limited "$more"; done
    begin "sar check" limited "$sar" check --backend "$backend" --cases 1
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
part follow && begin "$few_steps steps follow the CPU's curve" follow

# CUDA's toolkit has it where no PATH leads.
sanitizer=$(PATH="$PATH:/usr/local/cuda/bin" command -v compute-sanitizer)
sanitize() { # tool
    local quiet=()
    # Calls that libraries make to ask what there is, and that fail, are no faults of ours.
    [ "$1" = memcheck ] && quiet=(--report-api-errors no)
    limited "$sanitizer" --tool "$1" "${quiet[@]}" --error-exitcode 1 "$sar" check --backend "$backend" --cases 1 |
        tee "$work/sanitized-$1" || return
    # Where it has no last word, it has looked at nothing.
    grep -Eq '(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)' "$work/sanitized-$1"
}
if part sanitize; then
    if [ -n "$sanitizer" ]; then
        for tool in memcheck racecheck initcheck; do begin "compute-sanitizer $tool" sanitize $tool; done
    else
        unmeasured+=("compute-sanitizer: not on this machine")
    fi
fi
all_over

# A command that measures, stopped after so many seconds: itself and all that it prints go to the record, what it
# prints also to $work/printed and, its errors, to $work/errors.
recorded() { # seconds at most, command
    local limit rc begun=$SECONDS
    limit=$(upto "$1")
    shift
    spell "$@" >>"$out/measured.txt"
    timeout -k 10 "$limit" "$@" >"$work/printed" 2>"$work/errors"
    rc=$?
    case $rc in
    124 | 137) echo "stopped after $((SECONDS - begun)) s" >>"$work/errors" ;;
    esac
    cat "$work/printed" "$work/errors" >>"$out/measured.txt"
    [ $rc -eq 0 ] || echo "exit code $rc" >>"$out/measured.txt"
    return $rc
}
# The JSON line of what ran last, to the others.
keep() { grep '^{.*}$' "$work/printed" | tail -1 >>"$lines" || { echo "printed no line" >"$work/errors" && return 1; }; }
# Our side or theirs, one configuration.
mine() { # seconds at most, its flags
    local most=$1
    shift
    recorded "$most" "$sar" bench "$@" "${shape[@]}" "${ours[@]}"
}
peer() { # seconds at most, its flags
    local most=$1
    shift
    recorded "$most" python3 "$peer" "$@" "${shape[@]}" "${theirs[@]}"
}
# What gave no number is a fault, unless it was stopped because the time was over.
lost() { # what, its exit code
    if { [ "$2" = 124 ] || [ "$2" = 137 ]; } && [ "$SECONDS" -gt "$DEADLINE" ]; then
        unmeasured+=("$1: no time left")
    else
        failed+=("$1: $(tail -1 "$work/errors")")
    fi
}
measure() { # depth, batch, what, mode: ours, PyTorch's, and PyTorch's compiled
    local named="$3 $4, depth $1, batch $2"
    local flags=("$3" --depth "$1" --batch "$2" --mode "$4" "${timing[@]}")
    late "$named" && return
    { mine 90 "${flags[@]}" && keep; } || lost "sar bench $named" $?
    [ -n "$peer" ] || return 0
    late "PyTorch, $named" && return
    { peer 90 "${flags[@]}" && keep; } || unmeasured+=("PyTorch, $named: $(tail -1 "$work/errors")")
    # It compiles the training step alone: sampling would be measured twice.
    [ "$3" = step ] || return 0
    late "PyTorch compiled, $named" && return
    { peer 180 "${flags[@]}" --compile && keep; } ||
        unmeasured+=("PyTorch compiled, $named: $(tail -1 "$work/errors")")
}
# Whether a side that failed did so for want of memory, also where a library of PyTorch's had none.
full() { grep -Eqi 'out of memory|_ALLOC_FAILED' "$work/errors"; }
# Bytes that our side plans for a step.
planned() { # depth, mode, batch
    "$sar" plan --json --backend "$backend" --dtype "$dtype" --depth "$1" --mode "$2" --batch "$3" "${shape[@]}" \
        --set sar.guidance=0 |
        python3 -c 'import json, sys
memory = json.load(sys.stdin)["memory"]
print(sum(memory[part] for part in ("weights", "gradients", "moments", "activations", "logits", "backend")))'
}
# Whether a batch fits: 0, 1 for want of memory, 2 for another error, which $work/errors has. PyTorch makes its
# moments at the end of a first step, so that only a second one holds everything at once.
tries() { # depth, mode, batch
    local flags=(step --depth "$1" --mode "$2" --batch "$3" --warmup 1 --steps 1)
    # What our side alone has no room for need not be tried.
    [ -n "$total" ] && [ "$(planned "$1" "$2" "$3")" -gt $((total << 20)) ] && return 1
    if [ -n "$peer" ]; then
        peer 60 "${flags[@]}" || { full && return 1 || return 2; }
    fi
    mine 60 "${flags[@]}" || { full && return 1 || return 2; }
}
# Where in the list of batches to begin: at the largest that fits if each image takes what it took the fuller side
# in what was measured, beside four bytes each for weights, gradients and moments; else in the middle.
guess() { # depth, mode
    python3 - "$lines" "$1" "$2" "${total:-0}" "${large[@]}" <<'PY'
import json, sys
lines, depth, mode, total, *large = sys.argv[1:]
# What a driver, and gaps between buffers, take of a GPU's memory.
ROOM = 0.95 * (int(total) << 20)
rows = [json.loads(line) for line in open(lines)]
rows = [r for r in rows if (r["what"], r["mode"], r["depth"], r["compile"]) == ("step", mode, int(depth), False)]
at = (len(large) - 1) // 2
if rows and ROOM:
    row = max(rows, key=lambda r: r["peak_bytes"] / r["batch"])
    fixed = 16 * row["parameters"]
    image = (row["peak_bytes"] - fixed) / row["batch"]
    at = max(sum(fixed + int(batch) * image <= ROOM for batch in large) - 1, 0)
print(at)
PY
}
# The largest of a list of batches whose step both sides have memory for: up or down from the guess.
largest() { # depth, mode
    local total low=-1 high=${#large[@]} at
    total=$(gpu memory.total)
    [[ $total =~ ^[0-9]+$ ]] || total=
    at=$(guess "$1" "$2") || return
    while [ $((high - low)) -gt 1 ]; do
        [ "$SECONDS" -le "$DEADLINE" ] || { echo "no time left" >"$work/errors"; return 1; }
        tries "$1" "$2" "${large[at]}"
        case $? in
        0) low=$at at=$((at + 1)) ;;
        1) high=$at at=$((at - 1)) ;;
        *)
            [ "$SECONDS" -le "$DEADLINE" ] || echo "no time left" >"$work/errors"
            return 1
            ;;
        esac
    done
    [ "$low" -ge 0 ] || { echo "none of ${large[*]} fits" >"$work/errors"; return 1; }
    echo "${large[low]}"
}

# Where the time of a step, or of sampling, goes. Its own speed counts for nothing: every launch is timed.
profile() { # depth, batch, what, mode
    local named="profile of $3 $4, depth $1, batch $2"
    late "$named" && return
    step "$named"
    mine 60 "$3" --depth "$1" --batch "$2" --mode "$4" "${timing[@]}" "${profiled[@]}" || lost "$named" $?
    cat "$work/printed" "$work/errors" | tee "$out/profile-d$1-$3-$4-$2.txt"
}
if part profile; then
    if ! late "ceilings"; then
        step "ceilings"
        # A processor takes a minute or more.
        if recorded 240 "$sar" bench ceilings "${ours[@]}"; then
            tee "$out/ceilings.json" <"$work/printed"
        else
            lost "ceilings" $?
        fi
    fi
    for mode in tf sar-all; do profile "${depths[0]}" "$batch" step $mode; done
    for b in "$batch" 1; do profile "${depths[0]}" "$b" sample tf; done
fi
for i in 0 1 2; do
    part "${names[i]}" || continue
    depth=${depths[i]}
    step "depth $depth"
    for mode in tf sar-all; do measure "$depth" "$batch" step $mode; done
    for b in 1 "$batch"; do measure "$depth" "$b" sample tf; done
done
for i in 0 1 2; do
    widest "${names[i]}" || continue
    depth=${depths[i]}
    step "depth $depth, the largest batch"
    for mode in tf sar-all; do
        late "depth $depth, largest batch, $mode" && continue
        if most=$(largest "$depth" $mode); then
            echo "$depth $mode $most" >>"$out/largest.txt"
            [ "$most" = "$batch" ] || measure "$depth" "$most" step $mode
        elif grep -q "no time left" "$work/errors"; then
            unmeasured+=("depth $depth, largest batch, $mode: no time left")
        else
            failed+=("depth $depth, largest batch, $mode: $(tail -1 "$work/errors")")
        fi
    done
done
if part profile; then
    for depth in "${depths[@]:1}"; do
        for mode in sar-all tf; do profile "$depth" "$batch" step $mode; done
        profile "$depth" "$batch" sample tf
    done
fi

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

ended=1
