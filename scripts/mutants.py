#!/usr/bin/env python3
"""Do the tests have teeth? Plants small faults, one at a time, and reports which tests caught each.

    scripts/mutants.py                     every fault; a quarter of an hour on two cores
    scripts/mutants.py --only add search   the faults whose name holds one of these words
    scripts/mutants.py --check             only whether each fault still fits the source
    scripts/mutants.py --output FILE       also write the table, as Markdown

The tree is copied to target/mutants/, so that the checkout stays as it is. A fault is a text of one source file
and what stands in its place; the text must occur there exactly once. First the tests must pass without any fault.
The GPU tests run on the adapter that WGPU_QUANT_DEVICE names, else on the best. Exit code 1 when a fault that is
not known to be harmless survives.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "mutants"
TREE = WORK / "tree"

# Long tests of what no fault here touches: sizes beyond buffers, devices that are lost or slow.
SKIPPED = ["a_tensor_larger", "more_channels_than_fit", "many_channels", "running_out", "waiting_too_long"]
GPU = ["--test", "gpu", "--"] + [word for name in SKIPPED for word in ("--skip", name)]
# By what a fault can reach. Each list of arguments is one run of `cargo test`.
SUITES = {
    "shader": [["--test", "shaders"], GPU],
    "host": [["--lib"], ["--test", "cpu_matches_oracle"], ["--test", "float_env"], GPU],
}
# Seconds after which a run counts as failed: a fault can make a loop endless.
LIMIT = 600

FLOAT = "shaders/exact/float.wgsl"
CODE = "shaders/exact/code.wgsl"
LOSS = "shaders/exact/loss.wgsl"

# (name, file, text, replacement)
FAULTS = [
    # Rounding and arithmetic.
    ("shift_right_rne: ties go up", FLOAT, "let odd = (m >> n) & 1u;", "let odd = 1u;"),
    ("shift_right_rne: half rounded up twice", FLOAT, "(m + ((1u << (n - 1u)) - 1u) + odd)", "(m + (1u << (n - 1u)) + odd)"),
    ("round_pack: ties go up", FLOAT, "(rest == middle && (kept & 1u) == 1u)", "(rest == middle)"),
    ("round_pack: subnormals lose a bit", FLOAT, "max(top + e - 23, -149)", "max(top + e - 23, -148)"),
    ("round_pack: beyond infinity", FLOAT, "if (biased >= 254) { return sign | INF; }\n    return sign | min((bitcast<u32>(biased) << 23u) + q, INF);", "return sign | ((bitcast<u32>(biased) << 23u) + q);"),
    ("add: lost sticky bit", FLOAT, "let aligned = (my >> d) | select(0u, 1u, lost != 0u);", "let aligned = my >> d;"),
    ("add: alignment stops early", FLOAT, "min(ex - ey, 27u)", "min(ex - ey, 24u)"),
    ("add: operands not swapped", FLOAT, "let swap = (b & MAGNITUDE) > (a & MAGNITUDE);", "let swap = false;"),
    ("mul_hi: dropped carry", FLOAT, "return ah * bh + (mid >> 16u) + (mid2 >> 16u);", "return ah * bh + (mid >> 16u);"),
    ("div: lost sticky bit", FLOAT, "(q << 1u) | select(0u, 1u, r != 0u)", "(q << 1u)"),
    ("div: one step short", FLOAT, "i < 27u", "i < 26u"),
    ("parts: subnormal exponent off by one", FLOAT, "-149 - bitcast<i32>(up)", "-150 - bitcast<i32>(up)"),
    ("hi_key: infinities count as values", FLOAT, "return ordered + HIDDEN;", "return ordered;"),
    ("from_hi_key: -0 stays", FLOAT, "let ordered = key - HIDDEN;\n    let b = select(~ordered, ordered ^ SIGN, (ordered & SIGN) != 0u);\n    return select(b, 0u, b == SIGN);", "let ordered = key - HIDDEN;\n    let b = select(~ordered, ordered ^ SIGN, (ordered & SIGN) != 0u);\n    return b;"),
    # Codes.
    ("reciprocal: wrong numerator", CODE, "r = (r << 1u) | 1u;", "r = (r << 1u) | select(0u, 1u, i < 20u);"),
    ("quotient: dropped correction", CODE, "q += select(0u, 1u, low);", ""),
    ("quotient: rounds down", CODE, "q += select(0u, 1u, (rest << 1u) > r.ms);", ""),
    ("quotient: second rounding shifts one less", CODE, "clamp(-e, 1, 25)", "clamp(-e, 1, 24)"),
    ("quotient: shift without a bound", CODE, "clamp(-e, 1, 25)", "max(-e, 1)"),
    ("quotient: does not saturate", CODE, "select(whole, 0x00800000u, e >= 0)", "select(whole, 0u, e >= 0)"),
    ("search: guess without its allowance", CODE, "let rt = (r.reciprocal >> 17u) + 1u;", "let rt = r.reciprocal >> 17u;"),
    ("search: threshold half as wide", CODE, "let theta = r.ms >> (((ct - c) >> 23u) & 31u);", "let theta = r.ms >> ((((ct - c) >> 23u) + 1u) & 31u);"),
    ("search: tie direction of odd codes", CODE, "(theta ^ odd)", "theta"),
    ("search: significands not compared", CODE, "(25u << 23u) - 1u + (r.ms & 0x007fffffu)", "(25u << 23u) - 1u"),
    ("search: one window for both signs", CODE, "select(r.window_p, r.window_n, neg)", "r.window_p"),
    ("encode: NaN saturates", CODE, "select(select(full, cap, a == INF), 0u, a > INF)", "select(full, cap, a >= INF)"),
    ("recipe: search beyond its proof", CODE, "s >= (2u << 23u) && s", "s >= (1u << 23u) && s"),
    ("threshold: not above", CODE, "return min((bitcast<u32>(biased) << 23u) + q + 1u, INF);", "return min((bitcast<u32>(biased) << 23u) + q, INF);"),
    ("threshold: parity of the code", CODE, "(k & 1u) == 1u);\n    let hi", "(k & 1u) == 0u);\n    let hi"),
    ("is_clipped: infinity counts", CODE, "(b >> 31u) == 1u) && a < INF;", "(b >> 31u) == 1u);"),
    ("scale_of: a constant unit is not special", CODE, "if (MINMAX && lo != hi) {", "if (MINMAX) {"),
    ("scale_of: zero stays", CODE, "return select(s, 0x3f800000u, s == 0u);", "return s;"),
    ("scale_of: overflow takes the wrong sign", CODE, "div(lo ^ SIGN, from_int(DIVISOR))", "div(lo, from_int(DIVISOR))"),
    ("abs_error_of: infinite x is always NaN", CODE, "(ax == INF && x == out)", "(ax == INF)"),
    ("code_at: no sign", "shaders/pack.wgsl", "return bitcast<i32>(word << (24u - 8u * c)) >> 24u;", "return bitcast<i32>((word << (24u - 8u * c)) >> 24u);"),
    # Ranges, traversal, workgroups.
    ("min_max: infinity counted as NaN", "shaders/min_max.wgsl", "(b & MAGNITUDE) > INF", "(b & MAGNITUDE) >= INF"),
    ("min_max: no barrier before the tile", "shaders/min_max.wgsl", "atomicStore(&slots[i], 0u); }\n    workgroupBarrier();", "atomicStore(&slots[i], 0u); }"),
    ("min_max: no barrier after the tile", "shaders/min_max.wgsl", "rows(tile, lane);\n    flush_tally();\n    workgroupBarrier();", "rows(tile, lane);\n    flush_tally();"),
    ("quantize: no barrier after the tile", "shaders/quantize.wgsl", "flush_tally();\n    workgroupBarrier();", "flush_tally();"),
    ("abs_error: no barrier after the tile", "shaders/abs_error.wgsl", "rows(tile, lane);\n    workgroupBarrier();", "rows(tile, lane);"),
    ("loss: no barrier before the tile", "shaders/loss.wgsl", "clear_loss(lane);\n    workgroupBarrier();", "clear_loss(lane);"),
    ("around: a divisor that does not show to be no zero", "shaders/traverse.wgsl", "n % max(params.units, 1u)", "n % params.units"),
    ("columns: unguarded tail", "shaders/columns.wgsl", "if (i >= params.elems) { break; }", ""),
    ("rows: unguarded tail", "shaders/traverse.wgsl", "    if (i >= params.elems) { return; }\n    row_left -= 1u;", "    row_left -= 1u;"),
    ("rows: a run may end inside a vector", "shaders/traverse.wgsl", "if (row_left >= 4u && i", "if (row_left >= 3u && i"),
    ("rows: a whole tile may reach beyond the chunk", "shaders/traverse.wgsl", "first.left >= TILE_ELEMS && start + TILE_ELEMS <= params.elems;", "first.left >= TILE_ELEMS;"),
    ("place: the unit before", "shaders/traverse.wgsl", "(params.first_unit + 1u + r)", "(params.first_unit + r)"),
    ("tally: workgroups overwrite each other", "shaders/tally.wgsl", "atomicAdd(&counters[params.counters + lane], sum)", "atomicMax(&counters[params.counters + lane], sum)"),
    # Loss.
    ("grid_exp: a clipped unit's grid twice as fine", LOSS, "parts(largest).e - 5", "parts(largest).e - 6"),
    ("to_grid: shifts one less", LOSS, "clamp(-up, 1, 25)", "clamp(-up, 1, 24)"),
    ("loss_sums: dropped carry", "shaders/loss_sums.wgsl", "return select(0u, 1u, old + sum < old);", "return 0u;"),
    ("loss_sums: negative sums not extended", "shaders/loss_sums.wgsl", "bitcast<u32>(bitcast<i32>(top) >> 31u)", "0u"),
    ("loss_sums: slots raise the maximum too little", "shaders/loss_sums.wgsl", "atomicMax(&losses[to + MAX_AT], largest)", "atomicMax(&losses[to + MAX_AT], largest - 1u)"),
    ("abs_error: infinite values count", "shaders/abs_error.wgsl", "if (is_finite(b) && is_finite(out))", "if (is_finite(b))"),
    ("scale: the reach of one side", "shaders/scale.wgsl", "let d = sub(end_n, lo);", "let d = sub(end_n, end_n);"),
    # The CPU path, and what the host adds to the GPU path.
    ("cpu quantize: multiplies by the reciprocal", "src/cpu/quantize.rs", "let y = v / s;", "let y = v * (1.0 / s);"),
    ("cpu quantize: ties away from zero", "src/cpu/quantize.rs", "let whole = (near + WHOLE) - WHOLE;", "let whole = near.round();"),
    ("cpu quantize: infinity counts as clipped", "src/cpu/quantize.rs", "u32::from(finite & ((whole < qmin) | (whole > qmax)))", "u32::from((whole < qmin) | (whole > qmax))"),
    ("cpu quantize: NaN saturates", "src/cpu/quantize.rs", "if v.is_nan() { 0.0 }", "if v.is_nan() { qmax }"),
    ("cpu quantize: symmetric clamp", "src/cpu/quantize.rs", "whole.clamp(qmin, qmax)", "whole.clamp(-qmax, qmax)"),
    ("cpu scale: zero stays", "src/cpu/scale.rs", "if s == 0.0 { 1.0 } else { s }", "s"),
    ("cpu scale: a constant unit is not special", "src/cpu/scale.rs", "Mapping::MinMax if lo != hi => {", "Mapping::MinMax if lo != hi || hi != 0.0 => {"),
    ("cpu scale: overflow rounds once less", "src/cpu/scale.rs", "hi / divisor + -lo / divisor", "(hi / 2.0 - lo / 2.0) / divisor * 2.0"),
    ("cpu min_max: infinities in the range", "src/cpu/min_max.rs", "if finite & (v > hi[i])", "if v > hi[i]"),
    ("cpu min_max: unvisited tail", "src/cpu/min_max.rs", "    step(rest);\n", "    step(&rest[..0]);\n"),
    ("cpu dequantize: flushes subnormals", "src/cpu/dequantize.rs", "f32::from(code) * s }", "Some(f32::from(code) * s).filter(|v| !v.is_subnormal()).unwrap_or(0.0) }"),
    ("twin add: lost sticky bit", "src/exact/float.rs", "(my >> d) | u32::from(lost != 0)", "my >> d"),
    ("twin search: tie direction of odd codes", "src/exact/code.rs", "theta ^ odd", "theta"),
    ("sums: cross term with the wrong sign", "src/loss.rs", "cross.wrapping_mul(-times)", "cross.wrapping_mul(times)"),
    ("host: cross sum without its sign", "src/gpu/call.rs", "(cross << 32).cast_signed() >> 32", "cross.cast_signed()"),
    ("host: last bytes not uploaded", "src/gpu/job.rs", "last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);", ""),
    ("host: chunks forget where their run began", "src/layout.rs", "self.inner_elems - start % self.inner_elems", "self.inner_elems"),
    ("host: scales of the first slab for all", "src/gpu/call.rs", "&scales[range.clone()]", "&scales[..range.len()]"),
]

# Faults that change no result that a caller can see, and why.
HARMLESS = {}


def fitted(fault):
    """The faulty text of a fault's file; an error where the fault does not fit."""
    name, file, old, new = fault
    text = (ROOT / file).read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{name}: its text occurs {text.count(old)} times in {file}, 1 is expected:\n{old}")
    return text.replace(old, new)


def copy_tree():
    """Copies what git knows and does not ignore, as of now: cargo must not take an earlier run's faulty build for it."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    shutil.rmtree(TREE, ignore_errors=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, TREE / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


FAILED = re.compile(r"^test (\S+)(?: - should panic)? +\.\.\. FAILED", re.MULTILINE)


def run(arguments):
    """The tests that failed, a run that did not end or ended without a verdict among them; and what was printed."""
    environment = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "target"), CI="true", RUST_BACKTRACE="0")
    environment.setdefault("WGPU_QUANT_DEVICE", "gpu")
    suite = "lib" if arguments[0] == "--lib" else arguments[1]
    command = ["timeout", "--kill-after=10", str(LIMIT), "cargo", "test", *arguments]
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, errors="replace")
    if "error: could not compile" in done.stderr:
        raise SystemExit(f"does not compile:\n{done.stderr}")
    names = {failed.split("::", 1)[-1] if suite == "gpu" else failed for failed in FAILED.findall(done.stdout)}
    if done.returncode == 124:
        names.add(f"(not done in {LIMIT} s)")
    elif done.returncode and not names:
        names.add(f"(ended with {done.returncode})")
    return [f"{suite}: {name}" for name in sorted(names)], done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    texts = {fault[0]: fitted(fault) for fault in FAULTS}
    print(f"{len(FAULTS)} faults fit the source")
    if options.check:
        return 0
    faults = [f for f in FAULTS if not options.only or any(word in f[0] for word in options.only)]

    copy_tree()
    printed = ""
    for arguments in {tuple(arguments): arguments for suites in SUITES.values() for arguments in suites}.values():
        failed, output = run(arguments)
        if failed:
            raise SystemExit(f"without any fault these fail: {failed}")
        printed += output
    adapters = re.findall(r"^adapter (.*): \d+ passed", printed, re.MULTILINE)
    print(f"without a fault every test passes, on {', '.join(adapters)}", flush=True)

    rows, survivors = [], []
    for name, file, _, _ in faults:
        started = time.monotonic()
        target = TREE / file
        original = target.read_text()
        target.write_text(texts[name])
        kind = "shader" if file.endswith(".wgsl") else "host"
        caught = [failed for arguments in SUITES[kind] for failed in run(arguments)[0]]
        target.write_text(original)
        if any("parses_and_validates" in failed for failed in caught):
            raise SystemExit(f"{name}: is no valid shader")
        if not caught:
            survivors.append(name)
        verdict = f"{len(caught)} tests" if caught else HARMLESS.get(name, "SURVIVES")
        print(f"{name}: {verdict} ({time.monotonic() - started:.0f} s): {', '.join(caught)}", flush=True)
        rows.append((name, file, caught, verdict))

    unexplained = [name for name in survivors if name not in HARMLESS]
    print(f"{len(faults)} faults, {len(faults) - len(survivors)} caught, survivors: {survivors or 'none'}")
    if options.output:
        options.output.write_text(document(rows, ", ".join(adapters)))
    return 1 if unexplained else 0


HEAD = """# Planted faults

Written by `scripts/mutants.py`, which plants small faults in the shaders, the CPU path and the host's part of the GPU path,
one at a time, and runs the tests: {faults} faults, {caught} caught, {selftest} of them by the self-test too. A row names how
many tests of each suite failed, and one of them. The self-test compares an adapter with the CPU path, so that faults of the
integer twin, or of what both share, are for the other tests. The GPU tests ran on

    {adapters}

| fault | file | caught by | self-test |
|---|---|---|---|
"""


def document(rows, adapters):
    lines = []
    for name, file, caught, verdict in rows:
        by_suite = {}
        for test in caught:
            suite, test = test.split(": ", 1)
            by_suite.setdefault(suite, []).append(test)
        shown = "; ".join(f"{suite}: {len(tests)}, `{tests[0]}`" for suite, tests in by_suite.items())
        lines.append(f"| {name} | `{file}` | {shown or verdict} | {'yes' if by_selftest(caught) else '-'} |\n")
    caught = sum(bool(caught) for _, _, caught, _ in rows)
    selftest = sum(by_selftest(caught) for _, _, caught, _ in rows)
    return HEAD.format(faults=len(rows), caught=caught, selftest=selftest, adapters=adapters) + "".join(lines)


def by_selftest(caught):
    return any("self_test" in test for test in caught)


if __name__ == "__main__":
    sys.exit(main())
