// The loss of given codes: the second pass, after abs_error has found each unit's largest loss.
// Twin: src/cpu/loss.rs. Composed with loss_sums.wgsl.

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;

var<private> bits: vec4<u32>;
var<private> word: u32;

fn open_unit(unit: u32) { open_loss(unit, scales[unit]); }

fn load(v: u32) {
    bits = x[v];
    word = codes[v];
}

fn load_one(i: u32) {
    bits.x = x[i / 4u][i % 4u];
    word = codes[i / 4u] >> (8u * (i % 4u));
}

fn visit(c: u32) { visit_loss(bits[c], code_at(word, c)); }

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
    clear_tally(lane);
    if (params.stride != 0u) {
        workgroupBarrier();
        columns(tile * WORKGROUP + lane);
        flush_tally();
        workgroupBarrier();
        drain_tally(lane);
        return;
    }
    clear_loss(lane);
    workgroupBarrier();
    rows(tile, lane);
    flush_tally();
    workgroupBarrier();
    drain_tally(lane);
    drain_loss(tile, lane);
}
