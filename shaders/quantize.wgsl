// Round, clamp, pack: four codes a word. Counts the clipped values. Twin: src/cpu/quantize.rs.
// Composed with no_loss.wgsl, or with loss_sums.wgsl to sum the loss in the same pass.

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> recipes: array<Recipe>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

var<private> bits: vec4<u32>;
var<private> word: u32;
var<private> unit_recipe: Recipe;

fn open_unit(unit: u32) {
    unit_recipe = recipes[unit];
    open_loss(unit, unit_recipe.s);
}

fn load(v: u32) {
    bits = x[v];
    word = 0u;
}

fn visit(c: u32) {
    let b = bits[c];
    let q = encode(b, unit_recipe);
    word |= packed(q, c);
    clipped_elems += select(0u, 1u, is_clipped(b, unit_recipe));
    visit_loss(b, q);
}

fn store(v: u32) { codes[v] = word; }

fn flush_slot(slot: u32) { flush_loss(slot); }

@compute @workgroup_size(WORKGROUP)
fn quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    clear_tally(lane);
    clear_loss(lane);
    workgroupBarrier();
    rows(tile, lane);
    flush_tally();
    workgroupBarrier();
    drain_tally(lane);
    drain_loss(tile, lane);
}
