#!/usr/bin/env python3
"""Do the tests have teeth? Plants small faults, one at a time, and reports which tests caught each.

    scripts/mutants.py                     every fault; some four hours on two cores
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
    "device": [["--lib"], GPU],
    "host": [["--lib"], ["--test", "cpu_matches_oracle"], ["--test", "float_env"], GPU],
}
# Seconds after which a run counts as failed: a fault can make a loop endless.
LIMIT = 600

FLOAT = "shaders/exact/float.wgsl"
CODE = "shaders/exact/code.wgsl"
SCALE = "shaders/exact/scale.wgsl"
LOSS = "shaders/exact/loss.wgsl"
NARROW = "shaders/exact/narrow.wgsl"
WIDEN = "shaders/exact/widen.wgsl"
INT = "shaders/codec/int.wgsl"
ONCE = "shaders/once.wgsl"
HELD = "shaders/held.wgsl"
FOURS = "shaders/fours.wgsl"
TRAVERSE = "shaders/traverse.wgsl"
COLUMNS = "shaders/columns.wgsl"
SUMS = "shaders/loss_sums.wgsl"
CALL = "src/gpu/call.rs"
CUT = "src/gpu/cut.rs"
CODER = "src/cpu/code.rs"
SHORT = "src/cpu/own_grid/short.rs"
GRID = "src/cpu/own_grid.rs"
TOTALS = "src/cpu/own_grid/short/totals.rs"
LAYOUT = "src/layout.rs"

# (name, file, text, replacement)
FAULTS = [
    # Rounding and arithmetic.
    ("div_by: lost sticky bit", FLOAT, "q | sticky, x.e", "q, x.e"),
    ("div_by: dropped correction", FLOAT, "let q = low + select(0u, 1u, more);", "let q = low;"),
    ("magnitude_keys: infinities count as values", FLOAT, "(b << vec4<u32>(1u)) + 2u * HIDDEN", "(b << vec4<u32>(1u)) + HIDDEN"),
    ("shift_right_rne: ties go up", FLOAT, "let odd = (m >> n) & 1u;", "let odd = 1u;"),
    ("shift_right_rne: half rounded up twice", FLOAT, "(m + ((1u << (n - 1u)) - 1u) + odd)", "(m + (1u << (n - 1u)) + odd)"),
    ("round_pack: ties go up", FLOAT, "(rest == middle && (kept & 1u) == 1u)", "(rest == middle)"),
    ("round_pack: subnormals lose a bit", FLOAT, "max(top + e - 23, -149)", "max(top + e - 23, -148)"),
    ("round_pack: beyond infinity", FLOAT, "if (biased >= 254) { return sign | INF; }\n    return sign | min((bitcast<u32>(biased) << 23u) + q, INF);", "return sign | ((bitcast<u32>(biased) << 23u) + q);"),
    ("add: lost sticky bit", FLOAT, "let aligned = (my >> d) | select(0u, 1u, lost != 0u);", "let aligned = my >> d;"),
    ("add: alignment stops early", FLOAT, "min(ex - ey, 27u)", "min(ex - ey, 24u)"),
    ("add: operands not swapped", FLOAT, "let swap = (b & MAGNITUDE) > (a & MAGNITUDE);", "let swap = false;"),
    ("mul_hi: dropped carry", FLOAT, "return ah * bh + (mid >> 16u) + (mid2 >> 16u);", "return ah * bh + (mid >> 16u);"),
    ("product: lost sticky bit", FLOAT, "top | select(0u, 1u, lost != 0u), e", "top, e"),
    ("div: lost sticky bit", FLOAT, "(q << 1u) | select(0u, 1u, r != 0u)", "(q << 1u)"),
    ("div: one step short", FLOAT, "i < 27u", "i < 26u"),
    ("parts: subnormal exponent off by one", FLOAT, "-149 - bitcast<i32>(up)", "-150 - bitcast<i32>(up)"),
    ("to_int: small values round up", FLOAT, "clamp(-x.e, 1, 25)", "clamp(-x.e, 1, 24)"),
    ("hi_key: infinities count as values", FLOAT, "return ordered + HIDDEN;", "return ordered;"),
    ("from_hi_key: -0 stays", FLOAT, "let ordered = key - HIDDEN;\n    let b = select(~ordered, ordered ^ SIGN, (ordered & SIGN) != 0u);\n    return select(b, 0u, b == SIGN);", "let ordered = key - HIDDEN;\n    let b = select(~ordered, ordered ^ SIGN, (ordered & SIGN) != 0u);\n    return b;"),
    # Codes.
    ("reciprocal: a digit short", CODE, "i < 3u", "i < 2u"),
    ("narrow: guess without its half", CODE, "(0x00200000u + r.factor + 128u)", "(r.factor + 128u)"),
    ("narrow: tie direction of odd codes", CODE, "(theta_of(c, ms) ^ odd)", "theta_of(c, ms)"),
    ("theta_of: threshold half as wide", CODE, "return ms >> (((ct - c) >> 23u) & 31u);", "return ms >> ((((ct - c) >> 23u) + 1u) & 31u);"),
    ("theta_of: significands not compared", CODE, "let ct = (25u << 23u) - 1u + (ms & 0x007fffffu);\n    return", "let ct = (25u << 23u) - 1u;\n    return"),
    ("above_base: one clip for both signs", CODE, "select(r.clip_p, r.clip_n, (b >> 31u) == 1u) - 1u - low", "r.clip_p - 1u - low"),
    ("above_base: NaN saturates", CODE, "select(select(extended(a), 0xffffffffu, a == INF), 0u, a > INF)", "select(extended(a), 0xffffffffu, a >= INF)"),
    ("threshold: not above", CODE, "+ (m >> 8u) + 1u;", "+ (m >> 8u);"),
    ("is_quick: subnormal bases", CODE, "return s >= (2u << 23u);", "return s >= (1u << 23u);"),
    ("four_steps: doubt half as wide", CODE, "within && min(min(d.x, d.y), min(d.z, d.w)) >= 1024u", "within && min(min(d.x, d.y), min(d.z, d.w)) >= 512u"),
    ("four_steps: what is clipped is certain", CODE, "let within = (left.x | left.y | left.z | left.w) < SIGN;\n    return FourSteps(guess - (d", "let within = true;\n    return FourSteps(guess - (d"),
    ("four_inner_steps: no doubt", CODE, "neg, min(min(d.x, d.y), min(d.z, d.w)) >= 1024u, z);", "neg, true, z);"),
    ("four_wide_steps: tie direction of odd codes", CODE, "let t = theta ^ (vec4<u32>() - (guess & vec4<u32>(1u)));", "let t = theta;"),
    ("is_direct: values beyond the largest", CODE, "s < (246u << 23u)", "s < (250u << 23u)"),
    ("four_values: ties go up", CODE, "let odd = (p >> r) & rest & vec4<u32>(1u);\n    let m = (p", "let odd = rest & vec4<u32>(1u);\n    let m = (p"),
    ("recipe: steps counted from 0", CODE, "bitcast<u32>(qmax) - bitcast<u32>(z)", "bitcast<u32>(qmax)"),
    ("threshold: parity of the code", CODE, "(k & 1u) == 1u);\n    let hi", "(k & 1u) == 0u);\n    let hi"),
    ("is_clipped: infinity counts", CODE, "(b >> 31u) == 1u) && a < INF;", "(b >> 31u) == 1u);"),
    ("abs_error_of: infinite x is always NaN", CODE, "(ax == INF && x == out)", "(ax == INF)"),
    # Scales and zero points.
    ("scale_of: a constant unit is not special", SCALE, "(r.kind != KIND_MINMAX || lo == hi)", "r.kind != KIND_MINMAX"),
    ("scale_of: overflow takes the wrong sign", SCALE, "sub(above, div_by(left", "add(above, div_by(left"),
    ("scale_of: zero stays", SCALE, "return select(s, r.zero_scale, s == 0u);", "return s;"),
    ("scale_of: every scheme's zero scale is 1", SCALE, "select(s, r.zero_scale, s == 0u)", "select(s, 0x3f800000u, s == 0u)"),
    ("up_to_zero: the least value as it is", SCALE, "return select(0u, lo, (lo >> 31u) == 1u);", "return lo;"),
    ("down_to_zero: the largest value as it is", SCALE, "return select(hi, 0u, (hi >> 31u) == 1u);", "return hi;"),
    ("zero_point_of: minmax has one too", SCALE, "if (r.kind != KIND_AFFINE) { return 0; }", "if (r.kind == KIND_ABSMAX) { return 0; }"),
    ("zero_point_of: beyond the codes", SCALE, "min(max(z, r.qmin), r.qmax)", "max(z, r.qmin)"),
    ("cast_scale: tiny values have the scale of zeros", SCALE, "return select(s, 1u, s == 0u);", "return s;"),
    ("reach: the reach of one side", "shaders/unit.wgsl", "let d = sub(end_n, lo);", "let d = sub(end_n, end_n);"),
    ("one: a dispatch of one dimension", "shaders/one.wgsl", "return group.x + group.y * groups.x;", "return group.x;"),
    # Other float types, as input and as codes.
    ("from_f64: lost sticky bit", WIDEN, "| (rest >> 22u) | sticky", "| (rest >> 22u)"),
    ("from_f64: a NaN of low bits is infinity", WIDEN, "(top | rest) == 0u", "top == 0u"),
    ("to_bf16: ties go up", NARROW, "(b + 0x7fffu + ((b >> 16u) & 1u))", "(b + 0x8000u)"),
    ("to_f16: tiny values round up", NARROW, "clamp(14 - exponent, 14, 26)", "clamp(14 - exponent, 14, 24)"),
    ("to_f16: saturates to infinity", NARROW, "min(h, 0x7bffu)", "min(h, 0x7c00u)"),
    ("cast clips: not where it saturates", "shaders/codec/cast.wgsl", "(to_f16(b, false) & 0x7fffu)", "(to_f16(b, params.saturate == 1u) & 0x7fffu)"),
    ("input f16: the other half of a word", "shaders/input/f16.wgsl", ">> (16u * (i % 2u))", ">> (16u * ((i + 1u) % 2u))"),
    ("input f64: the high word of the wrong element", "shaders/input/f64.wgsl", "select(w.y, w.w, second)", "w.y"),
    # Codes in words.
    ("int field_of: negative codes not cut to their bits", INT, "(bitcast<u32>(encode(b, r, CODE_BITS == 16u)) + bitcast<u32>(r.z)) & FIELD", "(bitcast<u32>(encode(b, r, CODE_BITS == 16u)) + bitcast<u32>(r.z))"),
    ("int pad_of: rows filled up with 0", INT, "{ return bitcast<u32>(r.z) & FIELD; }", "{ return 0u; }"),
    ("int steps: no sign", INT, "(field ^ params.sign_bit) - params.sign_bit", "field"),
    ("shift_of: four codes to every word", "shaders/pack.wgsl", "CODE_BITS * (i % (32u / CODE_BITS))", "CODE_BITS * (i % 4u)"),
    ("quantize store: a last half word is lost", "shaders/quantize.wgsl", "} else if (i - 4u < params.elems) {", "} else if (i < params.elems) {"),
    ("quantize store: a third 16-bit code is lost", "shaders/quantize.wgsl", "if (i + 2u < params.elems)", "if (i + 3u < params.elems)"),
    ("values: a word beyond the last is written", "shaders/values.wgsl", "if (i + 3u < params.elems)", "if (i + 2u < params.elems)"),
    ("count: infinity counted as NaN", "shaders/tally.wgsl", "select(0u, 1u, a > INF)", "select(0u, 1u, a >= INF)"),
    # Ranges of many batches.
    ("average: the whole distance", "shaders/exact/observe.wgsl", "add(v, mul(c, d))", "add(v, d)"),
    ("average: what overflows is kept", "shaders/exact/observe.wgsl", "if (is_finite(d)) {", "if (d != 0xffffffffu) {"),
    ("merged: a batch without a value is one of zeros", "shaders/exact/observe.wgsl", "if (batch.x < 2u * HIDDEN) { return seen; }", ""),
    ("merged: the first batch is averaged with 0", "shaders/exact/observe.wgsl", "if (seen.x == 0u) {", "if (seen.x == 0xffffffffu) {"),
    ("observe: slabs all begin at unit 0", "shaders/observe.wgsl", "params.first_unit + unit", "unit"),
    # Recordings over a caller's buffers.
    ("plan: the input begins with its binding", "src/gpu/bind.rs", "params.x_at = saturate(elems / 4);", "params.x_at = 0;"),
    ("plan: rows begin with a vector", "src/gpu/bind.rs", "params.first_at += rest;", ""),
    ("plan: counts begin with their binding", "src/gpu/bind.rs", "params.counters += words", "params.counters += 0 * words"),
    ("plan: ranges are not cleared", "src/gpu/plan.rs", "(Space::Ranges, ranges)", "(Space::Ranges, 0..0)"),
    ("plan: sums of the loss are not cleared", "src/gpu/plan.rs", "(Space::LossSums, 0..4 * (LOSS_WORDS * units) as u64)", "(Space::LossSums, 0..0)"),
    ("plan: the next slice's place in the slice before", "src/gpu/bind.rs", "begin <= start) - 1;", "begin <= start).saturating_sub(2);"),
    ("plan: tensors of a batch with the first one's recipes", "src/gpu/bind.rs", "params.recipes_at = words / saturate(RECIPE_WORDS)", "params.recipes_at = 0 * words"),
    ("plan: scales of a batch at the first one's", "src/gpu/bind.rs", "Space::Scales => params.scales_at = words,", "Space::Scales => params.scales_at = 0 * words,"),
    ("bind: the last vector half bound", "src/gpu/bind.rs", "self.vector_bytes(step.tensor).min(16)", "4"),
    ("batch: the row before", "shaders/batch.wgsl", "let before = workgroup <", "let before = workgroup <="),
    ("batch: tiles counted from the first row's", "shaders/batch.wgsl", "return workgroup - params.first_workgroup;", "return workgroup;"),
    ("stages: the loss of given scales without its ranges", "src/gpu/stages.rs", "if once.is_none() && (with_loss || !(is_given || scheme.is_cast())) {", "if once.is_none() && !(is_given || scheme.is_cast()) {"),
    ("stages: rows cut inside a row begin with their window", "src/gpu/stages.rs", "(chunk.at.start + chunk.first_at) * self.elem_bytes", "chunk.at.start * self.elem_bytes"),
    ("clear: the last word stays", "shaders/clear.wgsl", "i < params.elems", "i + 1u < params.elems"),
    # Ranges, traversal, workgroups.
    ("min_max: no barrier after the tile", "shaders/min_max.wgsl", "traverse(tile, lane);\n    workgroupBarrier();", "traverse(tile, lane);"),
    ("abs_error: no barrier after the tile", "shaders/abs_error.wgsl", "traverse(tile, lane);\n    workgroupBarrier();", "traverse(tile, lane);"),
    ("loss_sums: no barrier before the tile", "shaders/quantize.wgsl", "    if (FUSED) { workgroupBarrier(); }\n", ""),
    ("loss_sums: no barrier after the tile", SUMS, "fn drain_loss(tile: u32, lane: u32) {\n    workgroupBarrier();", "fn drain_loss(tile: u32, lane: u32) {"),
    ("once: no barrier before the ranges", ONCE, "atomicStore(&tile_lo[i], 0u);\n    }\n    workgroupBarrier();", "atomicStore(&tile_lo[i], 0u);\n    }"),
    ("fours: a chunk's units counted from 0", FOURS, "tile_unit = params.first_unit + r;", "tile_unit = r;"),
    ("fours: a unit begins a slot early", FOURS, "in_run = at - r * run;", "in_run = at - r * run + 1u;"),
    ("fours: what is in doubt stays", FOURS, "left |= (both(first) | (both(second) << 2u)) << (k & 31u);", "left |= 0u;"),
    ("fours: a word's neighbour is summed twice", FOURS, "again = ((doubt >> k) & 1u) == 0u;", "again = false;"),
    ("fours: half a word is left over", FOURS, "select(pair, 3u, PAIRS && pair != 0u)", "pair"),
    ("fours: the tile's end is not left over", FOURS, "            left |= doubt;\n", ""),
    ("fours: a slot short", FOURS, "unit_in_tile(end - 1u - start) + 1u", "unit_in_tile(end - 1u - start)"),
    ("held: infinities are certain", HELD, "!UNCLIPPED || ~lo >= 2u * HIDDEN", "true"),
    ("held: no barrier before the ranges", HELD, "begin_loss(tile, lane);\n        workgroupBarrier();", "begin_loss(tile, lane);"),
    ("held: no barrier after the ranges", HELD, "    workgroupBarrier();\n    hi = atomicLoad", "    hi = atomicLoad"),
    ("held: a tile's units counted from 0", HELD, "params.first_unit + tile * params.tile_units + slot", "params.first_unit + slot"),
    ("held: a word's neighbour is summed twice", HELD, "if (((doubt >> ((begin + c / 4u) & 31u)) & 1u) == 1u) { visit_loss(b, field); }", "visit_loss(b, field);"),
    ("held: the loss does not know what clips", HELD, "known = reach(least, most, own);", "known = 0u;"),
    ("rows: a slot for each whole run only", "src/gpu/shader.rs", "/ MIN_RUN * 2 + 3", "/ MIN_RUN + 3"),
    ("rows: a tile of several runs as one", TRAVERSE, "dense && first.left >= params.tile_elems && start", "dense && start"),
    ("tally: workgroups overwrite each other", "shaders/tally.wgsl", "atomicAdd(&counters[params.counters + CLIPPED_ELEMS]", "atomicMax(&counters[params.counters + CLIPPED_ELEMS]"),
    ("min_max: no barrier before the tile", "shaders/min_max.wgsl", "atomicStore(&slots[i], 0u); }\n    workgroupBarrier();", "atomicStore(&slots[i], 0u); }"),
    ("once: the loss does not know what clips", ONCE, "know_largest(i, reach(lo, hi, r));", "know_largest(i, 0u);"),
    ("around: a divisor that does not show to be no zero", TRAVERSE, "n % max(params.units, 1u)", "n % params.units"),
    ("several: unguarded tail", TRAVERSE, "        if (i + c >= params.elems) { break; }\n", ""),
    ("several: a run may end inside a vector", TRAVERSE, "let together = row_left >= 4u", "let together = row_left >= 3u"),
    ("place: the unit before", TRAVERSE, "run = 1u + r;", "run = r;"),
    ("place: what fills up a row is an element", TRAVERSE, "column, column < params.row_elems);", "column, true);"),
    ("place: a chunk begins where its first byte does", TRAVERSE, "Place(unit, run, left, params.first_at + i", "Place(unit, run, left, i"),
    ("place_in_row: the first row has no groups", TRAVERSE, "let run = params.first_row_runs + row", "let run = row"),
    ("columns: unguarded tail", COLUMNS, "if (i >= params.elems) { break; }", ""),
    ("run_by_run: a chunk begins with a whole run", COLUMNS, "params.first_left + (thread - 1u) * params.run", "thread * params.run"),
    # Loss.
    ("four_to_grid: ties go up", CODE, "let odd = (m >> right) & vec4<u32>(1u);\n    let small", "let odd = vec4<u32>(1u);\n    let small"),
    ("loss by four: on any grid", SUMS, "is_fine(s) && grid == parts(s).e - 1", "is_fine(s)"),
    ("loss by four: codes in doubt count", SUMS, "    if (!certain) { return; }\n", ""),
    ("value_table: the next code's", SUMS, "four_values_to_grid(vec4<u32>(k), s).x", "four_values_to_grid(vec4<u32>(k + 1u), s).x"),
    ("value_table: the first unit's for all", SUMS, "(ONCE || loss_slot < TABLE_UNITS)", "(ONCE || true)"),
    ("loss by four: nothing is below base(s)", SUMS, "if (f.below >= SIGN)", "if (f.below > 0xfffffff0u)"),
    ("noise_top: dropped", SUMS, "noise_top += select(0u, 1u, noise_sum.y < before);", ""),
    ("fold_fours: cross sum without its sign", SUMS, "bitcast<u32>(bitcast<i32>(f.kh) >> 20u)", "f.kh >> 20u"),
    ("grid_exp: a clipped unit's grid twice as fine", LOSS, "parts(largest).e - 5", "parts(largest).e - 6"),
    ("to_grid: shifts one less", LOSS, "let right = shift_right_rne(x.m, bitcast<u32>(clamp(-up, 1, 25)));", "let right = shift_right_rne(x.m, bitcast<u32>(clamp(-up, 1, 24)));"),
    ("loss_sums: dropped carry", SUMS, "return select(0u, 1u, old + sum < old);", "return 0u;"),
    ("loss_sums: negative sums not extended", SUMS, "bitcast<u32>(bitcast<i32>(top) >> 31u)", "0u"),
    ("loss_sums: slots raise the maximum too little", SUMS, "atomicMax(&losses[to + MAX_AT], largest)", "atomicMax(&losses[to + MAX_AT], largest - 1u)"),
    ("abs_error: infinite values count", "shaders/abs_error.wgsl", "if (is_finite(b) && is_finite(out))", "if (is_finite(b))"),
    # The CPU path, and the integer twins.
    ("cpu short units: the zero point's lower bits", CODER, "(byte & 0xff).wrapping_mul", "(byte & 0x7f).wrapping_mul"),
    ("cpu short units: the least value is the largest", SHORT, "keys.map(|key| !key)", "keys"),
    ("cpu short units: as many of any length", SHORT, "x.len() == units * unit_elems", "x.len() <= units * unit_elems"),
    ("cpu short units: scales of too many exponents", TOTALS, "const EXPONENTS: u32 = 4;", "const EXPONENTS: u32 = 30;"),
    ("cpu short units: sums of too many rounds", TOTALS, "const ROUNDS: usize = 63;", "const ROUNDS: usize = 6300;"),
    ("cpu loss: a guess is a code", GRID, "2.0 * n as f32", "-64.0 * n as f32"),
    ("cpu loss: sums of too many elements to a lane", GRID, "x.chunks(LANE_ELEMS * LANES).zip(codes.chunks_mut(LANE_ELEMS * LANES))", "x.chunks(3 * LANE_ELEMS * LANES).zip(codes.chunks_mut(3 * LANE_ELEMS * LANES))"),
    ("cpu loss: the last values of a unit are none", GRID, "last.as_flattened_mut()[..x.len()].copy_from_slice(x);\n            let made", "let made"),
    ("cpu short units: no loss is too large", SHORT, "have_sums &= largest[i] < OwnGrid::MOST", "have_sums |= largest[i] < OwnGrid::MOST"),
    ("cpu code: multiplies by the reciprocal", CODER, "let y = if v.is_nan() { 0.0 } else { v / s };\n                // In", "let y = if v.is_nan() { 0.0 } else { v * (1.0 / s) };\n                // In"),
    ("cpu code: codes each by the reciprocal", CODER, "(self.made)(v / s + WHOLE, s, z)", "(self.made)(v * (1.0 / s) + WHOLE, s, z)"),
    ("cpu code: halves are not rounded to even", CODER, "const WHOLE: f32 = 12_582_912.0;", "const WHOLE: f32 = 8_388_608.0;"),
    ("cpu code: infinity counts as clipped", CODER, "Counts::new(clipped - inf, nan, inf));", "Counts::new(clipped, nan, inf));"),
    ("cpu code: NaN saturates", CODER, "let y = if v.is_nan() { 0.0 } else { v / s };\n                // In", "let y = if v.is_nan() { last } else { v / s };\n                // In"),
    ("cpu decode: no zero point", CODER, "((self.steps)(code.bits()) - z) as f32 * s", "(self.steps)(code.bits()) as f32 * s"),
    ("cpu scale: overflow rounds once less", "src/cpu/scale.rs", "width / divisor } else { hi / divisor + -lo / divisor }", "width / divisor } else { (hi / 2.0 - lo / 2.0) / divisor * 2.0 }"),
    ("cpu min_max: infinities in the range", "src/cpu/min_max.rs", "if finite & (v > *hi)", "if v > *hi"),
    ("cpu scale: zero stays", "src/cpu/scale.rs", "if s == 0.0 { scheme.zero_scale() } else { s }", "s"),
    ("cpu scale: a constant unit is not special", "src/cpu/scale.rs", "Mapping::MinMax if lo != hi =>", "Mapping::MinMax if lo != hi || hi != 0.0 =>"),
    ("cpu zero_point: ties away from zero", "src/cpu/scale.rs", ".round_ties_even().clamp", ".round().clamp"),
    ("cpu min_max: unvisited tail", "src/cpu/min_max.rs", "rest.chunks(LANES).for_each(step);", "rest[..0].chunks(LANES).for_each(step);"),
    ("twin add: lost sticky bit", "src/exact/float.rs", "(my >> d) | u32::from(lost != 0)", "my >> d"),
    ("twin narrow: tie direction of odd codes", "src/exact/code.rs", "theta_of(c, ms) ^ odd", "theta_of(c, ms)"),
    ("twin from_f64: a NaN of low bits is infinity", "src/exact/widen.rs", "(top | rest) == 0", "top == 0"),
    # What both paths share, and what the host adds to the GPU path.
    ("scheme: half-range divides as absmax", "src/scheme.rs", "Mapping::HalfRange => steps / 2.0,", "Mapping::HalfRange => self.qmax() as f32,"),
    ("quantized: nibbles of odd rows", "src/quantized.rs", "(4 * (i % row % 2))", "(4 * (i % 2))"),
    ("tensor: rows read as if they were dense", "src/tensor.rs", "(row * self.row_pitch_elems + column)", "(row * self.row_elems + column)"),
    ("sums: cross term with the wrong sign", "src/loss.rs", "cross.wrapping_mul(-times)", "cross.wrapping_mul(times)"),
    ("layout: chunks forget where their run began", LAYOUT, "units.run_end(elem) - elem", "units.inner_elems"),
    ("layout: slabs of 4-bit codes end inside a byte", LAYOUT, "if self.align > 1 || most >= 8 { (most & !7).max(8) } else { most }", "most"),
    ("host: cross sum without its sign", CALL, "(cross << 32).cast_signed() >> 32", "cross.cast_signed()"),
    ("host: last bytes not uploaded", "src/gpu/job.rs", "view.slice(..bytes.len()).copy_from_slice(bytes);", "view.slice(..bytes.len() & !3).copy_from_slice(&bytes[..bytes.len() & !3]);"),
    ("host: scales of the first slab for all", CALL, "&all[at(bytes.start)..at(bytes.end)]", "&all[..at(bytes.end - bytes.start)]"),
    ("host: tiles of one pass end inside a word", CUT, "8 >> inner_elems.trailing_zeros().min(3)", "4 >> inner_elems.trailing_zeros().min(2)"),
    ("host: groups of short rows as columns", CUT, "_ if units.outer == 1 => elems,", "_ if units.outer == 1 => u64::from(params.row_slots),"),
    ("host: rows far apart, cut inside a row", CALL, "(row * x.row_pitch_elems() + column) * size", "row * x.row_pitch_elems() * size"),
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
        kind = "shader" if file.endswith(".wgsl") else "device" if file.startswith("src/gpu/") else "host"
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
