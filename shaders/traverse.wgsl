// Which invocation sees which elements, for every kernel that reads a tensor. A kernel defines:
//     open_unit(unit)         what follows belongs to this range unit
//     load(v)                 slots 4v .. 4v + 3 come next, and each is the element of that number
//     load_one(c, at, i)      number c will be slot i, whose element is read at `at`
//     visit(c)                number c of what was loaded belongs to the open unit
//     visit_all()             all four do
//     pad(c)                  number c is no element: it fills up a row
//     store(v)                the slots 4v .. 4v + 3 were visited, those that there are
//     flush_slot(slot)        add what was gathered since open_unit to the workgroup's slot
// Needs from the prelude: WORKGROUP, BLOCKS (blocks of 8 slots per invocation).
// Most of a tensor is visited by visit_all, whose vectors stay in registers; visit takes what is left.
//
// The tensor is `[outer, units, inner]`; `inner` consecutive elements of one unit are a run. A dispatch covers one
// chunk of the tensor, which may begin and end anywhere: params.wgsl says where. Where rows are padded, lie apart or
// end with a short run, row_slots is not 0, and each slot is looked up by itself.

// Where a slot of the chunk stands: its unit, the number of its run, what is left of it, where its element is read,
// and whether it has one.
struct Place { unit: u32, run: u32, left: u32, at: u32, exists: bool }

const again = false;

fn place(i: u32) -> Place {
    if (params.row_slots != 0u && params.row_units != 0u) { return place_in_row(i); }
    var run = 0u;
    var left = params.first_left - i;
    if (i >= params.first_left) {
        let j = i - params.first_left;
        let length = max(params.run, 1u);       // never 0; `max` shows it
        let r = j / length;
        run = 1u + r;
        left = length - (j - r * length);
    }
    let unit = around(params.first_unit + run);
    if (params.row_slots == 0u) { return Place(unit, run, left, i, true); }
    if (i < params.first_row_slots) {
        return Place(unit, run, left, params.first_at + i, i < params.first_row_elems);
    }
    let j = i - params.first_row_slots;
    let row = j / max(params.row_slots, 1u);
    let column = j - row * params.row_slots;
    return Place(unit, run, left, params.second_row_at + row * params.row_pitch + column, column < params.row_elems);
}

// The same where runs end with their row. What fills up a row belongs to its last run.
fn place_in_row(i: u32) -> Place {
    let length = max(params.run, 1u);
    if (i < params.first_row_slots) {
        let column = min(i, params.first_row_elems - 1u);
        var run = 0u;
        var left = params.first_left - column;
        if (column >= params.first_left) {
            let j = column - params.first_left;
            run = 1u + j / length;
            left = min(length - j % length, params.first_row_elems - column);
        }
        return Place(around(params.first_unit + run), run, left, params.first_at + i, i < params.first_row_elems);
    }
    let j = i - params.first_row_slots;
    let row = j / max(params.row_slots, 1u);
    let slot = j - row * params.row_slots;
    let column = min(slot, params.row_elems - 1u);
    let run = params.first_row_runs + row * params.row_units + column / length;
    let left = min(length - column % length, params.row_elems - column);
    let at = params.second_row_at + row * params.row_pitch + slot;
    return Place(around(params.first_unit + run), run, left, at, slot < params.row_elems);
}

// How many slots of its workgroup memory a tile takes, one for each of its runs.
fn slots_of(tile: u32) -> u32 {
    if (params.stride != 0u) { return 0u; }
    let start = min(tile * params.tile_elems, params.elems);
    let end = min(start + params.tile_elems, params.elems);
    if (start == end) { return 0u; }
    return place(end - 1u).run - place(start).run + 1u;
}

// The unit that a slot of the workgroup's tile belongs to.
fn unit_of_slot(tile: u32, slot: u32) -> u32 { return around(place(tile * params.tile_elems).unit + slot); }

// The n-th unit, where the first follows the last. Their count is never 0; `max` shows it.
fn around(n: u32) -> u32 { return n % max(params.units, 1u); }

// Runs of MIN_RUN elements and more, and whatever is not reduced: a workgroup takes a tile of consecutive slots, 8 per
// invocation at a time, and gathers per run in the slots of its workgroup memory.
//
// A loop for each kind of tile, and not a branch in one: where invocations run in lockstep, a software adapter's do,
// a branch costs whether it is taken or not, and a loop that nobody enters costs nothing.
fn rows(tile: u32, lane: u32) {
    let start = tile * params.tile_elems;
    let end = min(start + params.tile_elems, params.elems);
    if (start >= params.elems) { return; }
    let first = place(start);
    open_unit(first.unit);
    row = 0u;
    let dense = params.row_slots == 0u;
    let whole = dense && first.left >= params.tile_elems && start + params.tile_elems <= params.elems;
    for (var k = select(2u * BLOCKS, 0u, whole); k < 2u * BLOCKS; k++) {
        let v = vector_of(start, lane, k);
        if (4u * v >= end) { break; }
        load(v);
        visit_all();
        store(v);
    }
    for (var k = select(2u * BLOCKS, 0u, dense && !whole); k < 2u * BLOCKS; k++) {
        let v = vector_of(start, lane, k);
        // The second half of a block is stored with the first, be there any of it or not.
        if (4u * (v & ~1u) >= end) { break; }
        if (4u * v < end) { several(v, first.run); }
        store(v);
    }
    for (var k = select(2u * BLOCKS, 0u, !dense); k < 2u * BLOCKS; k++) {
        let v = vector_of(start, lane, k);
        if (4u * (v & ~1u) >= end) { break; }
        for (var c = 0u; c < 4u; c++) {
            if (4u * v + c >= end) { break; }
            look_up(4u * v + c, c, first.run);
        }
        store(v);
    }
    flush_slot(row);
}

// An invocation's k-th vector of four slots; two make a block.
fn vector_of(start: u32, lane: u32, k: u32) -> u32 { return start / 4u + 2u * ((k / 2u) * WORKGROUP + lane) + k % 2u; }

// Slots 4v .. 4v + 3 of perhaps several runs, of which some may lie beyond the chunk.
fn several(v: u32, first_run: u32) {
    let i = 4u * v;
    load(v);
    enter(place(i), first_run);
    let together = row_left >= 4u && i + 4u <= params.elems;
    if (together) { visit_all(); }
    for (var c = select(0u, 4u, together); c < 4u; c++) {
        if (i + c >= params.elems) { break; }
        if (c > 0u) {
            row_left -= 1u;
            if (row_left == 0u) { enter(place(i + c), first_run); }
        }
        visit(c);
    }
}

var<private> row: u32;          // the slot of the open run
var<private> row_left: u32;     // what is left of it

// Opens the run of this place, if another one is open.
fn enter(at: Place, first_run: u32) {
    row_left = at.left;
    if (at.run - first_run != row) {
        flush_slot(row);
        row = at.run - first_run;
        open_unit(at.unit);
    }
}

// Slot i, wherever its element is.
fn look_up(i: u32, c: u32, first_run: u32) {
    let at = place(i);
    enter(at, first_run);
    if (at.exists) {
        load_one(c, at.at, i);
        visit(c);
    } else {
        pad(c);
    }
}
