// For kernels that do not reduce per range unit, runs may be short.
fn traverse(tile: u32, lane: u32) { rows(tile, lane); }
