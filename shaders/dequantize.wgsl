// x' = q * s, rounded once, four codes a word. Twin: src/cpu/dequantize.rs.

@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<u32>>;

var<private> word: u32;
var<private> values: vec4<u32>;
var<private> s: u32;

fn open_unit(unit: u32) { s = scales[unit]; }

fn load(v: u32) {
    word = codes[v];
    values = vec4<u32>();
}

fn visit(c: u32) { values[c] = decode(code_at(word, c), s); }

fn store(v: u32) { out[v] = values; }

fn flush_slot(slot: u32) {}

@compute @workgroup_size(WORKGROUP)
fn dequantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    rows(tile_of(group, groups), lane);
}
