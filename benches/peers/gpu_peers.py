#!/usr/bin/env python3
"""What other tools take on the same card for what wgpu-quant does: PyTorch eager, torch.compile, Triton.

    python gpu_peers.py --sizes 64,256 --json gpu_peers.json

Needs a CUDA device, torch and triton. Sizes are in Mi elements of f32, in rows of 4096. Every case runs once a round, in a
random order, so that a slow moment of the machine falls on all alike; a sample is as many repeats as take some
milliseconds, between two CUDA events, behind a pause that lets the host run ahead. Time is divided by that of the copy in
the same round. Every result is compared with `rne(x / s)` by float64 before anything is timed: `off` counts codes that
differ. Outputs of Triton's kernels are reused; torch allocates its own, as it does for its users.

`--cpu` is a trial of this script itself, on a small tensor and without times worth reading.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings

STARTED = time.perf_counter()
warnings.filterwarnings("ignore")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--sizes", default="64,256", help="Mi elements, separated by commas")
parser.add_argument("--rounds", type=int, default=11)
parser.add_argument("--seconds", type=float, default=58, help="time for everything; what does not fit is left out")
parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
parser.add_argument("--json", help="write the results to this file")
parser.add_argument("--cpu", action="store_true", help="try the script without a card")
args = parser.parse_args()
if args.cpu:
    os.environ["TRITON_INTERPRET"] = "1"

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

COLUMNS, GROUP = 4096, 32
DEVICE = "cpu" if args.cpu else "cuda"


def left():
    return args.seconds - (time.perf_counter() - STARTED)


# ---------------------------------------------------------------------------------------------- Triton's kernels

if triton:

    @triton.jit
    def rne(v):
        # To nearest, ties to even, of values below 2^22.
        return (v + 12582912.0) - 12582912.0

    @triton.jit
    def code(x, s, EXACT: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
        if EXACT:
            v = tl.div_rn(x, s)
        else:
            v = x * (1.0 / s)
        return tl.minimum(tl.maximum(rne(v), LEAST), MOST).to(tl.int8)

    @triton.jit
    def copy_kernel(x, y, n, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)

    @triton.jit
    def absmax_kernel(x, amax, n, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        most = tl.max(tl.abs(tl.load(x + at, mask=at < n, other=0.0)), axis=0)
        # Floats that are not negative are ordered as their bits are.
        tl.atomic_max(amax, most.to(tl.int32, bitcast=True))

    @triton.jit
    def quantize_kernel(x, q, amax, n, EXACT: tl.constexpr, BLOCK: tl.constexpr):
        s = tl.div_rn(tl.load(amax).to(tl.float32, bitcast=True), 127.0)
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        v = tl.load(x + at, mask=at < n, other=0.0)
        tl.store(q + at, code(v, s, EXACT, -128.0, 127.0), mask=at < n)

    @triton.jit
    def row_kernel(x, q, scales, columns, EXACT: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        v = tl.load(x + row * columns + at, mask=at < columns, other=0.0)
        s = tl.div_rn(tl.max(tl.abs(v), axis=0), 127.0)
        tl.store(scales + row, s)
        tl.store(q + row * columns + at, code(v, s, EXACT, -128.0, 127.0), mask=at < columns)

    @triton.jit
    def group_kernel(x, q, scales, EXACT: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr):
        groups = tl.program_id(0).to(tl.int64) * (BLOCK // PER) + tl.arange(0, BLOCK // PER)
        at = groups[:, None] * PER + tl.arange(0, PER)[None, :]
        v = tl.load(x + at)
        s = tl.div_rn(tl.max(tl.abs(v), axis=1), 127.0)
        tl.store(scales + groups, s)
        tl.store(q + at, code(v, s[:, None], EXACT, -128.0, 127.0))

    @triton.jit
    def group4_kernel(x, q, scales, EXACT: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr):
        groups = tl.program_id(0).to(tl.int64) * (BLOCK // PER) + tl.arange(0, BLOCK // PER)
        v = tl.load(x + groups[:, None] * PER + tl.arange(0, PER)[None, :])
        s = tl.div_rn(tl.max(tl.abs(v), axis=1), 7.0)
        tl.store(scales + groups, s)
        c = code(v, s[:, None], EXACT, -8.0, 7.0).to(tl.int32)
        even, odd = tl.split(tl.reshape(c, (BLOCK // PER, PER // 2, 2)))
        packed = (even & 15) | ((odd & 15) << 4)
        tl.store(q + groups[:, None] * (PER // 2) + tl.arange(0, PER // 2)[None, :], packed.to(tl.uint8))

    @triton.jit
    def dequantize_kernel(q, y, amax, n, BLOCK: tl.constexpr):
        s = tl.div_rn(tl.load(amax).to(tl.float32, bitcast=True), 127.0)
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(q + at, mask=at < n, other=0).to(tl.float32) * s, mask=at < n)


# ---------------------------------------------------------------------------------------------- torch, as users write it


def plain_per_tensor(x):
    s = x.abs().amax() / 127
    return torch.clamp(torch.round(x / s), -128, 127).to(torch.int8), s


def plain_per_row(x):
    s = x.abs().amax(-1, keepdim=True) / 127
    return torch.clamp(torch.round(x / s), -128, 127).to(torch.int8), s


def plain_affine(x):
    lo, hi = torch.aminmax(x)
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    s = (hi - lo) / 255
    z = torch.clamp(torch.round(0 - lo / s), 0, 255)
    return torch.clamp(torch.round(x / s) + z, 0, 255).to(torch.uint8), s


def plain_dequantize(q, s):
    return q.to(torch.float32) * s


# ---------------------------------------------------------------------------------------------- what the codes are to be


def expected(x, scales, per, least, most):
    """`clamp(rne(x / s))`, the quotient rounded to float32 once: float64 first makes no difference to that."""
    codes = torch.empty(x.numel(), dtype=torch.int8, device=x.device)
    chunk = 1 << 24
    for start in range(0, x.numel(), chunk):
        part = x[start : start + chunk].double()
        if per:
            s = scales[start // per : (start + part.numel()) // per].double().repeat_interleave(per)
        else:
            s = scales.double()
        v = torch.round((part / s).float())
        codes[start : start + chunk] = torch.clamp(v, least, most).to(torch.int8)
    return codes


class Bench:
    def __init__(self, n):
        torch.manual_seed(1)
        self.n, self.rows = n, n // COLUMNS
        self.x = torch.randn(n, dtype=torch.float32, device=DEVICE)
        self.x[:: 1 << 20] *= 6  # a few outliers
        self.x2, self.x32 = self.x.view(self.rows, COLUMNS), self.x.view(-1, GROUP)
        self.y = torch.empty_like(self.x)
        self.q = torch.empty(n, dtype=torch.int8, device=DEVICE)
        self.q4 = torch.empty(n // 2, dtype=torch.uint8, device=DEVICE)
        self.amax = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        self.row_scales = torch.empty(self.rows, dtype=torch.float32, device=DEVICE)
        self.group_scales = torch.empty(n // GROUP, dtype=torch.float32, device=DEVICE)
        self.cases, self.skipped = {}, {}
        amax = self.x.abs().amax()
        # Quotients of f32 by way of f64, in case a device divides carelessly.
        by = lambda amax, codes: (amax.double() / codes).float()
        scales = [by(amax, 127), by(self.x2.abs().amax(1), 127), by(self.x32.abs().amax(1), 127)]
        self.expected = {
            "tensor": expected(self.x, scales[0], 0, -128, 127),
            "row": expected(self.x, scales[1], COLUMNS, -128, 127),
            "group": expected(self.x, scales[2], GROUP, -128, 127),
            "group4": expected(self.x, by(self.x32.abs().amax(1), 7), GROUP, -8, 7),
        }
        self.scale = scales[0]

    def add(self, name, bytes_per_elem, run, codes=None, unit=None):
        """A case; `codes` gives what `run` made, to be compared with the expected codes of `unit`."""
        try:
            result = run()
            sync()
            off = None
            if unit:
                got = codes(result).view(-1)
                off, most = 0, 0
                for start in range(0, self.n, 1 << 26):
                    part = slice(start, start + (1 << 26))
                    distance = (got[part].int() - self.expected[unit][part].int()).abs()
                    off += int((distance > 0).sum())
                    most = max(most, int(distance.max()))
                if off > self.n // 1000 or most > 1:
                    raise ValueError(f"wrong: {off} codes are off, by up to {most}")
            self.cases[name] = (run, bytes_per_elem, off)
        except Exception as error:  # a peer that does not work here is left out, and named
            self.skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}" if str(error) else type(error).__name__

    def add_all(self, tuned):
        x, x2, x32, n = self.x, self.x2, self.x32, self.n
        self.add("copy (torch copy_)", 8, lambda: self.y.copy_(x))
        self.add("read only: torch.sum", 4, lambda: torch.sum(x))
        self.add("read only: torch.aminmax", 4, lambda: torch.aminmax(x))

        first = lambda result: result[0]
        self.add("torch plain ops, int8 absmax per tensor", 9, lambda: plain_per_tensor(x), first, "tensor")
        self.add("torch plain ops, int8 absmax per row", 5, lambda: plain_per_row(x2), first, "row")
        self.add("torch plain ops, int8 absmax per group of 32", 5.125, lambda: plain_per_row(x32), first, "group")
        self.add("torch plain ops, uint8 affine per tensor", 9, lambda: plain_affine(x))

        def per_tensor():
            s = torch.amax(torch.abs(x)) / 127
            return torch.quantize_per_tensor(x, float(s), 0, torch.qint8)

        def per_tensor_affine():
            lo, hi = torch.aminmax(x)
            lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
            s = (hi - lo) / 255
            return torch.quantize_per_tensor(x, s, max(0, min(255, round(-lo / s))), torch.quint8)

        zeros = torch.zeros(self.rows, dtype=torch.int64, device=DEVICE)

        def per_channel():
            s = x2.abs().amax(1) / 127
            return torch.quantize_per_channel(x2, s.double(), zeros, 0, torch.qint8)

        self.add("torch abs, amax + quantize_per_tensor", 9, per_tensor, lambda r: r.int_repr(), "tensor")
        self.add("torch aminmax + quantize_per_tensor, uint8", 9, per_tensor_affine)
        self.add("torch abs, amax + quantize_per_channel", 5, per_channel, lambda r: r.int_repr(), "row")
        q8 = self.expected["tensor"]
        self.add("torch plain ops, dequantize int8", 5, lambda: plain_dequantize(q8, self.scale))

        if triton:
            self.add_triton(tuned)
        if not args.no_compile:
            self.add_compiled(q8)

    def add_compiled(self, q8):
        first = lambda result: result[0]
        compiled = [
            ("int8 absmax per tensor", 9, plain_per_tensor, (self.x,), first, "tensor"),
            ("int8 absmax per row", 5, plain_per_row, (self.x2,), first, "row"),
            ("int8 absmax per group of 32", 5.125, plain_per_row, (self.x32,), first, "group"),
            ("uint8 affine per tensor", 9, plain_affine, (self.x,), None, None),
            ("dequantize int8", 5, plain_dequantize, (q8, self.scale), None, None),
        ]
        for what, bytes_per_elem, function, given, codes, unit in compiled:
            name = f"torch.compile, {what}"
            if left() < 10 * (self.sizes_left - 1) + 6:
                self.skipped[name] = "no time left to compile it"
                continue
            fresh = torch.compile(function, dynamic=False)
            self.add(name, bytes_per_elem, lambda fresh=fresh, given=given: fresh(*given), codes, unit)

    def add_triton(self, tuned):
        x, n = self.x, self.n
        blocks = lambda block: (triton.cdiv(n, block),)
        amax_of_x = self.amax_value().view(torch.int32).view(1)

        def best(name, variants, make):
            """The fastest of two block sizes, chosen at the first size."""
            if name not in tuned:
                times = []
                for variant in variants:
                    run = make(*variant)
                    try:
                        run()
                        times.append((seconds_of(run, 3), variant))
                    except Exception as error:
                        self.skipped[f"{name} {variant}"] = f"{type(error).__name__}: {str(error)[:160]}"
                tuned[name] = min(times)[1] if times else variants[0]
            return make(*tuned[name])

        wide = [(4096, 8), (2048, 4)]
        copy = lambda block, warps: lambda: copy_kernel[blocks(block)](x, self.y, n, BLOCK=block, num_warps=warps)
        self.add("copy (Triton)", 8, best("copy", wide, copy))

        reducing = [(16384, 8), (8192, 8)]

        def absmax(block, warps):
            def run():
                self.amax.zero_()
                absmax_kernel[blocks(block)](x, self.amax, n, BLOCK=block, num_warps=warps)

            return run

        ranged = best("absmax", reducing, absmax)
        self.add("Triton absmax", 4, ranged)

        for exact, how in ((False, "x * (1 / s)"), (True, "x / s, IEEE")):

            def quantize(block, warps, amax=amax_of_x, exact=exact):
                return lambda: quantize_kernel[blocks(block)](
                    x, self.q, amax, n, EXACT=exact, BLOCK=block, num_warps=warps
                )

            code = best("quantize", wide, quantize)
            self.add(f"Triton quantize, scale given, {how}", 5, code, lambda _: self.q, "tensor")

            whole = quantize(*tuned["quantize"], amax=self.amax)

            def both(whole=whole):
                ranged()
                whole()

            self.add(f"Triton int8 absmax per tensor, {how}", 9, both, lambda _: self.q, "tensor")

            def row(block, warps, exact=exact):
                return lambda: row_kernel[(self.rows,)](
                    x, self.q, self.row_scales, COLUMNS, EXACT=exact, BLOCK=block, num_warps=warps
                )

            run = best("row", [(4096, 8), (4096, 4)], row)
            self.add(f"Triton int8 absmax per row, {how}", 5, run, lambda _: self.q, "row")

            def group(block, warps, exact=exact):
                return lambda: group_kernel[blocks(block)](
                    x, self.q, self.group_scales, EXACT=exact, PER=GROUP, BLOCK=block, num_warps=warps
                )

            run = best("group", [(4096, 8), (2048, 4)], group)
            self.add(f"Triton int8 absmax per group of 32, {how}", 5.125, run, lambda _: self.q, "group")

            def group4(block, warps, exact=exact):
                return lambda: group4_kernel[blocks(block)](
                    x, self.q4, self.group_scales, EXACT=exact, PER=GROUP, BLOCK=block, num_warps=warps
                )

            def unpacked(_):
                halves = torch.stack([self.q4 << 4, self.q4 & 0xF0], dim=1).view(torch.int8)
                return halves >> 4

            run = best("group4", [(4096, 8), (2048, 4)], group4)
            self.add(f"Triton int4 absmax per group of 32, {how}", 4.625, run, unpacked, "group4")

        q8 = self.expected["tensor"]
        dequantize = lambda block, warps: lambda: dequantize_kernel[blocks(block)](
            q8, self.y, amax_of_x, n, BLOCK=block, num_warps=warps
        )
        self.add("Triton dequantize int8", 5, best("dequantize", wide, dequantize))

    def amax_value(self):
        return self.x.abs().amax()

    def run(self, rounds):
        repeats = {}
        for name, (run, _, _) in self.cases.items():
            once = max(seconds_of(run, 2), 1e-6)
            repeats[name] = max(1, min(50, round(4e-3 / once)))
        seconds = {name: [] for name in self.cases}
        for number in range(rounds):
            order = list(self.cases)
            random.Random(number).shuffle(order)
            for name in order:
                seconds[name].append(seconds_of(self.cases[name][0], repeats[name]))
            if left() < 8 * (self.sizes_left - 1) + 2 and number >= 4:
                break
        return seconds


def sync():
    if not args.cpu:
        torch.cuda.synchronize()


def seconds_of(run, repeats):
    if args.cpu:
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - started) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(1_500_000)  # some 0.8 ms, for the host to run ahead
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def driver():
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip().splitlines()[0]
    except Exception:
        return "unknown"


def main():
    machine = {
        "device": "cpu (a trial)" if args.cpu else torch.cuda.get_device_name(0),
        "driver, clocks and power": "" if args.cpu else driver(),
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else None,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
    if not args.cpu:
        machine["l2_bytes"] = torch.cuda.get_device_properties(0).L2_cache_size
    for key, value in machine.items():
        print(f"{key}: {value}")
    sizes = [float(size) for size in args.sizes.split(",")]
    tuned, report = {}, {"version": 1, "machine": machine, "sizes": []}
    for i, size in enumerate(sizes):
        n = int(size * (1 << 20)) // COLUMNS * COLUMNS
        if i > 0 and left() < 6:
            print(f"\nno time left for {size:g} Mi elements")
            continue
        bench = Bench(n)
        bench.sizes_left = len(sizes) - i
        bench.add_all(tuned)
        seconds = bench.run(args.rounds)
        copies = seconds["copy (torch copy_)"]
        print(f"\n{size:g} Mi elements of f32 in rows of {COLUMNS}, {len(copies)} rounds; floor: bytes / those of a copy")
        print("| case | ms, median | best | spread | GB/s moved | time / copy | floor | codes off |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        rows = []
        for name, times in seconds.items():
            _, bytes_per_elem, off = bench.cases[name]
            median, least = statistics.median(times), min(times)
            row = {
                "case": name,
                "seconds": times,
                "median_seconds": median,
                "best_seconds": least,
                "spread": max(times) / least - 1,
                "bytes_per_second": bytes_per_elem * n / median,
                "time_by_copy": statistics.median(a / b for a, b in zip(times, copies)),
                "floor_by_copy": bytes_per_elem / 8,
                "codes_off": off,
            }
            rows.append(row)
            print(
                f"| {name} | {median * 1e3:.3f} | {least * 1e3:.3f} | {row['spread'] * 100:.0f} % "
                f"| {row['bytes_per_second'] / 1e9:.0f} | {row['time_by_copy']:.2f} | {row['floor_by_copy']:.2f} "
                f"| {'' if off is None else off} |"
            )
        for name, why in bench.skipped.items():
            print(f"left out: {name}: {why}")
        report["sizes"].append({"elements": n, "cases": rows, "left_out": bench.skipped})
        del bench
        if not args.cpu:
            torch.cuda.empty_cache()
            torch._dynamo.reset()
    report["blocks and warps"] = {name: list(variant) for name, variant in tuned.items()}
    print(f"\nblock sizes and warps: {report['blocks and warps']}")
    print(f"{time.perf_counter() - STARTED:.0f} s")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


main()
