#!/usr/bin/env bash
# What wants a GPU: the checks, then the measurements beside PyTorch, from prebuilt binaries. Prints its
# table last, also where it is stopped; results go to $OUT (default: ./gpu), what can be made again (kernels,
# PyTorch's compiled code) to $CACHE (default: ~/.cache/sar-gpu). For benches/results/ there are
#
#   table.txt       the table, with device, driver and date, what is short of its goal and what is still to be measured
#   measured.txt    every command that measured, as it can be given again, and its output, after device, driver and date
#   profile-*.txt   where the time of a step, and of sampling, goes
#   machine.txt     device, driver and libraries; lines.jsonl, ceilings.json, largest.txt: what the table is made of
#
# and, of every check, its whole output; summary.txt names what failed and what was left out.
#
#   cargo build --release -p sar-train
#   cargo test --release --no-run -p sar-backend-cuda --test gpu -p sar-train --test cuda   # prints two paths
#   benches/gpu.sh target/release/sar PATH/TO/gpu-… PATH/TO/cuda-… benches/torch_flexvar.py
#
# For a machine that they have to be carried to, strip them (`strip target/release/sar …`): six sevenths of the program
# say which line is which. PACK=FILE.tgz packs all of $OUT after every part, so that also a KILL leaves what there was.
# What has been compiled ahead by the machine's own NVRTC (`sar kernels build --arch sm_90 --out $CACHE/cubin`) is not
# compiled there.
#
# The comparison script may be left out; then our side alone is measured. After $DEADLINE seconds nothing is
# begun, and what runs is stopped $GRACE later, so that one call takes less than nine minutes; what was left out is
# named as not measured. Parts come in the order below, those that matter most first; the first three, of which nothing
# is timed, go on beside one another, and beside them PyTorch compiles the first depth's steps into $CACHE, where the GPU
# has room. PARTS picks what a call does, so that a second one can do the rest into the same folder: the table is of all
# lines there that are by this program on this GPU. What others left is moved to $OUT/earlier-DATE.
#
#   checks    those two test binaries; the others that lie beside the first without a hash in their names, or that
#             $MORE_TESTS names; `sar check`; the same bits in two processes, and without CUDA graphs
#   follow    200 steps of the glyph recipe beside the CPU's curve
#   sanitize  `sar check`, steps and sampling under compute-sanitizer: memcheck, racecheck, initcheck
#   profile   ceilings, before anything else is timed; the table of every kernel, in training steps and in sampling:
#             of depth 16 after its steps, of the others last
#   d16       training steps at batch 64; sampling at batch 1 and 64
#   d20, d24  likewise
#   largest   the training steps of those depths, or of all where none is named, also at the largest batch that both
#             fit, which takes several tries
#   again     what is within a twentieth of its goal, in turn: ours, the faster side of PyTorch, ours
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
all="checks follow sanitize profile d16 d20 d24 largest again frechet"
PARTS=${PARTS:-$all}
for name in $PARTS; do
    [[ " $all " == *" $name "* ]] || { echo "no part is called $name" >&2; exit 2; }
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
failed=() unmeasured=() ended='' program='' machine=''
work=$(mktemp -d)
mkdir "$work/running"
notes() {
    [ ${#unmeasured[@]} -eq 0 ] || { printf '\nnot measured:\n' && printf '  %s\n' "${unmeasured[@]}"; }
    printf '\n%s failed in %s s\n' "${#failed[@]}" "$SECONDS"
    [ ${#failed[@]} -eq 0 ] || printf '  %s\n' "${failed[@]}"
}
# What there is so far, also where an outer limit leaves this script no last word. A pack is whole or the one before.
save() {
    table >"$out/table.txt" || return
    notes >"$out/summary.txt"
    [ -n "${PACK:-}" ] || return 0
    tar czf "$PACK.part" -C "$(dirname "$out")" "$(basename "$out")" 2>"$work/tar"
    # 1: a check wrote its log meanwhile.
    [ $? -le 1 ] || { cat "$work/tar" && return 1; }
    mv "$PACK.part" "$PACK"
}
# What is printed last, whatever ended the script.
finish() {
    local check group
    trap - EXIT
    # Without that folder nothing is begun any more.
    mv "$work/running" "$work/over"
    for check in "${under_way[@]}"; do kill "${check%% *}" 2>/dev/null; done
    # Of a process alone, its children would go on and hold the GPU.
    for group in "$work/over/"*; do kill -KILL -- "-${group##*/}" 2>/dev/null; done
    [ -n "$ended" ] || failed+=("$(basename "$0"): stopped before its end")
    step "table"
    save || failed+=("table and pack")
    cat "$out/table.txt"
    notes
    rm -rf "$work"
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
# Begins a command in a process group of its own, $group, which `timeout` makes: so all of it can be stopped.
launch() { # seconds at most, command
    [ -d "$work/running" ] || exit
    timeout -k 10 "$@" &
    group=$!
    : >"$work/running/$group"
}
landed() { # group; its exit code
    local rc
    wait "$1" 2>/dev/null
    rc=$?
    rm -f "$work/running/$1"
    return $rc
}
# A command that is stopped when its check's time is over, also where it no longer listens.
limited() {
    local left=$((stop - SECONDS)) group
    spell "$@"
    launch $((left > 1 ? left : 1)) "$@"
    landed "$group"
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
        save
    done
    under_way=()
}
judge() { # name, exit code, seconds it had, when they were over
    local log
    log=$(log_of "$1")
    [ "$2" -ne 0 ] || return
    case $1:$2 in
    # It checks nothing: whether that step works is told where it is timed.
    PyTorch*) unmeasured+=("$1: $(tail -1 "$log")") ;;
    *:124 | *:137) # Instrumented code is slow, and near the deadline there is little time; else it is a fault.
        if [ "$SECONDS" -ge "$4" ] && { [ "$3" -lt 240 ] || [[ $1 == compute-sanitizer* ]]; }; then
            unmeasured+=("$1: took too long")
        else
            failed+=("$1: stopped ($2)")
        fi
        ;;
    "further tests"*:75) unmeasured+=("$1: $(tail -1 "$log")") ;;
    *)
        if [[ $1 == compute-sanitizer* ]] && grep -q "Device not supported" "$log"; then
            unmeasured+=("$1: it does not support this device")
        else
            failed+=("$1")
        fi
        ;;
    esac
}

# Every figure of every depth that was asked for or measured, on this call or an earlier one, beside its goal. Names
# in $work/near what `again` measures.
table() {
    local asked=() i
    for i in 0 1 2; do
        if part "${names[i]}" || widest "${names[i]}"; then asked+=("${depths[i]}"); fi
    done
    python3 "$here/gpu_table.py" "$out" "$work/near" "$machine, $program" "$sar" "$backend" "$dtype" "$batch" "${asked[*]}" "${shape[@]}"
}

trap finish EXIT
step "machine"
# A GPU that others use, or that is hot, measures something else.
{
    timeout 20 nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,utilization.gpu,temperature.gpu,clocks.max.sm,power.limit --format=csv
    timeout 60 "$sar" doctor
} 2>&1 | tee "$work/machine"
gpu() { timeout 20 nvidia-smi --query-gpu="$1" --format="csv,noheader,nounits" 2>/dev/null | head -1; }
name=$(gpu name) driver=$(gpu driver_version)
machine="device ${name:-none}, driver ${driver:-none}, $(date -u '+%F %T UTC')"
program="$("$sar" --version), sha256 $(sha256sum <"$sar" | cut -c1-16)"
# What runs here are beside: what the GPU's memory holds of others, in MiB.
idle=$(gpu memory.used)
# The numbers of another program, or of another GPU, would count as this one's.
whose="$program, GPU ${name:-none} $(gpu uuid)"
if { [ -s "$lines" ] || [ -s "$out/ceilings.json" ]; } && [ "$whose" != "$(cat "$out/program.txt" 2>/dev/null)" ]; then
    earlier="$out/earlier-$(date -u +%Y%m%dT%H%M%S)"
    echo "what is in $out is not by $whose: moved to $earlier"
    mkdir "$earlier" && find "$out" -maxdepth 1 -type f -exec mv -t "$earlier" {} + || exit
    touch "$lines" "$out/largest.txt"
fi
echo "$whose" >"$out/program.txt"
cp "$work/machine" "$out/machine.txt"
{
    echo "# $machine"
    echo "# $program"
    spell env PARTS="$PARTS" "$0" "$sar" "$gpu_tests" "$step_tests" ${peer:+"$peer"}
    cat "$out/machine.txt"
} >>"$out/measured.txt"

# Test binaries, one after another, for all at once would have too little of the processor. None took longer than 72 s on
# an H100: one that is stopped is at fault where it had twice as long, and had no time else.
further() { # binaries
    local each left late=() wrong=()
    for each in "$@"; do
        left=$((stop - SECONDS))
        [ $left -gt 0 ] && limited "$each" && continue
        if [[ $? =~ ^(1|124|137)$ ]] && [ "$SECONDS" -ge "$stop" ] && [ $left -lt 144 ]; then late+=("$each"); else wrong+=("$each"); fi
    done
    [ ${#wrong[@]} -eq 0 ] || { echo "failed: ${wrong[*]}" && return 1; }
    [ ${#late[@]} -eq 0 ] || { echo "no time left for ${late[*]}" && return 75; }
}
# A tokenizer and a generator of a few steps, in $work/NAME.
tiny() { # name
    limited "$sar" tokenizer train --data builtin:glyphs10 --out "$work/$1/tokenizer" --quiet --backend "$backend" \
        --set tokenizer_train.steps=3 &&
        limited "$sar" train --data builtin:glyphs10 --tokenizer "$work/$1/tokenizer" --out "$work/$1/run" --quiet \
            --config "$recipes/glyphs10.toml" --backend "$backend" --mode ssr --set generator.depth=1 \
            --set generator.width=64 --set generator.heads=1 --set train.steps=3 --set train.batch=4 \
            --set train.warmup=0 --set train.sample_every=0
}
# Of every file of a kind in two folders under $work.
same_files() { # first, second, pattern
    local side
    for side in "$1" "$2"; do
        (cd "$work/$side" && find . -name "$3" -print0 | sort -z | xargs -0r sha256sum) | tee "$work/$side.sums"
    done
    # None would be the same as none.
    [ -s "$work/$1.sums" ] && cmp "$work/$1.sums" "$work/$2.sums"
}
same_bits() {
    local rc=0 graphs
    mkdir "$work/one" "$work/two"
    tiny one && tiny two || return
    same_files one two '*.safetensors' || { echo "two processes trained other bits from one seed" && rc=1; }
    # Of four batches the first runs, the second is recorded, the others are replayed.
    for graphs in on off; do
        limited env SAR_CUDA_GRAPHS=$graphs "$sar" sample "$work/one/run" --count 8 --batch 2 --out "$work/graphs-$graphs" \
            --backend "$backend" --quiet || return
    done
    same_files graphs-on graphs-off '*.png' || { echo "samples are others without graphs" && rc=1; }
    return $rc
}
if part checks; then
    read -ra more <<<"${MORE_TESTS:-}"
    for name in conformance norm tokenizer embedding choose_codes attention losses rollout golden optimizer; do
        beside=$(dirname "$gpu_tests")/$name
        [ -z "${MORE_TESTS+given}" ] && [ -f "$beside" ] && more+=("$beside")
    done
    begin "conformance kit on the GPU, f32 and bf16" limited "$gpu_tests" --nocapture
    begin "whole steps and sampling runs beside the CPU" limited "$step_tests" --nocapture --skip order_of_threads --skip plan_is
    begin "sar check" limited "$sar" check --backend "$backend" --cases 1
    begin "same bits in two processes and without graphs" same_bits
    [ ${#more[@]} -eq 0 ] || begin "further tests" further "${more[@]}"
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
sanitize() { # tool, command
    local quiet=() seen=$work/sanitized-$BASHPID tool=$1
    shift
    # Calls that libraries make to ask what there is, and that fail, are no faults of ours.
    [ "$tool" = memcheck ] && quiet=(--report-api-errors no)
    limited "$sanitizer" --tool "$tool" "${quiet[@]}" --error-exitcode 1 "$@" | tee "$seen" || return
    # Where it has no last word, it has looked at nothing.
    grep -Eq '(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)' "$seen"
}
if part sanitize; then
    [ -n "$sanitizer" ] || unmeasured+=("compute-sanitizer: not on this machine")
    small=("${shape[@]}" "${ours[@]}" --depth 1 --batch 1)
    for tool in ${sanitizer:+memcheck racecheck initcheck}; do
        begin "compute-sanitizer $tool" sanitize "$tool" "$sar" check --backend "$backend" --cases 1
        begin "compute-sanitizer $tool, steps" sanitize "$tool" "$sar" bench step --mode sar-all "${small[@]}" --warmup 0 --steps 2
        # The third batch replays what the second recorded.
        begin "compute-sanitizer $tool, sampling" sanitize "$tool" "$sar" bench sample --mode tf "${small[@]}" --warmup 2 --steps 1
    done
fi
# The steps that are timed first, compiled before. On an H100 at depth 16 and batch 64 they took 41 GB, and 75 with two
# passes; by depth it grows as its square. The checks beside it are left 20 GB.
ahead() {
    local i depth='' mode need free
    for i in 2 1 0; do part "${names[i]}" && depth=${depths[i]}; done
    for mode in ${depth:+tf sar-all}; do
        need=$((depth * depth * ($([ "$mode" = tf ] && echo 41000 || echo 75000) / 256) + 20000))
        free=$(gpu memory.free)
        [[ $free =~ ^[0-9]+$ ]] && [ "$free" -ge $need ] || { echo "$mode: no $need MiB free" && return; }
        limited python3 "$peer" step --depth "$depth" --batch "$batch" --mode "$mode" --warmup 0 --steps 1 --compile \
            "${shape[@]}" "${theirs[@]}" || return
    done
}
[ -z "$peer" ] || [ ${#under_way[@]} -eq 0 ] || begin "PyTorch compiles ahead" ahead
all_over

# A command that measures, stopped after so many seconds: itself and all that it prints go to the record, what it
# prints also to $work/printed and, its errors, to $work/errors. Bytes of the GPU that it took at most: $held, of either
# side by one process that asks for nothing else, so that it takes no time worth naming from what is timed.
recorded() { # seconds at most, command
    local limit rc begun=$SECONDS group poll
    limit=$(upto "$1")
    shift
    spell "$@" >>"$out/measured.txt"
    launch "$limit" nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$work/used" 2>/dev/null
    poll=$group
    launch "$limit" "$@" >"$work/printed" 2>"$work/errors"
    landed "$group"
    rc=$?
    kill "$poll" 2>/dev/null
    landed "$poll"
    held=$(awk -v idle="${idle//[^0-9]/}" '$1 > most && /^[0-9]+$/ { most = $1 }
        END { if (idle != "" && most > idle) printf "%d", (most - idle) * 1048576 }' "$work/used")
    case $rc in
    124 | 137) echo "stopped after $((SECONDS - begun)) s" >>"$work/errors" ;;
    esac
    cat "$work/printed" "$work/errors" >>"$out/measured.txt"
    [ $rc -eq 0 ] || echo "exit code $rc" >>"$out/measured.txt"
    return $rc
}
# The JSON line of what ran last, to the others.
keep() {
    local row
    row=$(grep '^{.*}$' "$work/printed" | tail -1) || { echo "printed no line" >"$work/errors" && return 1; }
    printf '%s%s}\n' "${row%\}}" "${held:+,\"device_bytes\":$held}" >>"$lines"
    # What does not go well is told by the last of them.
    save || :
}
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
once_ours() { { mine 90 "${flags[@]}" && keep; } || lost "sar bench $named" $?; }
once_theirs() { # eager or compiled
    local most=90 compile=()
    [ "$1" = eager ] || most=180 compile=(--compile)
    late "PyTorch $1, $named" && return
    # The batch is one that eager PyTorch has room for, and the row is told without.
    if [ "$1" = compiled ] && [ -n "$largest" ] && [ "$(upto $most)" -lt $most ]; then
        unmeasured+=("PyTorch $1, $named: too little time left")
        return
    fi
    { peer $most "${flags[@]}" "${compile[@]}" && keep; } || unmeasured+=("PyTorch $1, $named: $(tail -1 "$work/errors")")
}
measure() { # depth, batch, what, mode, whether it is the largest batch: ours, PyTorch's, and PyTorch's compiled
    local named="$3 $4, depth $1, batch $2" largest=${5:-}
    local flags=("$3" --depth "$1" --batch "$2" --mode "$4" "${timing[@]}")
    late "$named" && return
    once_ours
    if [ -n "$peer" ]; then
        once_theirs eager
        # It compiles the training step alone: sampling would be measured twice.
        [ "$3" != step ] || once_theirs compiled
    fi
}
again() {
    local depth images what mode side largest='' named flags
    while read -r depth images what mode side; do
        named="$what $mode, depth $depth, batch $images, once more"
        flags=("$what" --depth "$depth" --batch "$images" --mode "$mode" "${timing[@]}")
        late "$named" && continue
        step "$named"
        once_ours
        [ -z "$peer" ] || once_theirs "$side"
        late "$named" || once_ours
    done <"$1"
}
# Whether a side that failed did so for want of memory, also where a library of PyTorch's had none.
full() { grep -Eqi 'out of memory|_ALLOC_FAILED' "$work/errors"; }
# Whether a batch fits: 0, 1 for want of memory, 2 for another error, which $work/errors has. PyTorch makes its
# moments at the end of a first step, so that only a second one holds everything at once.
tries() { # depth, mode, batch
    local flags=(step --depth "$1" --mode "$2" --batch "$3" --warmup 1 --steps 1)
    if [ -n "$peer" ]; then
        peer 60 "${flags[@]}" || { full && return 1 || return 2; }
    fi
    mine 60 "${flags[@]}" || { full && return 1 || return 2; }
}
# Where in the list of batches to begin: at the largest that fits if each image takes what it took the fuller side
# in what was measured, beside four bytes each for weights, gradients and moments; else in the middle.
guess() { # depth, mode
    python3 - "$lines" "$dtype" "$1" "$2" "${total:-0}" "${large[@]}" <<'PY'
import json, sys
lines, dtype, depth, mode, total, *large = sys.argv[1:]
# What a driver, and gaps between buffers, take of a GPU's memory.
ROOM = 0.95 * (int(total) << 20)
rows = [json.loads(line) for line in open(lines)]
wanted = "step", mode, int(depth), dtype, False
rows = [r for r in rows if (r["what"], r["mode"], r["depth"], r["dtype"], r["compile"]) == wanted]
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
    save
}
if part profile && ! late "ceilings"; then
    step "ceilings"
    # A processor takes a minute or more.
    if recorded 240 "$sar" bench ceilings "${ours[@]}"; then
        tee "$out/ceilings.json" <"$work/printed"
    else
        lost "ceilings" $?
    fi
    save
fi
each_of() { # index of a depth
    part "${names[$1]}" || return
    step "depth ${depths[$1]}"
    for mode in tf sar-all; do measure "${depths[$1]}" "$batch" step $mode; done
    for b in 1 "$batch"; do measure "${depths[$1]}" "$b" sample tf; done
}
each_of 0
if part profile; then
    for mode in tf sar-all; do profile "${depths[0]}" "$batch" step $mode; done
    for b in "$batch" 1; do profile "${depths[0]}" "$b" sample tf; done
fi
each_of 1
each_of 2
for i in 0 1 2; do
    widest "${names[i]}" || continue
    depth=${depths[i]}
    step "depth $depth, the largest batch"
    for mode in tf sar-all; do
        late "depth $depth, largest batch, $mode" && continue
        if most=$(largest "$depth" $mode); then
            echo "$depth $mode $most" >>"$out/largest.txt"
            [ "$most" = "$batch" ] || measure "$depth" "$most" step $mode largest
        elif grep -q "no time left" "$work/errors"; then
            unmeasured+=("depth $depth, largest batch, $mode: no time left")
        else
            failed+=("depth $depth, largest batch, $mode: $(tail -1 "$work/errors")")
        fi
    done
done
if part again && table >/dev/null; then
    # Each table writes that file.
    cp "$work/near" "$work/again" && again "$work/again"
fi
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
part frechet && begin "Fréchet distance after $many_steps steps" frechet
all_over

ended=1
