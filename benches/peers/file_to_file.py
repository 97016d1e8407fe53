#!/usr/bin/env python3
"""File to file: `wgpu-quant` against `cp --reflink=never` of the same file, on the same disk, with a warm page cache.

Wall clock of whole processes, start included; every case once a round, in another order each round; the ratio is the
median over the rounds of the ratio to that round's `cp`. Peak memory is the process's largest resident set
(`wait4`), in which the pages of a mapped input count, and what of it is its own (`VmHWM` less the file's pages is not
kept by Linux, so that it is the largest `RssAnon` seen).

usage: file_to_file.py TOOL [--mib 512] [--rounds 7] [--files layers,one,many] [--cases SUBSTRING] [--folder DIR] [--before TOOL]
"""
import argparse
import array
import json
import os
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

CHUNK = 4 << 20  # bytes


def normal_values():
    rng = random.Random(1)
    return array.array("f", (rng.gauss(0, 0.05) for _ in range(CHUNK // 4))).tobytes()


def shapes(kind, mib):
    """Shapes of F32 tensors that take `mib` MiB together, but for some small ones."""
    elems = mib << 18
    if kind == "one":
        return {"weight": [elems // 4096, 4096]}
    if kind == "many":
        return {f"block.{i}.weight": [elems // 300 // 512, 512] for i in range(300)}
    # A transformer's: in units of so many rows that eight layers fill the file.
    layer = elems // 8
    width = 1024 if mib >= 256 else 256
    attention = 4 * width * width
    feed = (layer - attention) // 3 // width
    tensors = {}
    for i in range(8):
        for name in "qkvo":
            tensors[f"layers.{i}.attention.{name}.weight"] = [width, width]
        tensors[f"layers.{i}.gate.weight"] = [feed, width]
        tensors[f"layers.{i}.up.weight"] = [feed, width]
        tensors[f"layers.{i}.down.weight"] = [width, feed]
        tensors[f"layers.{i}.norm.weight"] = [width]
    return tensors


def write_model(path, tensors, values):
    header, end = {}, 0
    for name, shape in tensors.items():
        count = 4
        for d in shape:
            count *= d
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        at = 0
        while at < end:
            # Not all chunks alike.
            turn = at // CHUNK * 4444 % CHUNK & ~3
            chunk = values[turn:] + values[:turn]
            at += file.write(chunk[: end - at])


def largest_anonymous(pid, found, stop):
    while not stop.is_set():
        try:
            with open(f"/proc/{pid}/status") as status:
                for line in status:
                    if line.startswith("RssAnon:"):
                        found[0] = max(found[0], int(line.split()[1]))
        except OSError:
            return
        time.sleep(0.002)


def run(command, sample=False):
    """Seconds, the largest resident set and the largest anonymous one, in MiB."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    anonymous, stop = [0], threading.Event()
    if sample:
        watcher = threading.Thread(target=largest_anonymous, args=(child.pid, anonymous, stop))
        watcher.start()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if sample:
        stop.set()
        watcher.join()
    error = child.stderr.read().decode()
    child.stderr.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)}: {error}")
    return seconds, usage.ru_maxrss / 1024, anonymous[0] / 1024, usage.ru_utime, usage.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tool")
    parser.add_argument("--before", help="another build of the tool, in the same rounds")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", default="layers,one,many")
    parser.add_argument("--cases", default="")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    values = normal_values()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for kind in args.files.split(","):
            measure(args, kind, folder, values)


def measure(args, kind, folder, values):
    source, target = os.path.join(folder, f"{kind}.safetensors"), os.path.join(folder, "out.safetensors")
    write_model(source, shapes(kind, args.mib), values)
    os.sync()
    cases = {"cp --reflink=never": ["cp", "--reflink=never", source, target]}
    if "sync" in args.cases or not args.cases:
        cases["cp, then sync of the copy"] = ["sh", "-c", f"cp --reflink=never {source} {target} && sync {target}"]
    flags = {
        "quantize": [],
        "quantize -q": ["-q"],
        "quantize --per tensor": ["--per", "tensor"],
        "quantize -q --per tensor": ["-q", "--per", "tensor"],
        "quantize -q --scheme uint8-affine": ["-q", "--scheme", "uint8-affine"],
        "quantize -q --scheme int4-absmax --per group=32": ["-q", "--scheme", "int4-absmax", "--per", "group=32"],
        "quantize -q --scheme f16": ["-q", "--scheme", "f16"],
    }
    codes = os.path.join(folder, "codes.safetensors")
    subprocess.run([args.tool, "quantize", source, "-o", codes, "-q", "--device", args.device], check=True)
    for tool, note in [(args.tool, ""), (args.before, " (before)")]:
        if tool is None:
            continue
        for name, more in flags.items():
            cases[name + note] = [tool, "quantize", source, "-o", target, "--device", args.device, *more]
        cases["dequantize -q" + note] = [tool, "dequantize", codes, "-o", target, "-q", "--device", args.device]
        cases["compare -q" + note] = [tool, "compare", source, codes, "-q", "--device", args.device]
        cases["verify -q" + note] = [tool, "verify", source, codes, "-q", "--device", args.device]
    if args.cases:
        wanted = args.cases.split(",")
        cases = {k: v for i, (k, v) in enumerate(cases.items()) if i == 0 or any(w in k for w in wanted)}

    def once(command, sample=False):
        if os.path.exists(target):
            os.remove(target)
        return run(command, sample)

    # The first turn warms the page cache, and is watched more closely than one that is timed.
    memory = {name: once(command, True) for name, command in cases.items()}
    times = {name: [] for name in cases}
    usage = {name: [] for name in cases}
    rng = random.Random(2)
    for _ in range(args.rounds):
        for name in rng.sample(list(cases), len(cases)):
            seconds, _, _, user, system = once(cases[name])
            times[name].append(seconds)
            usage[name].append((user, system))
    copy = times["cp --reflink=never"]
    mib = os.path.getsize(source) / (1 << 20)
    print(f"\n{kind}: {mib:.0f} MiB in {len(shapes(kind, args.mib))} tensors, {args.rounds} rounds")
    print("| case | ms median (best) | time / cp | user, system ms | resident MiB | of its own MiB |\n|---|---|---|---|---|---|")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, copy))
        user, system = (1e3 * statistics.median(of) for of in zip(*usage[name]))
        _, resident, anonymous, _, _ = memory[name]
        print(
            f"| {name} | {1e3 * statistics.median(found):.0f} ({1e3 * min(found):.0f}) | {ratio:.2f} "
            f"| {user:.0f}, {system:.0f} | {resident:.0f} | {anonymous:.0f} |"
        )
    for path in (source, target, codes):
        if os.path.exists(path):
            os.remove(path)


if __name__ == "__main__":
    main()
