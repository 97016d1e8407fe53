// Which invocation sees which elements, for every kernel that reads a tensor. A kernel defines:
//     open_unit(unit)     what follows belongs to this range unit
//     load(v)             the elements 4v .. 4v + 3 come next
//     visit(c)            element 4v + c belongs to the open unit
//     store(v)            all of them were visited
//     flush_slot(slot)    add what was gathered since open_unit to the workgroup's slot
//     flush_unit(unit)    the same, straight to the unit
// Needs from the prelude: WORKGROUP, VECS (vectors of 4 elements per invocation), MIN_RUN.
//
// The tensor is `[outer, units, inner]`; `inner` consecutive elements of one unit are a run. A dispatch
// covers one chunk of the tensor, which may begin and end anywhere: params.wgsl says where.

const TILE_ELEMS = WORKGROUP * VECS * 4u;
// A tile of rows sees at most this many runs.
const SLOTS = TILE_ELEMS / MIN_RUN + 2u;

// Where an element of the chunk stands: its unit, the number of its run, and what is left of it.
struct Place { unit: u32, run: u32, left: u32 }

fn place(i: u32) -> Place {
    if (i < params.first_left) { return Place(params.first_unit, 0u, params.first_left - i); }
    let j = i - params.first_left;
    let r = j / params.run;
    return Place((params.first_unit + 1u + r) % params.units, 1u + r, params.run - (j - r * params.run));
}

fn tile_of(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.x + group.y * groups.x; }

// Runs of MIN_RUN elements and more: a workgroup takes a tile of consecutive elements, 16 bytes per
// invocation at a time, and gathers per run in the slots of its workgroup memory.
fn rows(tile: u32, lane: u32) {
    let start = tile * TILE_ELEMS;
    if (start >= params.elems) { return; }
    let first = place(start);
    var slot = 0u;
    open_unit(first.unit);
    for (var k = 0u; k < VECS; k++) {
        let v = tile * (TILE_ELEMS / 4u) + k * WORKGROUP + lane;
        let i = 4u * v;
        if (i >= params.elems) { break; }
        load(v);
        var at = first;
        if (first.left < TILE_ELEMS) { at = place(i); }
        if (at.run - first.run != slot) {
            flush_slot(slot);
            slot = at.run - first.run;
            open_unit(at.unit);
        }
        if (at.left >= 4u && i + 4u <= params.elems) {
            visit(0u);
            visit(1u);
            visit(2u);
            visit(3u);
        } else {
            for (var c = 0u; c < 4u; c++) {
                if (i + c >= params.elems) { break; }
                if (at.left == 0u) {
                    flush_slot(slot);
                    slot += 1u;
                    at = place(i + c);
                    open_unit(at.unit);
                }
                visit(c);
                at.left -= 1u;
            }
        }
        store(v);
    }
    flush_slot(slot);
}

// Shorter runs: an invocation takes every stride-th element, the stride being a multiple of units * run, so
// that all of them belong to one unit. Neighbours still read neighbours.
fn columns(thread: u32) {
    let column = thread % params.stride;
    let first_row = thread / params.stride * (4u * VECS);
    if (first_row * params.stride + column >= params.elems) { return; }
    let unit = place(column).unit;
    open_unit(unit);
    for (var k = 0u; k < 4u * VECS; k++) {
        let i = (first_row + k) * params.stride + column;
        if (i >= params.elems) { break; }
        load(i / 4u);
        visit(i % 4u);
    }
    flush_unit(unit);
}
