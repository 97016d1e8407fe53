// The traversal of most tensors: each vector of four slots lies in one run and is read as it lies, and no unit repeats in the
// chunk. Hooks are those of traverse.wgsl; of them it takes open_unit, visit_first, store, flush_slot, and
//     fetch(v)        what is read of slots 4v .. 4v + 3
//     take(f)         that comes next
//     visit_four(f)   it is read and belongs to the open unit; false where it has to be taken and visited
//     store_four(v)   what visit_four found of them
// Needs from the prelude beside what traverse.wgsl does: PAIRS, whether two vectors make a word of codes; SEVERAL, whether tiles
// of several units are simple too, which they are where units are short and nothing is gathered per unit.
//
// What is simple comes first, four vectors at once, so that their reads are on their way together and nothing is between
// them. What is left over - in doubt, at the end, or in a tile of several units - comes one by one, whose code is there once:
// software adapters compute every branch, and forget kernels that are too long.

var<private> tile_unit: u32;    // the first unit of the tile
var<private> in_run: u32;       // where the tile begins within that unit
var<private> row: u32;          // the open unit, counted within the tile
var<private> again: bool;       // whether the vector is left over for the sake of its neighbour, and is summed already

fn traverse(tile: u32, lane: u32) {
    let start = tile * params.tile_elems;
    if (start >= params.elems) { return; }
    let end = min(start + params.tile_elems, params.elems);
    begin_tile(start);
    let whole = in_run + (end - start) <= params.run;
    row = 0u;
    open_unit(tile_unit);
    // What is to come one by one: bit k for the k-th vector.
    var doubt = select(ALL_VECTORS, 0u, whole || SEVERAL);
    var left = doubt;
    for (var k = select(2u * BLOCKS, 0u, whole || SEVERAL); k < 2u * BLOCKS; k += 4u) {
        let v = vec4<u32>(
            vector_of(start, lane, k), vector_of(start, lane, k + 1u), vector_of(start, lane, k + 2u), vector_of(start, lane, k + 3u),
        );
        if (4u * v.w + 4u > end) {
            doubt |= ALL_VECTORS & (0xffffffffu << (k & 31u));
            left |= doubt;
            break;
        }
        let a = fetch(v.x);
        let b = fetch(v.y);
        let c = fetch(v.z);
        let d = fetch(v.w);
        let first = at_once(start, v.x, a) | (at_once(start, v.y, b) << 1u);
        let second = at_once(start, v.z, c) | (at_once(start, v.w, d) << 1u);
        doubt |= (first | (second << 2u)) << (k & 31u);
        left |= (both(first) | (both(second) << 2u)) << (k & 31u);
    }
    for (; left != 0u; left &= left - 1u) {
        let k = 31u - countLeadingZeros(max(left & (0u - left), 1u));
        let v = vector_of(start, lane, k);
        // The second half of a word is stored with the first, be there any of it or not.
        if (4u * select(v, v & ~1u, PAIRS) >= end) { break; }
        enter(min(unit_in_tile(4u * v - start), unit_in_tile(end - 1u - start)));
        again = ((doubt >> k) & 1u) == 0u;
        take(fetch(v));
        visit_first(min(end - min(4u * v, end), 4u));
        store(v);
    }
    flush_slot(row);
}

// A bit for each of an invocation's vectors.
const ALL_VECTORS = 0xffffffffu >> (32u - 2u * BLOCKS);

// Visits and stores a vector; 1 if it is left over.
fn at_once(start: u32, v: u32, f: vec4<u32>) -> u32 {
    if (SEVERAL) { enter(unit_in_tile(4u * v - start)); }
    let certain = visit_four(f);
    store_four(v);
    return select(1u, 0u, certain);
}

// Opens a unit of the tile, if another one is open.
fn enter(unit: u32) {
    if (unit != row) {
        flush_slot(row);
        row = unit;
        open_unit(tile_unit + unit);
    }
}

// Two vectors that make a word are both left over if one is.
fn both(pair: u32) -> u32 { return select(pair, 3u, PAIRS && pair != 0u); }

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

// How many slots of its workgroup memory a tile takes, one for each of its units.
fn slots_of(tile: u32) -> u32 {
    let start = min(tile * params.tile_elems, params.elems);
    let end = min(start + params.tile_elems, params.elems);
    begin_tile(start);
    return select(unit_in_tile(end - 1u - start) + 1u, 0u, start == end);
}

// The unit that a slot of the workgroup's tile belongs to.
fn unit_of_slot(tile: u32, slot: u32) -> u32 {
    begin_tile(tile * params.tile_elems);
    return tile_unit + slot;
}
