// The loss's sums: per invocation, then per run in workgroup memory, then per range unit. They are sums of
// whole numbers and so do not depend on order; src/loss.rs defines them.
// Needs from the prelude: FUSED (bool), LOSS_WORDS, and where a unit's sums stand among its words, lowest word
// first: MAX_AT, the largest loss; ABS_AT, sum |D|; NOISE_AT, sum D^2; CODES_AT, sum Q^2; CROSS_AT, sum Q D in
// two's complement, three words up to SUM_WORDS.

@group(0) @binding(5) var<storage, read_write> losses: array<atomic<u32>>;      // LOSS_WORDS per unit

var<private> loss_s: u32;
var<private> grid: i32;
var<private> largest_x: u32;        // of code 0: the loss is |x| itself
var<private> largest_d: u32;        // of other codes: the loss is on the grid exactly
var<private> sums: array<u32, SUM_WORDS>;
var<workgroup> loss_slots: array<atomic<u32>, SLOTS * SUM_WORDS>;

fn open_loss(unit: u32, s: u32) {
    loss_s = s;
    // Other invocations raise the largest loss meanwhile, but not across the grid's limit: beyond a step it
    // was set before, and losses up to a step leave the grid as it is.
    grid = grid_exp(s, atomicLoad(&losses[unit * LOSS_WORDS]));
    largest_x = 0u;
    largest_d = 0u;
    for (var w = 0u; w < SUM_WORDS; w++) { sums[w] = 0u; }
}

// Adds (lo, hi) to the words at `at`; an invocation's share stays below 2^64.
fn add_two(at: u32, lo: u32, hi: u32) {
    let sum = sums[at] + lo;
    sums[at + 1u] += hi + select(0u, 1u, sum < lo);
    sums[at] = sum;
}

fn visit_loss(b: u32, q: i32) {
    let out = decode(q, loss_s);
    if (!is_finite(out)) { tally[NONFINITE_OUT_ELEMS] += 1u; }
    if (!is_finite(b) || !is_finite(out)) {
        tally[EXCLUDED_ELEMS] += 1u;
        return;
    }
    let d = distance_on_grid(b, out, grid);
    let size = u32(abs(d));
    let k = u32(abs(q));
    add_two(ABS_AT, size, 0u);
    add_two(NOISE_AT, size * size, mul_hi(size, size));
    sums[CODES_AT] += k * k;
    let lo = k * size;
    let hi = mul_hi(k, size);
    let minus = (q < 0) != (d < 0);
    let borrow = select(0u, 1u, lo == 0u);
    add_two(CROSS_AT, select(lo, 0u - lo, minus), select(hi, ~hi + borrow, minus));
    if (q == 0) {
        largest_x = max(largest_x, b & MAGNITUDE);
    } else {
        largest_d = max(largest_d, size);
    }
}

// Completes an invocation's words: the sign of the last sum, and the largest loss. Only a pass that computes
// the codes knows that its losses are exact on the grid, and only on the scale's own grid; elsewhere the
// largest loss is known before.
fn close_sums() {
    sums[CROSS_AT + 2u] = bitcast<u32>(bitcast<i32>(sums[CROSS_AT + 1u]) >> 31u);
    if (FUSED && grid == parts(loss_s).e - 1) {
        sums[MAX_AT] = max(largest_x, round_pack(0u, largest_d, grid));
    }
}

fn add_slot_word(i: u32, value: u32) -> u32 {
    if (value == 0u) { return 0u; }
    let old = atomicAdd(&loss_slots[i], value);
    return select(0u, 1u, old + value < old);
}

fn add_unit_word(i: u32, value: u32) -> u32 {
    if (value == 0u) { return 0u; }
    let old = atomicAdd(&losses[i], value);
    return select(0u, 1u, old + value < old);
}

// Each wrap of a word is seen by exactly one atomicAdd, which carries it on; so the words' total is exact in
// any order. A carry added to all ones wraps by itself and goes on as a carry of its own.
fn flush_loss(slot: u32) {
    close_sums();
    let at = slot * SUM_WORDS;
    if (sums[MAX_AT] != 0u) { atomicMax(&loss_slots[at], sums[MAX_AT]); }
    var carry = 0u;
    for (var w = ABS_AT; w < SUM_WORDS; w++) {
        if (w == NOISE_AT || w == CODES_AT || w == CROSS_AT) { carry = 0u; }
        let value = sums[w] + carry;
        let wrapped = select(0u, 1u, value < carry);
        carry = wrapped + add_slot_word(at + w, value);
    }
}

fn flush_loss_to_unit(unit: u32) {
    let at = unit * LOSS_WORDS;
    if (sums[MAX_AT] != 0u) { atomicMax(&losses[at], sums[MAX_AT]); }
    var carry = 0u;
    for (var w = ABS_AT; w < SUM_WORDS; w++) {
        if (w == NOISE_AT || w == CODES_AT || w == CROSS_AT) { carry = 0u; }
        let value = sums[w] + carry;
        let wrapped = select(0u, 1u, value < carry);
        carry = wrapped + add_unit_word(at + w, value);
    }
}

fn clear_loss(lane: u32) {
    for (var i = lane; i < SLOTS * SUM_WORDS; i += WORKGROUP) { atomicStore(&loss_slots[i], 0u); }
}

fn drain_loss(tile: u32, lane: u32) {
    let first = place(tile * TILE_ELEMS).unit;
    for (var slot = lane; slot < SLOTS; slot += WORKGROUP) {
        for (var w = 0u; w < SUM_WORDS; w++) { sums[w] = atomicLoad(&loss_slots[slot * SUM_WORDS + w]); }
        flush_loss_to_unit((first + slot) % params.units);
    }
}
