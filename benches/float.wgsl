// What exactness is measured against: the same work by kernels that need no particular bits. Floats throughout, a product
// with 1 / s in place of a quotient, no NaN, no infinities, no counts, whole tiles only.
// Prepended are `const AFFINE` (uint8 with a zero point, else int8 by the largest magnitude) and `const BITS` (8 or 4, of
// groups). Invocations take 4 elements at a time, the workgroup's side by side; those of `_wide` entry points take 16 or 32
// neighbours, and write whole vectors.

const LANES = 256u;
const ROW_VECTORS = 1024u;      // rows of 4096 elements

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> wide_codes: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> range: array<atomic<u32>, 2>;
@group(0) @binding(4) var<storage, read> found: array<u32, 2>;
@group(0) @binding(5) var<storage, read_write> scales: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read> coded: array<u32>;
@group(0) @binding(8) var<storage, read> wide_coded: array<vec4<u32>>;

struct At {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

fn tile_of(at: At) -> u32 { return at.group.x + at.group.y * at.groups.x; }

// The k-th of an invocation's four vectors: side by side with the other invocations', or with its own.
fn vector_of(at: At, k: u32) -> u32 { return tile_of(at) * 4u * LANES + k * LANES + at.lane; }

fn neighbour_of(at: At, k: u32) -> u32 { return 4u * (tile_of(at) * LANES + at.lane) + k; }

// Bits of which the larger is that of the larger float.
fn ordered(f: f32) -> u32 {
    let b = bitcast<u32>(f);
    return select(b | 0x80000000u, ~b, b >> 31u == 1u);
}

fn from_ordered(o: u32) -> f32 { return bitcast<f32>(select(o & 0x7fffffffu, ~o, o >> 31u == 0u)); }

fn most_of(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }

struct Code { inverse: f32, zero: f32, least: f32, most: f32 }

fn code_of(amax: f32) -> Code {
    let most = select(127.0, 7.0, BITS == 4u);
    return Code(most / amax, 0.0, -most - 1.0, most);
}

// From the range of the whole tensor.
fn code_of_tensor() -> Code {
    if (!AFFINE) { return code_of(from_ordered(found[0])); }
    let hi = max(from_ordered(found[0]), 0.0);
    let lo = min(-from_ordered(found[1]), 0.0);
    let inverse = 255.0 / (hi - lo);
    return Code(inverse, round(-lo * inverse), 0.0, 255.0);
}

fn quantized(v: vec4<f32>, code: Code) -> vec4<u32> {
    let q = clamp(round(v * code.inverse) + code.zero, vec4(code.least), vec4(code.most));
    return vec4<u32>(vec4<i32>(q));
}

fn pack8(q: vec4<u32>) -> u32 {
    return (q.x & 0xffu) | ((q.y & 0xffu) << 8u) | ((q.z & 0xffu) << 16u) | (q.w << 24u);
}

fn pack4(q: vec4<u32>) -> u32 { return (q.x & 15u) | ((q.y & 15u) << 4u) | ((q.z & 15u) << 8u) | ((q.w & 15u) << 12u); }

@compute @workgroup_size(1)
fn clear() {
    atomicStore(&range[0], 0u);
    atomicStore(&range[1], 0u);
}

var<workgroup> highs: array<f32, LANES>;
var<workgroup> lows: array<f32, LANES>;

// Tiles of 16 vectors an invocation.
@compute @workgroup_size(LANES)
fn reduce(at: At) {
    let start = tile_of(at) * 16u * LANES;
    let end = arrayLength(&x);
    var hi = vec4<f32>(-3e38);
    var lo = vec4<f32>(3e38);
    if (start + 16u * LANES <= end) {
        for (var k = 0u; k < 16u; k++) {
            let v = x[start + k * LANES + at.lane];
            if (AFFINE) {
                hi = max(hi, v);
                lo = min(lo, v);
            } else {
                hi = max(hi, abs(v));
            }
        }
    }
    highs[at.lane] = most_of(hi);
    if (AFFINE) { lows[at.lane] = most_of(-lo); }
    workgroupBarrier();
    if (at.lane < 16u) {
        var most = highs[at.lane];
        for (var k = 1u; k < 16u; k++) { most = max(most, highs[16u * k + at.lane]); }
        atomicMax(&range[0], ordered(most));
        if (AFFINE) {
            most = lows[at.lane];
            for (var k = 1u; k < 16u; k++) { most = max(most, lows[16u * k + at.lane]); }
            atomicMax(&range[1], ordered(most));
        }
    }
}

@compute @workgroup_size(LANES)
fn quantize(at: At) {
    if (vector_of(at, 0u) >= arrayLength(&x)) { return; }
    let code = code_of_tensor();
    for (var k = 0u; k < 4u; k++) {
        let v = vector_of(at, k);
        codes[v] = pack8(quantized(x[v], code));
    }
}

@compute @workgroup_size(LANES)
fn quantize_wide(at: At) {
    let v = neighbour_of(at, 0u);
    if (v >= arrayLength(&x)) { return; }
    wide_codes[v / 4u] = packed(x[v], x[v + 1u], x[v + 2u], x[v + 3u], code_of_tensor());
}

fn packed(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, code: Code) -> vec4<u32> {
    return vec4(pack8(quantized(a, code)), pack8(quantized(b, code)), pack8(quantized(c, code)), pack8(quantized(d, code)));
}

fn amax_of(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    return most_of(max(max(abs(a), abs(b)), max(abs(c), abs(d))));
}

// The largest of all invocations' values.
fn most_of_all(lane: u32, mine: f32) -> f32 {
    highs[lane] = mine;
    workgroupBarrier();
    if (lane < 16u) {
        var most = highs[lane];
        for (var k = 1u; k < 16u; k++) { most = max(most, highs[16u * k + lane]); }
        lows[lane] = most;
    }
    workgroupBarrier();
    var most = lows[0];
    for (var k = 1u; k < 16u; k++) { most = max(most, lows[k]); }
    return most;
}

// A row a workgroup, held in registers between its range and its codes.
@compute @workgroup_size(LANES)
fn quantize_row(at: At) {
    let a = x[vector_of(at, 0u)];
    let b = x[vector_of(at, 1u)];
    let c = x[vector_of(at, 2u)];
    let d = x[vector_of(at, 3u)];
    let amax = most_of_all(at.lane, amax_of(a, b, c, d));
    if (vector_of(at, 0u) >= arrayLength(&x)) { return; }
    if (at.lane == 0u) { scales[tile_of(at)] = amax / 127.0; }
    let words = packed(a, b, c, d, code_of(amax));
    codes[vector_of(at, 0u)] = words.x;
    codes[vector_of(at, 1u)] = words.y;
    codes[vector_of(at, 2u)] = words.z;
    codes[vector_of(at, 3u)] = words.w;
}

@compute @workgroup_size(LANES)
fn quantize_row_wide(at: At) {
    let v = neighbour_of(at, 0u);
    let a = x[v];
    let b = x[v + 1u];
    let c = x[v + 2u];
    let d = x[v + 3u];
    let amax = most_of_all(at.lane, amax_of(a, b, c, d));
    if (v >= arrayLength(&x)) { return; }
    if (at.lane == 0u) { scales[tile_of(at)] = amax / 127.0; }
    wide_codes[v / 4u] = packed(a, b, c, d, code_of(amax));
}

// Groups of 32 elements, eight invocations each.
@compute @workgroup_size(LANES)
fn quantize_group(at: At) {
    let v = tile_of(at) * LANES + at.lane;
    let mine = x[v];
    highs[at.lane] = most_of(abs(mine));
    workgroupBarrier();
    let first = at.lane & ~7u;
    var amax = highs[first];
    for (var k = 1u; k < 8u; k++) { amax = max(amax, highs[first + k]); }
    if (v >= arrayLength(&x)) { return; }
    let code = code_of(amax);
    if (at.lane % 8u == 0u) { scales[v / 8u] = amax / code.most; }
    codes[v] = pack8(quantized(mine, code));
}

// The same, one invocation each.
@compute @workgroup_size(LANES)
fn quantize_group_wide(at: At) {
    let group = tile_of(at) * LANES + at.lane;
    let v = 8u * group;
    if (v >= arrayLength(&x)) { return; }
    let a = x[v];
    let b = x[v + 1u];
    let c = x[v + 2u];
    let d = x[v + 3u];
    let e = x[v + 4u];
    let f = x[v + 5u];
    let g = x[v + 6u];
    let h = x[v + 7u];
    let amax = max(amax_of(a, b, c, d), amax_of(e, f, g, h));
    let code = code_of(amax);
    scales[group] = amax / code.most;
    if (BITS == 8u) {
        wide_codes[2u * group] = packed(a, b, c, d, code);
        wide_codes[2u * group + 1u] = packed(e, f, g, h, code);
    } else {
        wide_codes[group] = vec4(
            pack4(quantized(a, code)) | (pack4(quantized(b, code)) << 16u),
            pack4(quantized(c, code)) | (pack4(quantized(d, code)) << 16u),
            pack4(quantized(e, code)) | (pack4(quantized(f, code)) << 16u),
            pack4(quantized(g, code)) | (pack4(quantized(h, code)) << 16u),
        );
    }
}

fn signed(word: u32) -> vec4<f32> {
    let w = bitcast<i32>(word);
    return vec4<f32>(vec4<i32>((w << 24u) >> 24u, (w << 16u) >> 24u, (w << 8u) >> 24u, w >> 24u));
}

// int8 with the tensor's scale.
@compute @workgroup_size(LANES)
fn dequantize(at: At) {
    if (vector_of(at, 0u) >= arrayLength(&y)) { return; }
    let s = from_ordered(found[0]) / 127.0;
    for (var k = 0u; k < 4u; k++) {
        let v = vector_of(at, k);
        y[v] = signed(coded[v]) * s;
    }
}

@compute @workgroup_size(LANES)
fn dequantize_wide(at: At) {
    let v = neighbour_of(at, 0u);
    if (v >= arrayLength(&y)) { return; }
    let s = from_ordered(found[0]) / 127.0;
    let words = wide_coded[v / 4u];
    y[v] = signed(words.x) * s;
    y[v + 1u] = signed(words.y) * s;
    y[v + 2u] = signed(words.z) * s;
    y[v + 3u] = signed(words.w) * s;
}
