// Range reduction: the largest keys of each range unit, in one read of the tensor. Twin: src/cpu/min_max.rs. Keys
// start at 0, which stands for no finite value.

@group(0) @binding(3) var<storage, read_write> ranges: array<atomic<u32>>;      // hi key, lo key per unit

var<private> bits: vec4<u32>;
var<private> hi: u32;
var<private> lo: u32;
var<workgroup> slots: array<atomic<u32>, 2u * SLOTS>;

fn open_unit(unit: u32) {
    hi = 0u;
    lo = 0u;
}

fn fetch(v: u32) -> vec4<u32> { return x4(v); }

fn take(f: vec4<u32>) { bits = f; }

fn load(v: u32) { take(fetch(v)); }

fn load_one(c: u32, at: u32, i: u32) { bits[c] = x1(at); }

fn visit(c: u32) {
    hi = max(hi, hi_key(bits[c]));
    lo = max(lo, lo_key(bits[c]));
}

fn visit_four(b: vec4<u32>) -> bool {
    hi = max(hi, max(max(hi_key(b.x), hi_key(b.y)), max(hi_key(b.z), hi_key(b.w))));
    lo = max(lo, max(max(lo_key(b.x), lo_key(b.y)), max(lo_key(b.z), lo_key(b.w))));
    return true;
}

fn visit_all() { visit_first(4u); }

// What is no value changes nothing.
fn visit_first(n: u32) {
    let beyond = vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(n);
    visit_four(select(bits, vec4<u32>(MAGNITUDE), beyond));
}

fn store_four(v: u32) {}

fn pad(c: u32) {}

fn store(v: u32) {}

fn flush_slot(slot: u32) {
    if (hi != 0u) {
        atomicMax(&slots[2u * slot], hi);
        atomicMax(&slots[2u * slot + 1u], lo);
    }
}

fn flush_unit(unit: u32) {
    if (hi != 0u) {
        let at = 2u * (params.ranges_at + unit);
        atomicMax(&ranges[at], hi);
        atomicMax(&ranges[at + 1u], lo);
    }
}

@compute @workgroup_size(WORKGROUP)
fn min_max(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    let used = min(slots_of(tile), SLOTS);
    for (var i = lane; i < 2u * used; i += WORKGROUP) { atomicStore(&slots[i], 0u); }
    workgroupBarrier();
    traverse(tile, lane);
    workgroupBarrier();
    for (var slot = lane; slot < used; slot += WORKGROUP) {
        hi = atomicLoad(&slots[2u * slot]);
        lo = atomicLoad(&slots[2u * slot + 1u]);
        flush_unit(unit_of_slot(tile, slot));
    }
}
