// Round, clamp, and back to a value, without a code in between. Counts what is out of the ordinary.
// Twin: src/cpu/quantize.rs. Composed with values.wgsl, and with twice.wgsl or once.wgsl.


var<private> bits: vec4<u32>;
var<private> unit_recipe: Recipe;

var<private> by_four: bool;

fn open_unit(unit: u32) {
    unit_recipe = recipe_of(unit);
    by_four = open_four(unit_recipe) && open_values(unit_recipe.s);
}

fn fetch(v: u32) -> vec4<u32> { return x4(v); }

fn take(f: vec4<u32>) { bits = f; }

fn load(v: u32) { take(fetch(v)); }

fn load_one(c: u32, at: u32, i: u32) { bits[c] = x1(at); }

fn visit(c: u32) {
    let b = bits[c];
    values[c] = value_of(field_of(b, unit_recipe), unit_recipe.s, unit_recipe.z);
    count(b, unit_recipe);
}

fn visit_four(f: vec4<u32>) -> bool {
    let four = four_of(f);
    values = values_of(four, unit_recipe.s);
    return by_four && four.certain;
}

fn visit_all() { visit_first(4u); }

fn visit_first(n: u32) {
    let done = n == 4u && visit_four(bits);
    // A loop that is not entered costs nothing, see rows.
    for (var c = select(0u, 4u, done); c < n; c++) { visit(c); }
}

fn pad(c: u32) {}

fn flush_slot(slot: u32) {}

@compute @workgroup_size(WORKGROUP)
fn fake_quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    prepare(tile, lane);
    traverse(tile, lane);
    flush_tally();
}
