// The traversal of most tensors: each vector of four slots lies in one run and is read as it lies, and no unit repeats in the
// chunk. Hooks are those of traverse.wgsl; of them it takes open_unit, visit_all, store, flush_slot, and
//     fetch(v)    what is read of slots 4v .. 4v + 3
//     take(f)     that comes next
//     blank(n)    of what was taken, what comes after the n-th is no element, and changes nothing
// Needs from the prelude beside what traverse.wgsl does: PAIRS, whether two vectors make a word of codes.

var<private> tile_unit: u32;    // the first unit of the tile
var<private> in_run: u32;       // where the tile begins within that unit
var<private> row: u32;          // the open unit, counted within the tile

fn traverse(tile: u32, lane: u32) {
    let start = tile * params.tile_elems;
    if (start >= params.elems) { return; }
    let end = min(start + params.tile_elems, params.elems);
    begin_tile(start);
    let whole = in_run + (end - start) <= params.run;
    row = 0u;
    open_unit(tile_unit);
    // Two vectors are on their way at once; what is left of a tile, or spans several units, comes one by one, and so does all
    // with the loss: software adapters forget kernels that are too long, and compile them again and again. The first k looks
    // unknown, so that no driver unrolls the loops.
    var k = select(0u, 2u * BLOCKS, start >= end);
    for (; whole && !FUSED && k < 2u * BLOCKS; k += 2u) {
        let v = vector_of(start, lane, k);
        let w = vector_of(start, lane, k + 1u);
        if (4u * w + 4u > end) { break; }
        let a = fetch(v);
        let b = fetch(w);
        four(v, a);
        four(w, b);
    }
    for (; k < 2u * BLOCKS; k++) {
        let v = vector_of(start, lane, k);
        // The second half of a word is stored with the first, be there any of it or not.
        if (4u * select(v, v & ~1u, PAIRS) >= end) { break; }
        let unit = min(unit_in_tile(4u * v - start), unit_in_tile(end - 1u - start));
        if (unit != row) {
            flush_slot(row);
            row = unit;
            open_unit(tile_unit + unit);
        }
        take(fetch(v));
        if (4u * v + 4u > end) { blank(end - min(4u * v, end)); }
        visit_all();
        store(v);
    }
    flush_slot(row);
}

fn four(v: u32, f: vec4<u32>) {
    take(f);
    visit_all();
    store(v);
}

fn begin_tile(start: u32) {
    let run = max(params.run, 1u);      // never 0; `max` shows it
    let at = start + params.first_offset;
    let r = at / run;
    tile_unit = params.first_unit + r;
    in_run = at - r * run;
}

// The unit of a tile's slot, counted within the tile. Where run_factor is 0, a run is as long as a tile. Else with i = in_run +
// slot below 2^15 and f = ceil(2^n / run), i * f / 2^n exceeds i / run by less than i / 2^n, which n = 15 + ceil(log2 run) keeps
// below 1 / run: the whole part is the quotient's. Nothing overflows: f is at most 2^16 + 1.
fn unit_in_tile(slot: u32) -> u32 {
    let i = in_run + slot;
    let second = select(0u, 1u, i >= params.run);
    return select((i * params.run_factor) >> (params.run_shift & 31u), second, params.run_factor == 0u);
}

// An invocation's k-th vector of four slots: neighbours take neighbouring ones, or pairs of them.
fn vector_of(start: u32, lane: u32, k: u32) -> u32 {
    if (PAIRS) { return start / 4u + 2u * ((k / 2u) * WORKGROUP + lane) + k % 2u; }
    return start / 4u + k * WORKGROUP + lane;
}

// The unit that a slot of the workgroup's tile belongs to.
fn unit_of_slot(tile: u32, slot: u32) -> u32 {
    begin_tile(tile * params.tile_elems);
    return tile_unit + slot;
}
