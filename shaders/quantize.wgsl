// Round, clamp, pack. Counts what is out of the ordinary. Twin: src/cpu/quantize.rs.
// Composed with twice.wgsl or once.wgsl, and with no_loss.wgsl or loss_sums.wgsl to sum the loss in the same pass.

@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

var<private> bits: vec4<u32>;
var<private> words: vec2<u32>;      // the codes of four slots, as packed
var<private> held: u32;             // the first half of a word of 4-bit codes
var<private> unit_recipe: Recipe;
var<private> by_four: bool;

fn open_unit(unit: u32) {
    unit_recipe = recipe_of(unit);
    by_four = open_four(unit_recipe);
    open_loss(unit, row, unit_recipe.s, unit_recipe.z);
}

fn fetch(v: u32) -> vec4<u32> { return x4(v); }

fn take(f: vec4<u32>) { bits = f; }

fn load(v: u32) { take(fetch(v)); }

fn load_one(c: u32, at: u32, i: u32) { bits[c] = x1(at); }

fn visit_four(f: vec4<u32>) -> bool {
    let four = four_of(f);
    words = words_of(four, unit_recipe.z);
    let certain = by_four && four.certain && sums_by_four();
    if (FUSED) { visit_four_loss(f, four, certain && !again); }
    return certain;
}

fn visit_all() { visit_first(4u); }

// Of what was loaded the first n.
fn visit_first(n: u32) {
    let done = n == 4u && visit_four(bits);
    // A loop that is not entered costs nothing, see rows.
    for (var c = select(0u, 4u, done); c < n; c++) {
        if (c == 0u) { words = vec2<u32>(); }
        visit(c);
    }
}

fn visit(c: u32) {
    let b = bits[c];
    let field = field_of(b, unit_recipe);
    put(c, field);
    count(b, unit_recipe);
    visit_loss(b, field);
}

fn pad(c: u32) { put(c, pad_of(unit_recipe)); }

fn put(c: u32, field: u32) {
    if (CODE_BITS == 16u) {
        words[c / 2u] |= field << (16u * (c % 2u));
    } else {
        words.x |= field << ((CODE_BITS * c) & 31u);
    }
}

fn store_four(v: u32) {
    if (CODE_BITS == 4u && v % 2u == 0u) {
        held = words.x;
    } else if (CODE_BITS == 4u) {
        codes[params.out_at + v / 2u] = held | (words.x << 16u);
    } else if (CODE_BITS == 8u) {
        codes[params.out_at + v] = words.x;
    } else {
        codes[params.out_at + 2u * v] = words.x;
        codes[params.out_at + 2u * v + 1u] = words.y;
    }
}

fn store(v: u32) {
    let i = 4u * v;
    if (CODE_BITS == 4u) {
        if (v % 2u == 0u) {
            held = words.x;
        } else if (i - 4u < params.elems) {
            codes[params.out_at + v / 2u] = held | (words.x << 16u);
        }
    } else if (CODE_BITS == 8u) {
        if (i < params.elems) { codes[params.out_at + v] = words.x; }
    } else {
        if (i < params.elems) { codes[params.out_at + 2u * v] = words.x; }
        if (i + 2u < params.elems) { codes[params.out_at + 2u * v + 1u] = words.y; }
    }
    words = vec2<u32>();
}

fn flush_slot(slot: u32) { flush_loss(slot); }

@compute @workgroup_size(WORKGROUP)
fn quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    if (TABLE_UNITS > 0u) { fill_table(0u, recipe_of(unit_of_slot(tile, 0u)).s, lane, WORKGROUP); }
    begin_loss(tile, lane);
    if (FUSED) { workgroupBarrier(); }
    prepare(tile, lane);
    traverse(tile, lane);
    flush_tally();
    drain_loss(tile, lane);
}
