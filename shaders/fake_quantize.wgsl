// Round, clamp, and back to a value, without a code in between. Counts what is out of the ordinary.
// Twin: src/cpu/quantize.rs. Composed with twice.wgsl or once.wgsl.

@group(0) @binding(4) var<storage, read_write> out: array<u32>;

var<private> bits: vec4<u32>;
var<private> values: vec4<u32>;
var<private> unit_recipe: Recipe;

fn open_unit(unit: u32) { unit_recipe = recipe_of(unit); }

fn load(v: u32) { bits = input4(v); }

fn load_one(c: u32, at: u32, i: u32) { bits[c] = x1(at); }

fn visit(c: u32) {
    let b = bits[c];
    values[c] = value_of(field_of(b, unit_recipe), unit_recipe.s, unit_recipe.z);
    count(b, unit_recipe);
}

fn pad(c: u32) {}

// Nothing beyond the last element: what follows may be somebody else's.
fn store(v: u32) {
    let i = 4u * v;
    if (i < params.elems) { out[params.out_at + i] = values.x; }
    if (i + 1u < params.elems) { out[params.out_at + i + 1u] = values.y; }
    if (i + 2u < params.elems) { out[params.out_at + i + 2u] = values.z; }
    if (i + 3u < params.elems) { out[params.out_at + i + 3u] = values.w; }
}

fn flush_slot(slot: u32) {}

@compute @workgroup_size(WORKGROUP)
fn fake_quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    clear_tally(lane);
    workgroupBarrier();
    prepare(tile, lane);
    rows(tile, lane);
    flush_tally();
    workgroupBarrier();
    drain_tally(lane);
}
