// The loss's sums: per invocation, then per run in workgroup memory, then per range unit. They are sums of
// whole numbers and so do not depend on order; src/loss.rs defines them.
// Needs from the prelude: FUSED and ONCE (bool), LOSS_WORDS, and where a unit's sums stand among its words, lowest word
// first: MAX_AT, the largest loss; ABS_AT, sum |D|; NOISE_AT, sum D^2; CODES_AT, sum Q^2; CROSS_AT, sum Q D in
// two's complement, three words. SLOT_WORDS, see loss_slots. And TABLE_UNITS: of how many of a tile's units there is a value_table.

@group(0) @binding(5) var<storage, read_write> losses: array<atomic<u32>>;      // LOSS_WORDS per unit

var<private> loss_s: u32;
var<private> loss_z: i32;
var<private> grid: i32;
var<private> largest_x: u32;        // of code 0, all or those below base(s): the loss is |x| itself
var<private> largest_d: u32;        // of others: the loss is on the grid exactly
var<private> abs_sum: vec2<u32>;    // each sum lowest word first; an invocation's share stays below 2^64
var<private> noise_sum: vec2<u32>;
var<private> noise_top: u32;        // but of 128 elements that are clipped
var<private> codes_sum: vec2<u32>;
var<private> cross_sum: vec2<u32>;
var<private> on_own_grid: bool;     // whether the open unit's losses are summed by four where its codes are certain
var<private> four_sums: FourSums;
var<private> loss_slot: u32;        // the open unit's, counted within the tile

// What visit_four_loss adds up; fold_fours makes the sums of it. D is 2^12 h + l, l from 0. The last are the largest |D| from
// base(s) on; and of all |x| less base(s), modulo 2^32, the largest, which tells the largest of those below, if there are any.
struct FourSums { abs: u32, ll: u32, hl: u32, hh: u32, kk: u32, kl: u32, kh: u32, size: u32, below: u32 }

// De-quantized values on the grid, by steps from the zero point.
const TABLE_STEPS = 1u << select(CODE_BITS, CODE_BITS - 1u, UNCLIPPED);
var<workgroup> value_table: array<u32, select(1u, TABLE_UNITS * TABLE_STEPS, TABLE_UNITS > 0u)>;

// An invocation's share of the table of a tile's unit, one of TABLE_UNITS.
fn fill_table(slot: u32, s: u32, nth: u32, invocations: u32) {
    for (var k = nth; k < TABLE_STEPS; k += max(invocations, 1u)) {
        value_table[slot * TABLE_STEPS + k] = four_values_to_grid(vec4<u32>(k), s).x;
    }
}

fn values_on_grid(k: vec4<u32>) -> vec4<u32> {
    if (TABLE_UNITS > 0u && (ONCE || loss_slot < TABLE_UNITS)) {
        let at = loss_slot * TABLE_STEPS + k;
        return vec4<u32>(value_table[at.x], value_table[at.y], value_table[at.z], value_table[at.w]);
    }
    return four_values_to_grid(k, loss_s);
}

// A run's slot: the largest loss, and of each of the four sums three words that 22 bits of an invocation's go into, of the highest
// ones 20 with their sign: what at most 1024 invocations add, each once, does not overflow, and none has to wait for what another
// one carries. A tile that is quantized once sees few units; what is summed by its invocation alone needs no slot.
// Where there are tables there are few units, at most one of them without.
const LOSS_SLOTS = select(select(select(SLOTS, ONCE_UNITS, ONCE), TABLE_UNITS + 1u, TABLE_UNITS > 0u), 1u, ALONE);
var<workgroup> loss_slots: array<atomic<u32>, LOSS_SLOTS * SLOT_WORDS>;

// The largest loss of a unit of the tile, beyond a step; known before any loss is summed.
fn know_largest(slot: u32, largest: u32) { atomicMax(&loss_slots[slot * SLOT_WORDS], largest); }

fn open_loss(unit: u32, slot: u32, s: u32, z: i32) {
    // Other invocations raise the largest loss meanwhile, but not across the grid's limit: beyond a step it
    // was set before, and losses up to a step leave the grid as it is.
    var largest: u32;
    if (ONCE) {
        largest = atomicLoad(&loss_slots[slot * SLOT_WORDS]);
    } else {
        largest = atomicLoad(&losses[params.losses_at + unit * LOSS_WORDS + MAX_AT]);
    }
    open_sums(slot, s, z, largest);
}

// The sums of a unit with this scale and zero point whose largest loss beyond a step is known.
fn open_sums(slot: u32, s: u32, z: i32, largest: u32) {
    loss_slot = slot;
    loss_s = s;
    loss_z = z;
    grid = grid_exp(s, largest);
    on_own_grid = CODE_BITS < 16u && BLOCKS <= 16u && is_fine(s) && grid == parts(s).e - 1;
    four_sums = FourSums();
    largest_x = 0u;
    largest_d = 0u;
    abs_sum = vec2<u32>();
    noise_sum = vec2<u32>();
    noise_top = 0u;
    codes_sum = vec2<u32>();
    cross_sum = vec2<u32>();
}

fn add_wide(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let lo = a.x + b.x;
    return vec2<u32>(lo, a.y + b.y + select(0u, 1u, lo < b.x));
}

fn visit_loss(b: u32, field: u32) {
    let out = value_of(field, loss_s, loss_z);
    let q = loss_steps(field, out, loss_s, loss_z);
    nonfinite_out_elems += select(1u, 0u, is_finite(out));
    if (!is_finite(b) || !is_finite(out)) {
        excluded_elems += 1u;
        return;
    }
    let d = distance_on_grid(b, out, grid);
    let size = unsigned_abs(d);
    let k = unsigned_abs(q);
    abs_sum = add_wide(abs_sum, vec2<u32>(size, 0u));
    let before = noise_sum.y;
    noise_sum = add_wide(noise_sum, vec2<u32>(size * size, mul_hi(size, size)));
    noise_top += select(0u, 1u, noise_sum.y < before);
    codes_sum = add_wide(codes_sum, vec2<u32>(k * k, mul_hi(k, k)));
    let product = vec2<u32>(k * size, mul_hi(k, size));
    let negated = vec2<u32>(0u - product.x, ~product.y + select(0u, 1u, product.x == 0u));
    cross_sum = add_wide(cross_sum, select(product, negated, (q < 0) != (d < 0)));
    if (q == 0) {
        largest_x = max(largest_x, b & MAGNITUDE);
    } else {
        largest_d = max(largest_d, size);
    }
}

fn sums_by_four() -> bool { return on_own_grid; }

// Four codes, if they are certain, on the scale's own grid; else nothing. Either side of zero gives the same |D| and Q D.
// Nothing overflows: a certain code's quotient lies at least 2^-16 of a step, 512 on the grid, within the halves, and x' is off
// by 256 and x by 1/2 at most, so that |D| < ms < 2^24. So h is from -2^12, h and l are below 2^12 and k below 2^8, and of at most
// 128 elements an invocation's sums stay below 2^32, those with a sign below 2^31.
fn visit_four_loss(b: vec4<u32>, four: FourSteps, certain: bool) {
    if (!certain) { return; }
    let a = b & vec4<u32>(MAGNITUDE);
    let k = four.steps;
    let d = values_on_grid(k) - four.z;
    let size = min(d, vec4<u32>() - d);
    let h = bitcast<vec4<u32>>(bitcast<vec4<i32>>(d) >> vec4<u32>(12u));
    let l = d & vec4<u32>(0xfffu);
    four_sums.abs += total(size);
    four_sums.ll += total(l * l);
    four_sums.hl += total(h * l);
    four_sums.hh += total(h * h);
    four_sums.kk += total(k * k);
    four_sums.kl += total(k * l);
    four_sums.kh += total(k * h);
    let below = a - base(loss_s);
    let far = select(size, vec4<u32>(), below >= vec4<u32>(SIGN));
    four_sums.size = max(four_sums.size, max(max(far.x, far.y), max(far.z, far.w)));
    four_sums.below = max(four_sums.below, max(max(below.x, below.y), max(below.z, below.w)));
}

fn total(v: vec4<u32>) -> u32 { return v.x + v.y + v.z + v.w; }

fn fold_fours() {
    let f = four_sums;
    largest_d = max(largest_d, f.size);
    if (f.below >= SIGN) { largest_x = max(largest_x, f.below + base(loss_s)); }
    abs_sum = add_wide(abs_sum, vec2<u32>(f.abs, 0u));
    noise_sum = add_wide(noise_sum, vec2<u32>(f.ll, 0u));
    noise_sum = add_wide(noise_sum, vec2<u32>(f.hl << 13u, bitcast<u32>(bitcast<i32>(f.hl) >> 19u)));
    noise_sum = add_wide(noise_sum, vec2<u32>(f.hh << 24u, f.hh >> 8u));
    codes_sum = add_wide(codes_sum, vec2<u32>(f.kk, 0u));
    cross_sum = add_wide(cross_sum, vec2<u32>(f.kl, 0u));
    cross_sum = add_wide(cross_sum, vec2<u32>(f.kh << 12u, bitcast<u32>(bitcast<i32>(f.kh) >> 20u)));
}

// The largest loss, if this pass is the one to find it. Only a pass that computes the codes knows that its
// losses are exact on the grid, and only on the scale's own grid; elsewhere the largest loss is known before.
fn largest_loss() -> u32 {
    if (!FUSED || grid != parts(loss_s).e - 1) { return 0u; }
    return max(largest_x, round_pack(0u, largest_d, grid));
}

fn sign_word(top: u32) -> u32 { return bitcast<u32>(bitcast<i32>(top) >> 31u); }

// Adds a word and a carry to a word of a unit, and returns the carry to the next. Each wrap of a word is seen by exactly one
// atomicAdd, which carries it on; so a sum of several words is exact in any order. Where value + carry is 0, either both are,
// or the two wrapped and the carry goes on.
fn add_word(i: u32, value: u32, carry: u32) -> u32 {
    let sum = value + carry;
    if (sum == 0u) { return carry; }
    let old = atomicAdd(&losses[i], sum);
    return select(0u, 1u, old + sum < old);
}

// Adds three words, lowest first, to those that begin there.
fn add_three(at: u32, low: vec2<u32>, top: u32) -> u32 {
    return add_word(at + 2u, top, add_word(at + 1u, low.y, add_word(at, low.x, 0u)));
}

fn flush_loss(slot: u32) {
    if (FUSED) { fold_fours(); }
    let at = slot * SLOT_WORDS;
    let largest = largest_loss();
    if (largest != 0u) { atomicMax(&loss_slots[at], largest); }
    add_pieces(at + 1u, abs_sum, abs_sum.y >> 12u);
    add_pieces(at + 4u, noise_sum, (noise_sum.y >> 12u) | (noise_top << 20u));
    add_pieces(at + 7u, codes_sum, codes_sum.y >> 12u);
    add_pieces(at + 10u, cross_sum, bitcast<u32>(bitcast<i32>(cross_sum.y) >> 12u));
}

fn add_pieces(at: u32, sum: vec2<u32>, top: u32) {
    add_piece(at, sum.x & 0x3fffffu);
    add_piece(at + 1u, (sum.x >> 22u) | ((sum.y & 0xfffu) << 10u));
    add_piece(at + 2u, top);
}

fn add_piece(at: u32, piece: u32) {
    if (piece != 0u) { atomicAdd(&loss_slots[at], piece); }
}

fn flush_loss_to_unit(unit: u32) {
    let largest = largest_loss();
    if (largest != 0u) { atomicMax(&losses[params.losses_at + unit * LOSS_WORDS + MAX_AT], largest); }
    let at = params.losses_at + unit * LOSS_WORDS;
    add_three(at + ABS_AT, abs_sum, 0u);
    add_word(at + NOISE_AT + 3u, 0u, add_three(at + NOISE_AT, noise_sum, noise_top));
    add_three(at + CODES_AT, codes_sum, 0u);
    add_three(at + CROSS_AT, cross_sum, sign_word(cross_sum.y));
}

// The sums of a unit that is the invocation's alone, and what was known of its largest loss.
fn store_sums(at: u32, known: u32) {
    fold_fours();
    atomicStore(&losses[at + MAX_AT], max(largest_loss(), known));
    store_three(at + ABS_AT, abs_sum, 0u);
    store_three(at + NOISE_AT, noise_sum, noise_top);
    atomicStore(&losses[at + NOISE_AT + 3u], 0u);
    store_three(at + CODES_AT, codes_sum, 0u);
    store_three(at + CROSS_AT, cross_sum, sign_word(cross_sum.y));
}

fn store_three(at: u32, low: vec2<u32>, top: u32) {
    atomicStore(&losses[at], low.x);
    atomicStore(&losses[at + 1u], low.y);
    atomicStore(&losses[at + 2u], top);
}

// A barrier follows.
fn begin_loss(tile: u32, lane: u32) {
    let words = min(slots_of(tile), LOSS_SLOTS) * SLOT_WORDS;
    for (var i = lane; i < words; i += WORKGROUP) { atomicStore(&loss_slots[i], 0u); }
}

// A slot's words to its unit's, an invocation for each sum: they are far away. Who quantizes a unit once has all of it.
fn drain_loss(tile: u32, lane: u32) {
    workgroupBarrier();
    let sums = 4u * min(slots_of(tile), LOSS_SLOTS);
    for (var i = lane; i < sums; i += WORKGROUP) {
        let slot = i / 4u;
        let nth = i % 4u;
        let source = slot * SLOT_WORDS;
        let to = params.losses_at + unit_of_slot(tile, slot) * LOSS_WORDS;
        if (nth == 0u) {
            let largest = atomicLoad(&loss_slots[source]);
            if (ONCE) {
                atomicStore(&losses[to + MAX_AT], largest);
            } else if (largest != 0u) {
                atomicMax(&losses[to + MAX_AT], largest);
            }
        }
        let first = source + 1u + 3u * nth;
        let p = atomicLoad(&loss_slots[first]);
        let q = atomicLoad(&loss_slots[first + 1u]);
        let t = atomicLoad(&loss_slots[first + 2u]);
        let low = add_wide(vec2<u32>(p, 0u), vec2<u32>(q << 22u, q >> 10u));
        let middle = low.y + (t << 12u);
        let top = bitcast<u32>(bitcast<i32>(t) >> 20u) + select(0u, 1u, middle < low.y);
        let at = to + vec4<u32>(ABS_AT, NOISE_AT, CODES_AT, CROSS_AT)[nth];
        if (ONCE) {
            store_three(at, vec2<u32>(low.x, middle), top);
            if (nth == 1u) { atomicStore(&losses[at + 3u], 0u); }
        } else {
            let carry = add_three(at, vec2<u32>(low.x, middle), top);
            if (nth == 1u) { add_word(at + 3u, 0u, carry); }
        }
    }
}
