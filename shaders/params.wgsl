// The uniform of every kernel: which part of the tensor a dispatch covers. Rust's side: Params in
// src/gpu/shader.rs; a test compares the two.

struct Params {
    elems: u32,         // elements of the chunk
    first_unit: u32,    // the unit of its first element
    first_left: u32,    // how many elements of that run lie in the chunk or beyond, saturated
    run: u32,           // elements per run, saturated
    units: u32,         // range units of the tensor
    stride: u32,        // rows: 0; columns: the distance of an invocation's elements
    counters: u32,      // where the chunk's counters begin
    given: u32,         // scale: 1 when the scales are the caller's
    with_loss: u32,     // scale: 1 when the loss will be summed with the codes
}

@group(0) @binding(0) var<uniform> params: Params;
