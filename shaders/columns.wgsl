// The traversal of short runs, for the kernels that reduce per range unit. Beside traverse.wgsl's hooks, a kernel
// defines:
//     flush_unit(unit)    add what was gathered since open_unit straight to the unit

fn traverse(tile: u32, lane: u32) {
    if (params.stride != 0u) { short_runs(tile * WORKGROUP + lane); } else { rows(tile, lane); }
}

fn short_runs(thread: u32) {
    if (params.stride == 1u) {
        run_by_run(thread);
    } else {
        columns(thread);
    }
}

// Units that repeat: an invocation takes every stride-th slot, the stride being a multiple of the period of the units,
// so that all of them belong to one unit. Neighbours still read neighbours.
fn columns(thread: u32) {
    let stride = max(params.stride, 1u);    // never 0 here; `max` shows it
    let column = thread % stride;
    let first_row = thread / stride * (8u * BLOCKS);
    if (first_row * stride + column >= params.elems) { return; }
    let unit = place(column).unit;
    open_unit(unit);
    for (var k = 0u; k < 8u * BLOCKS; k++) {
        let i = (first_row + k) * stride + column;
        if (i >= params.elems) { break; }
        if (params.row_slots == 0u) {
            load_one(0u, i, i);
            visit(0u);
        } else {
            let at = place(i);
            if (at.exists) {
                load_one(0u, at.at, i);
                visit(0u);
            }
        }
    }
    flush_unit(unit);
}

// Units that do not repeat: an invocation takes a whole run, of less than MIN_RUN elements.
fn run_by_run(thread: u32) {
    let start = select(params.first_left + (thread - 1u) * params.run, 0u, thread == 0u);
    if (start >= params.elems) { return; }
    let end = min(start + select(params.run, params.first_left, thread == 0u), params.elems);
    let unit = around(params.first_unit + thread);
    open_unit(unit);
    for (var i = start; i < end; i++) {
        load_one(0u, i, i);
        visit(0u);
    }
    flush_unit(unit);
}
