// What every kernel is told: which part of the tensor a dispatch covers, and the scheme's numbers. Rust's side:
// Params in src/gpu/params.rs; a test compares the two.
//
// A chunk is a stretch of slots: the elements, or the codes where rows of those are padded to whole bytes.

struct Params {
    elems: u32,             // slots of the chunk
    first_unit: u32,        // the range unit of its first slot
    first_left: u32,        // how many slots of that run lie in the chunk or beyond, saturated
    run: u32,               // slots per run, saturated
    units: u32,             // range units of the tensor
    stride: u32,            // rows: 0; run by run: 1; columns: the distance of an invocation's slots
    tile_elems: u32,        // slots per workgroup
    tile_units: u32,        // held: range units per workgroup
    run_factor: u32,        // fours: what divides by run, see unit_in_tile
    run_shift: u32,
    first_offset: u32,      // fours: the slots of the first run that lie before the chunk
    counters: u32,          // where the chunk's counters begin
    given: u32,             // scale: 1 when the scales are the caller's
    with_loss: u32,         // scale: 1 when the loss will be summed with the codes
    row_slots: u32,         // rows of their own, where slots and elements differ: slots of a row, saturated; else 0
    row_elems: u32,         // those of them that are elements
    row_pitch: u32,         // the distance of rows in what is read
    row_units: u32,         // runs that begin in a row, where they end with it; else 0
    first_row_slots: u32,   // what is left of the first row, saturated
    first_row_elems: u32,
    first_row_runs: u32,
    first_at: u32,          // where the first slot's element is read
    second_row_at: u32,     // where the second row begins in what is read
    kind: u32,              // of rule: see exact/scale.wgsl
    qmin: i32,
    qmax: i32,
    divisor: u32,
    divisor_factor: u32,
    magnitude_divisor: u32,
    magnitude_factor: u32,
    zero_scale: u32,
    sign_bit: u32,          // the codes' sign, in place; 0 of unsigned codes
    has_zero_point: u32,
    saturate: u32,          // 1 when the f16 cast takes the largest finite value for infinity
    averaging: u32,         // observe: the averaging constant's bits, or 0
    x_at: u32,              // where what is bound begins: the input, in vectors of four elements,
    codes_at: u32,          // given codes, in words,
    out_at: u32,            // codes or values that are written, in words,
    scales_at: u32,
    zero_points_at: u32,
    ranges_at: u32,         // ranges and recipes, in range units,
    recipes_at: u32,
    losses_at: u32,         // the loss's words and |x' - x|, in words
    errors_at: u32,
    rows: u32,              // of the table, where there is one
    first_workgroup: u32,
}
