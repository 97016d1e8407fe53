// |x' - x| per element, and the largest per range unit, from the original and any codes.
// Twin: src/cpu/loss.rs. Composed with STORE_ERRORS false, it writes no element.

@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;
@group(0) @binding(5) var<storage, read_write> losses: array<atomic<u32>>;      // LOSS_WORDS per unit
@group(0) @binding(6) var<storage, read_write> errors: array<u32>;              // one per slot
@group(0) @binding(7) var<storage, read> zero_points: array<i32>;

var<private> bits: vec4<u32>;
var<private> fields: vec4<u32>;
var<private> places: vec4<u32>;
var<private> s: u32;
var<private> z: i32;
var<private> largest: u32;
var<workgroup> slots: array<atomic<u32>, SLOTS>;

fn open_unit(unit: u32) {
    s = scales[params.scales_at + unit];
    if (params.has_zero_point == 1u) { z = zero_points[params.zero_points_at + unit]; }
    largest = 0u;
}

fn load(v: u32) {
    bits = x4(v);
    let first = params.codes_at + word_of(4u * v);
    fields = unpack(codes[first], codes[first + 1u], v);
    places = vec4<u32>(4u * v) + vec4<u32>(0u, 1u, 2u, 3u);
}

fn load_one(c: u32, at: u32, i: u32) {
    bits[c] = x1(at);
    fields[c] = (codes[params.codes_at + word_of(i)] >> (shift_of(i) & 31u)) & FIELD;
    places[c] = i;
}

fn visit(c: u32) {
    let b = bits[c];
    let out = value_of(fields[c], s, z);
    let error = abs_error_of(b, out);
    if (is_finite(b) && is_finite(out)) { largest = max(largest, error); }
    if (STORE_ERRORS) { errors[params.errors_at + places[c]] = error; }
}

fn visit_all() {
    visit(0u);
    visit(1u);
    visit(2u);
    visit(3u);
}

fn pad(c: u32) {}

fn store(v: u32) {}

fn flush_slot(slot: u32) { atomicMax(&slots[slot], largest); }

fn flush_unit(unit: u32) {
    if (largest != 0u) { atomicMax(&losses[params.losses_at + unit * LOSS_WORDS], largest); }
}

@compute @workgroup_size(WORKGROUP)
fn abs_error(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    let used = min(slots_of(tile), SLOTS);
    for (var i = lane; i < used; i += WORKGROUP) { atomicStore(&slots[i], 0u); }
    workgroupBarrier();
    traverse(tile, lane);
    workgroupBarrier();
    for (var slot = lane; slot < used; slot += WORKGROUP) {
        largest = atomicLoad(&slots[slot]);
        flush_unit(unit_of_slot(tile, slot));
    }
}
