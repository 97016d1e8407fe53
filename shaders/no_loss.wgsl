// Quantize alone: the loss costs nothing.

fn open_loss(unit: u32, slot: u32, s: u32, z: i32) {}
fn open_sums(slot: u32, s: u32, z: i32, largest: u32) {}
fn fill_table(slot: u32, s: u32, nth: u32, invocations: u32) {}
fn store_sums(at: u32, known: u32) {}
fn visit_loss(b: u32, field: u32) {}
fn flush_loss(slot: u32) {}
fn sums_by_four() -> bool { return true; }
fn visit_four_loss(b: vec4<u32>, four: FourSteps, certain: bool) {}
fn begin_loss(tile: u32, lane: u32) {}
fn know_largest(slot: u32, largest: u32) {}
fn drain_loss(tile: u32, lane: u32) {}
