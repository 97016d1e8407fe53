// Which invocation sees which elements, for every kernel that reads a tensor. A kernel defines:
//     open_unit(unit)     what follows belongs to this range unit
//     load(v)             the elements 4v .. 4v + 3 come next
//     visit(c)            element c of what was loaded belongs to the open unit
//     store(v)            all of the vector was visited
//     flush_slot(slot)    add what was gathered since open_unit to the workgroup's slot
// Needs from the prelude: WORKGROUP, VECS (vectors of 4 elements per invocation), MIN_RUN.
// visit is only called with constants, so that a vector in registers is never indexed by a variable.
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
    let run = max(params.run, 1u);      // never 0; `max` shows it
    let r = j / run;
    return Place(around(params.first_unit + 1u + r), 1u + r, run - (j - r * run));
}

// The n-th unit, where the first follows the last. Their count is never 0; `max` shows it.
fn around(n: u32) -> u32 { return n % max(params.units, 1u); }

fn tile_of(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.x + group.y * groups.x; }

// Runs of MIN_RUN elements and more: a workgroup takes a tile of consecutive elements, 16 bytes per
// invocation at a time, and gathers per run in the slots of its workgroup memory.
fn rows(tile: u32, lane: u32) {
    let start = tile * TILE_ELEMS;
    if (start >= params.elems) { return; }
    let first = place(start);
    open_unit(first.unit);
    let whole = first.left >= TILE_ELEMS && start + TILE_ELEMS <= params.elems;
    if (whole) {
        for (var k = 0u; k < VECS; k++) {
            let v = tile * (TILE_ELEMS / 4u) + k * WORKGROUP + lane;
            load(v);
            visit(0u);
            visit(1u);
            visit(2u);
            visit(3u);
            store(v);
        }
        flush_slot(0u);
        return;
    }
    row = 0u;
    for (var k = 0u; k < VECS; k++) {
        let v = tile * (TILE_ELEMS / 4u) + k * WORKGROUP + lane;
        let i = 4u * v;
        if (i >= params.elems) { break; }
        load(v);
        enter(i, first.run);
        if (row_left >= 4u && i + 4u <= params.elems) {
            visit(0u);
            visit(1u);
            visit(2u);
            visit(3u);
        } else {
            visit(0u);
            visit_next(i + 1u, 1u, first.run);
            visit_next(i + 2u, 2u, first.run);
            visit_next(i + 3u, 3u, first.run);
        }
        store(v);
    }
    flush_slot(row);
}

var<private> row: u32;          // the slot of the open run
var<private> row_left: u32;     // what is left of it

// Opens the run of element i, if another one is open.
fn enter(i: u32, first_run: u32) {
    let at = place(i);
    row_left = at.left;
    if (at.run - first_run != row) {
        flush_slot(row);
        row = at.run - first_run;
        open_unit(at.unit);
    }
}

// Element i, the one after the last visited.
fn visit_next(i: u32, c: u32, first_run: u32) {
    if (i >= params.elems) { return; }
    row_left -= 1u;
    if (row_left == 0u) { enter(i, first_run); }
    visit(c);
}
