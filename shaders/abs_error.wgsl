// |x' - x| per element, and the largest per range unit, from the original and any codes.
// Twin: src/cpu/loss.rs. Composed with STORE_ERRORS false, it writes no element.

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;
@group(0) @binding(5) var<storage, read_write> losses: array<atomic<u32>>;      // LOSS_WORDS per unit
@group(0) @binding(6) var<storage, read_write> errors: array<u32>;

var<private> bits: vec4<u32>;
var<private> word: u32;
var<private> first: u32;
var<private> s: u32;
var<private> largest: u32;
var<workgroup> slots: array<atomic<u32>, SLOTS>;

fn open_unit(unit: u32) {
    s = scales[unit];
    largest = 0u;
}

fn load(v: u32) {
    bits = x[v];
    word = codes[v];
    first = 4u * v;
}

fn load_one(i: u32) {
    bits.x = x[i / 4u][i % 4u];
    word = codes[i / 4u] >> (8u * (i % 4u));
    first = i;
}

fn visit(c: u32) {
    let b = bits[c];
    let out = decode(code_at(word, c), s);
    let error = abs_error_of(b, out);
    if (is_finite(b) && is_finite(out)) { largest = max(largest, error); }
    if (STORE_ERRORS) { errors[first + c] = error; }
}

fn store(v: u32) {}

fn flush_slot(slot: u32) { atomicMax(&slots[slot], largest); }

fn flush_unit(unit: u32) {
    if (largest != 0u) { atomicMax(&losses[unit * LOSS_WORDS], largest); }
}

@compute @workgroup_size(WORKGROUP)
fn abs_error(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    if (params.stride != 0u) {
        columns(tile * WORKGROUP + lane);
        return;
    }
    for (var i = lane; i < SLOTS; i += WORKGROUP) { atomicStore(&slots[i], 0u); }
    workgroupBarrier();
    rows(tile, lane);
    workgroupBarrier();
    let unit = place(tile * TILE_ELEMS).unit;
    for (var slot = lane; slot < SLOTS; slot += WORKGROUP) {
        largest = atomicLoad(&slots[slot]);
        flush_unit(around(unit + slot));
    }
}
