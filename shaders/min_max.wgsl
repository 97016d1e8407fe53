// Range reduction: the largest keys of each range unit, and the counts of NaN and Inf, in one read of the
// tensor. Twin: src/cpu/min_max.rs. Keys start at 0, which stands for no finite value.

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> ranges: array<atomic<u32>>;      // hi key, lo key per unit

var<private> bits: vec4<u32>;
var<private> hi: u32;
var<private> lo: u32;
var<workgroup> slots: array<atomic<u32>, 2u * SLOTS>;

fn open_unit(unit: u32) {
    hi = 0u;
    lo = 0u;
}

fn load(v: u32) { bits = x[v]; }

fn load_one(i: u32) { bits.x = x[i / 4u][i % 4u]; }

fn visit(c: u32) {
    let b = bits[c];
    let up = hi_key(b);
    hi = max(hi, up);
    lo = max(lo, lo_key(b));
    if (up < 2u * HIDDEN) {     // not finite
        let nan = select(0u, 1u, (b & MAGNITUDE) > INF);
        nan_elems += nan;
        inf_elems += 1u - nan;
    }
}

fn store(v: u32) {}

fn flush_slot(slot: u32) {
    if (hi != 0u) {
        atomicMax(&slots[2u * slot], hi);
        atomicMax(&slots[2u * slot + 1u], lo);
    }
}

fn flush_unit(unit: u32) {
    if (hi != 0u) {
        atomicMax(&ranges[2u * unit], hi);
        atomicMax(&ranges[2u * unit + 1u], lo);
    }
}

@compute @workgroup_size(WORKGROUP)
fn min_max(
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
    for (var i = lane; i < 2u * SLOTS; i += WORKGROUP) { atomicStore(&slots[i], 0u); }
    workgroupBarrier();
    rows(tile, lane);
    flush_tally();
    workgroupBarrier();
    drain_tally(lane);
    let first = place(tile * TILE_ELEMS).unit;
    for (var slot = lane; slot < SLOTS; slot += WORKGROUP) {
        hi = atomicLoad(&slots[2u * slot]);
        lo = atomicLoad(&slots[2u * slot + 1u]);
        flush_unit(around(first + slot));
    }
}
