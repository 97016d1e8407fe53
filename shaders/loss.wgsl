// The loss of given codes: the second pass, after abs_error has found each unit's largest loss.
// Twin: src/cpu/loss.rs. Composed with loss_sums.wgsl.

@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;
@group(0) @binding(7) var<storage, read> zero_points: array<i32>;

var<private> bits: vec4<u32>;
var<private> fields: vec4<u32>;

fn open_unit(unit: u32) {
    var z = 0;
    if (params.has_zero_point == 1u) { z = zero_points[params.zero_points_at + unit]; }
    open_loss(unit, row, scales[params.scales_at + unit], z);
}

fn load(v: u32) {
    bits = x4(v);
    let first = params.codes_at + word_of(4u * v);
    fields = unpack(codes[first], codes[first + 1u], v);
}

fn load_one(c: u32, at: u32, i: u32) {
    bits[c] = x1(at);
    fields[c] = (codes[params.codes_at + word_of(i)] >> (shift_of(i) & 31u)) & FIELD;
}

fn visit(c: u32) { visit_loss(bits[c], fields[c]); }

fn visit_all() {
    visit(0u);
    visit(1u);
    visit(2u);
    visit(3u);
}

fn pad(c: u32) {}

fn store(v: u32) {}

fn flush_slot(slot: u32) { flush_loss(slot); }

fn flush_unit(unit: u32) { flush_loss_to_unit(unit); }

@compute @workgroup_size(WORKGROUP)
fn loss(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    begin_loss(tile, lane);
    workgroupBarrier();
    traverse(tile, lane);
    flush_tally();
    drain_loss(tile, lane);
}
