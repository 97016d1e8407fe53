// The traversal of short runs, for the kernels that reduce per range unit. Beside traverse.wgsl's hooks, a
// kernel defines:
//     load_one(i)         element i alone comes next, as number 0
//     flush_unit(unit)    add what was gathered since open_unit straight to the unit

// Shorter runs: an invocation takes every stride-th element, the stride being a multiple of units * run, so
// that all of them belong to one unit. Neighbours still read neighbours.
fn columns(thread: u32) {
    let stride = max(params.stride, 1u);    // never 0 here; `max` shows it
    let column = thread % stride;
    let first_row = thread / stride * (4u * VECS);
    if (first_row * stride + column >= params.elems) { return; }
    let unit = place(column).unit;
    open_unit(unit);
    for (var k = 0u; k < 4u * VECS; k++) {
        let i = (first_row + k) * stride + column;
        if (i >= params.elems) { break; }
        load_one(i);
        visit(0u);
    }
    flush_unit(unit);
}
