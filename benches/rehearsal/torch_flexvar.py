#!/usr/bin/env python3
"""Stands in for ../torch_flexvar.py in a rehearsal: takes its flags, prints its keys, has its way to fail.

Numbers follow from the flags and mean nothing: so many FLOPs a second, so many bytes an image, few of both on a
processor, and no room for more than $REHEARSAL_MEMORY bytes.
"""
import argparse, json, os, sys

p = argparse.ArgumentParser()
p.add_argument("what", choices=["step", "sample"])
p.add_argument("--mode", choices=["tf", "sar-all"])
for flag in ("depth", "width", "heads", "vocab", "channels", "classes", "batch", "steps", "warmup"):
    p.add_argument(f"--{flag}", type=int, default=0)
p.add_argument("--schedule")
p.add_argument("--dtype", choices=["f32", "bf16"])
p.add_argument("--device", choices=["cpu", "cuda"])
p.add_argument("--compile", action="store_true")
a = p.parse_args()
width = a.width or 64 * a.depth
tokens = sum(int(side) ** 2 for side in a.schedule.split("_"))
parameters = 18 * a.depth * width**2
passes = 2 if a.what == "sample" else {"tf": 3, "sar-all": 6}[a.mode]
seconds = a.batch * tokens * passes * 2 * parameters / (2.5e14 if a.compile else 2e14)
image = tokens * a.depth * width * (50 if a.mode == "tf" else 70)
peak = 16 * parameters + a.batch * (image * 9 // 10 if a.compile else image)
if a.device == "cpu":
    seconds, peak = 1e5 * seconds, 20_000_000 + 1_000_000 * a.depth * a.batch
if peak > int(os.environ["REHEARSAL_MEMORY"]):
    sys.exit("Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB.")
print(json.dumps(dict(peer="torch 0.0 (stand-in)", what=a.what, mode=a.mode, depth=a.depth, width=width, batch=a.batch,
    dtype=a.dtype, device=a.device, compile=a.compile, parameters=parameters, median_s=seconds, min_s=seconds,
    images_per_s=a.batch / seconds, peak_bytes=peak)))
