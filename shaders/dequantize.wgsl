// x' = (q - z) * s, rounded once. Twin: src/cpu/dequantize.rs. Composed with values.wgsl.

@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(5) var<storage, read> zero_points: array<i32>;

var<private> fields: vec4<u32>;
var<private> s: u32;
var<private> z: i32;
var<private> by_four: bool;

fn open_unit(unit: u32) {
    s = scales[params.scales_at + unit];
    if (params.has_zero_point == 1u) { z = zero_points[params.zero_points_at + unit]; }
    by_four = is_four(s, z);
}

fn fetch(v: u32) -> vec4<u32> {
    let first = params.codes_at + word_of(4u * v);
    // Only codes of 16 bits take two words.
    return unpack(codes[first], codes[select(first, first + 1u, CODE_BITS == 16u)], v);
}

fn take(f: vec4<u32>) { fields = f; }

fn load(v: u32) { take(fetch(v)); }

fn load_one(c: u32, at: u32, i: u32) { fields[c] = (codes[params.codes_at + word_of(at)] >> (shift_of(at) & 31u)) & FIELD; }

fn visit(c: u32) { values[c] = value_of(fields[c], s, z); }

fn visit_four(f: vec4<u32>) -> bool {
    values = unpacked_values(f, s, z);
    return by_four;
}

fn visit_all() { visit_first(4u); }

fn visit_first(n: u32) {
    let done = n == 4u && visit_four(fields);
    // A loop that is not entered costs nothing, see rows.
    for (var c = select(0u, 4u, done); c < n; c++) { visit(c); }
}

fn pad(c: u32) {}

fn flush_slot(slot: u32) {}

@compute @workgroup_size(WORKGROUP)
fn dequantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    traverse(tile_of(group, groups), lane);
}
