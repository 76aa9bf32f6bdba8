"""The table of benches/gpu.sh: every figure of every depth that was asked for or measured, beside its goal.

Reads lines.jsonl, largest.txt and ceilings.json of a folder of results; asks `sar plan` for FLOPs and memory. Writes to
NEAR the rows that are so close to their goal that they are measured again.

python3 gpu_table.py RESULTS NEAR MACHINE SAR BACKEND DTYPE BATCH DEPTHS [SHAPE FLAGS...]
"""
import json, os, statistics, subprocess, sys
out, near, machine, sar, backend, dtype, batch, asked, *shape = sys.argv[1:]
batch = int(batch)
# The goals: at least so many times as fast, and so much of what a plain product reaches; at most so much of PyTorch's
# memory; a plan so close to the peak.
FASTER, OF_PEAK, MEMORY, PLAN = {"step": 1.3, "sample": 2.0}, 0.5, 0.6, 0.1
# Runs of one row were seen to differ by a few hundredths: what is as close to its goal as this is measured again.
NEAR = 0.05
SIDES = {"step": ("ours", "eager", "compiled"), "sample": ("ours", "eager")}
runs = {}
for row in (json.loads(line) for line in open(f"{out}/lines.jsonl") if line.endswith("}\n")):
    side = "ours" if row["peer"].startswith("sar") else "compiled" if row["compile"] else "eager"
    key = row["depth"], row["what"], row["mode"], row["batch"]
    # Less than a side counted is from before it took the rest.
    if row.get("device_bytes", 0) < row["peak_bytes"]: row.pop("device_bytes", None)
    if row["dtype"] == dtype: runs.setdefault(key, {}).setdefault(side, []).append(row)
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

figures = set(runs)
for depth in {int(d) for d in asked.split()} | {k[0] for k in figures}:
    figures |= {(depth, "sample", "tf", b) for b in (1, batch)}
    # A largest batch that is not known yet is none.
    figures |= {(depth, "step", mode, b) for mode in ("tf", "sar-all") for b in (batch, largest.get((depth, mode), 0))}

columns = {"ours img/s": 11, "of peak": 8, "eager": 9, "compiled": 9, "faster": 8, "ours GB": 8, "torch GB": 9, "memory": 8,
           "by smi": 8, "plan GB": 8, "plan": 7}
aligned = lambda cells: "".join(f" {cell:>{width}}" for cell, width in zip(cells, columns.values()))
show = lambda value, form, unit="": "-" if value is None else format(value, form) + unit
gigabytes = lambda bytes: show(bytes and bytes / 1e9, ".2f")
divided = lambda a, b: a / b if a and b else None
all_of = lambda rows, name: [row[name] for row in rows if name in row]
middle = lambda rows, name: statistics.median(all_of(rows, name)) if rows else None
most = lambda rows, name: max(all_of(rows, name), default=None)
short, lacking, repeated, close = [], [], [], []

def compare(k, name, mine, theirs): # how many times as fast, and whether a side is missing of PyTorch's
    best = max(theirs, key=lambda side: middle(theirs[side], "images_per_s"), default=None)
    absent = [side for side in SIDES[k[1]] if side not in runs.get(k, {})]
    if absent: lacking.append(f"{name}: {', '.join(absent)}")
    if not mine or not best: return None, False
    faster = middle(mine, "images_per_s") / middle(theirs[best], "images_per_s")
    if abs(faster / FASTER[k[1]] - 1) <= NEAR: close.append((k[0], k[3], *k[1:3], best))
    if len(mine) + len(theirs[best]) > 2:
        speeds = {side: all_of(rows, "images_per_s") for side, rows in (("ours", mine), (best, theirs[best]))}
        told = [f"{side} {min(all):.1f}, {statistics.median(all):.1f} of {len(all)}" for side, all in speeds.items()]
        repeated.append(f"{name}: {'; '.join(told)}; {min(speeds['ours']) / max(speeds[best]):.2f}x, {faster:.2f}x")
    return faster, bool(absent)

def figure(k):
    depth, what, mode, images = k
    name = f"{what} {mode}, depth {depth}, batch {images or '(the largest)'}"
    theirs = dict(runs.get(k, {}))
    mine = theirs.pop("ours", [])
    faster, alone = compare(k, name, mine, theirs)
    flops, planned = plan(depth, mode, images) if what == "step" and images else (None, None)
    held, torch, ours_smi, torch_smi = (min((most(rows, key) for rows in sides if most(rows, key)), default=None)
        for key in ("peak_bytes", "device_bytes") for sides in ([mine], theirs.values()))
    of_peak = divided(divided(flops, middle(mine, "median_s")), peak)
    memory, off = divided(held, torch), divided(planned, held)
    rate = {side: show(middle(rows, "images_per_s"), ".1f") for side, rows in theirs.items()}
    cells = [show(middle(mine, "images_per_s"), ".1f"), show(of_peak, ".0%"), rate.get("eager", "-"),
             rate.get("compiled", "-"), show(faster, ".2f", "x*" if alone else "x"), gigabytes(held), gigabytes(torch),
             show(memory, ".2f", "x"), show(divided(ours_smi, torch_smi), ".2f", "x"), gigabytes(planned), show(off, ".2f", "x")]
    fullest = "  largest" if what == "step" and largest.get((depth, mode)) == images else ""
    print(f"{what:8}{mode:9}{depth:6}{images or 'largest':>9}" + aligned(cells) + fullest)
    if faster and faster < FASTER[what]: short.append(f"{name}: {faster:.2f}x as fast, not {FASTER[what]}x")
    if of_peak and of_peak < OF_PEAK: short.append(f"{name}: {of_peak:.0%} of the product peak, not {OF_PEAK:.0%}")
    if memory and memory > MEMORY: short.append(f"{name}: {memory:.2f}x the memory, not {MEMORY}x")
    if off and abs(off - 1) > PLAN: short.append(f"{name}: the plan is {off:.2f}x what it took, not within {PLAN:.0%}")

print(machine)
print("largest: the largest batch that ours and eager PyTorch fit (compiled PyTorch may fit more); *: a side of PyTorch is "
      "missing")
print(f"{'what':8}{'mode':9}{'depth':>6}{'batch':>9}" + aligned(columns))
for k in sorted(figures, key=lambda k: (k[0], k[1] != "step", k[2] != "tf", k[3] or 1 << 30)): figure(k)
if short: print("\nshort of the goal:", *short, sep="\n  ")
if repeated: print("\nmore than one run, images/s, least and median:", *repeated, sep="\n  ")
if lacking: print("\nstill to be measured, or without room:", *lacking, sep="\n  ")
with open(near, "w") as file: file.writelines(" ".join(map(str, row)) + "\n" for row in close)
