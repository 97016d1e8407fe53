// Quantize in one read: an invocation holds eight vectors of four slots from their range to their codes or values. For chunks of
// whole units that follow each other, each of a multiple of 32 slots and at most a workgroup's. Twin: src/cpu/quantize.rs.
// What becomes of the codes says held_vectors.wgsl, held_words.wgsl or held_values.wgsl:
//     is_ready(s)             whether four_of's codes can be kept with this scale
//     keep(k, four)           the k-th vector's codes, as packed
//     keep_two(k, ..)         the k-th vector's and the next one's, k being even
//     keep_one(c, field)      one of a vector that is visited slot by slot, or of two that make a word
//     keep_anew(k)            all of them, over what was kept before
// Needs from the prelude: ALONE, whether a unit is one invocation's; SPREAD, whether invocations that share one take its vectors in
// turn, or its pairs of vectors with PAIRS, and not eight neighbouring ones each; UNCLIPPED, whether no finite value is clipped by
// its unit's own scale, and codes have at most 127 steps: by the largest magnitude over the last code, where neither the scale nor
// the quotient is off by more than 2^-24 of itself. Composed with no_loss.wgsl or loss_sums.wgsl.

@group(0) @binding(3) var<storage, read_write> scales: array<u32>;
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;

const SHARED = select(WORKGROUP, 1u, ALONE);
var<workgroup> unit_hi: array<atomic<u32>, SHARED>;
var<workgroup> unit_lo: array<atomic<u32>, SHARED>;

var<private> hi: u32;
var<private> lo: u32;           // UNCLIPPED: the complement of the least key, for what is not finite has the least ones
var<private> doubt: u32;        // bit k: the invocation's k-th vector of four is to be visited slot by slot
var<private> own: Recipe;
var<private> first: u32;        // the invocation's first vector
var<private> anew: vec4<u32>;   // what keep_one has kept
var<private> most_key: u32;     // UNCLIPPED: of the upper end of the range, where the loss has to know it

// Where an invocation's slots lie, and those of its unit.
struct Piece { slot: u32, unit: u32, is_first: bool }

@compute @workgroup_size(WORKGROUP)
fn held(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    let slot = select((32u * lane * params.run_factor) >> (params.run_shift & 31u), lane, ALONE);
    let begin = tile * (params.tile_elems / 4u) + slot * (params.run / 4u);
    let nth = lane - slot * (params.run / 32u);
    // One unit alone is slot 0 of every invocation.
    let exists = 32u * lane < params.tile_elems && 4u * begin < params.elems && nth < params.run / 32u;
    first = select(0u, begin + nth * select(8u, select(1u, 2u, PAIRS), SPREAD), exists);
    let a = x4(vector_at(0u));
    let b = x4(vector_at(1u));
    let c = x4(vector_at(2u));
    let d = x4(vector_at(3u));
    let e = x4(vector_at(4u));
    let f = x4(vector_at(5u));
    let g = x4(vector_at(6u));
    let h = x4(vector_at(7u));
    if (!ALONE) {
        // While the slots are on their way.
        atomicStore(&unit_hi[lane], 0u);
        atomicStore(&unit_lo[lane], 0u);
        begin_loss(tile, lane);
        workgroupBarrier();
    }
    fold(a);
    fold(b);
    fold(c);
    fold(d);
    fold(e);
    fold(f);
    fold(g);
    fold(h);
    doubt = select(0xffu, 0u, !UNCLIPPED || ~lo >= 2u * HIDDEN);
    if (!ALONE) { share(slot, exists); }
    if (UNCLIPPED) {
        own.s = scale_of_magnitude(from_magnitude_key(hi), rule());
    } else {
        own.s = scale_of(from_lo_key(lo), from_hi_key(hi), rule());
    }
    if (UNCLIPPED && FUSED) {
        // Where a scale has few digits, the range may reach far beyond the codes. Seldom; a loop that is not entered costs
        // nothing, see rows.
        for (var few = exists && !is_quick(own.s); few; few = false) {
            most_key = max(max(most_key_of(a, b), most_key_of(c, d)), max(most_key_of(e, f), most_key_of(g, h)));
        }
        if (!ALONE) { share_most(slot); }
    }
    if (TABLE_UNITS > 0u) {
        // Whose units do not fit in the tile have none.
        if (exists) { fill_table(slot, own.s, nth, params.run / 32u); }
        workgroupBarrier();
    }
    let unit = unit_of_slot(tile, slot);
    let piece = Piece(slot, unit, nth == 0u);
    if (exists) { hold(piece, a, b, c, d, e, f, g, h); }
    flush_tally();
    if (!ALONE) { drain_loss(tile, lane); }
}

// An invocation's k-th vector.
fn vector_at(k: u32) -> u32 {
    let pitch = select(1u, params.run / 32u, SPREAD);
    if (PAIRS) { return first + (k / 2u) * (2u * pitch) + k % 2u; }
    return first + k * pitch;
}

fn unit_of_slot(tile: u32, slot: u32) -> u32 { return params.first_unit + tile * params.tile_units + slot; }

fn slots_of(tile: u32) -> u32 {
    let elems = min(params.elems - min(tile * params.tile_elems, params.elems), params.tile_elems);
    return select((elems * params.run_factor) >> (params.run_shift & 31u), 1u, params.run_factor == 0u);
}

// From the range to the codes.
fn hold(
    piece: Piece, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, e: vec4<u32>, f: vec4<u32>, g: vec4<u32>, h: vec4<u32>,
) {
    var z = 0;
    var known = 0u;             // of the unit's largest loss
    if (UNCLIPPED) {
        unit_quick = inner_quick(own.s);
        for (var few = FUSED && !is_quick(own.s); few; few = false) {
            // Where the lower end is not the larger one, the upper end is, and reaches farther in any case.
            let least = SIGN | from_magnitude_key(hi);
            known = reach(least, from_hi_key(most_key), recipe(own.s, z, params.qmin, params.qmax, false));
        }
    } else {
        let most = from_hi_key(hi);
        let least = from_lo_key(lo);
        z = zero_point_of(least, own.s, rule());
        own = recipe(own.s, z, params.qmin, params.qmax, CODE_BITS == 16u);
        unit_quick = quick(own);
        if (FUSED) { known = reach(least, most, own); }
    }
    let s = own.s;
    if (piece.is_first) {
        scales[params.scales_at + piece.unit] = s;
        if (params.has_zero_point == 1u) { zero_points[params.zero_points_at + piece.unit] = z; }
    }
    open_sums(piece.slot, s, z, known);
    if (!is_quick(s) || !sums_by_four() || !is_ready(s)) { doubt = 0xffu; }
    if (FUSED && SPREAD) {
        // Read again, from a cache: a GPU has more workgroups at work at once where each holds less.
        for (var k = 0u; k < 8u; k += 2u) {
            let b = x4(vector_at(k));
            let c = x4(vector_at(k + 1u));
            two_at_once(k, b, c);
        }
    } else {
        two_at_once(0u, a, b);
        two_at_once(2u, c, d);
        two_at_once(4u, e, f);
        two_at_once(6u, g, h);
    }
    if (UNCLIPPED && doubt != 0u) { own = recipe(s, z, params.qmin, params.qmax, false); }
    while (doubt != 0u) {
        one_by_one(31u - countLeadingZeros(max(doubt & (0u - doubt), 1u)));
    }
    if (ALONE) {
        store_sums(params.losses_at + piece.unit * LOSS_WORDS, known);
    } else {
        if (piece.is_first) { know_largest(piece.slot, known); }
        flush_loss(piece.slot);
    }
}

fn fold(b: vec4<u32>) {
    if (UNCLIPPED) {
        let keys = magnitude_keys(b);
        hi = max(hi, max(max(keys.x, keys.y), max(keys.z, keys.w)));
        lo = max(lo, ~min(min(keys.x, keys.y), min(keys.z, keys.w)));
    } else {
        hi = max(hi, greatest_hi_key(b));
        lo = max(lo, greatest_lo_key(b));
    }
}

fn greatest_hi_key(b: vec4<u32>) -> u32 { return max(max(hi_key(b.x), hi_key(b.y)), max(hi_key(b.z), hi_key(b.w))); }

fn greatest_lo_key(b: vec4<u32>) -> u32 { return max(max(lo_key(b.x), lo_key(b.y)), max(lo_key(b.z), lo_key(b.w))); }

fn most_key_of(a: vec4<u32>, b: vec4<u32>) -> u32 { return max(greatest_hi_key(a), greatest_hi_key(b)); }

// The keys of the unit that is an invocation's to all of its invocations.
fn share(slot: u32, exists: bool) {
    if (exists) {
        atomicMax(&unit_hi[slot], hi);
        if (!UNCLIPPED) { atomicMax(&unit_lo[slot], lo); }
    }
    workgroupBarrier();
    hi = atomicLoad(&unit_hi[slot]);
    lo = atomicLoad(&unit_lo[slot]);
}

// The same of the range's upper end. Nothing else is in unit_lo then.
fn share_most(slot: u32) {
    if (most_key != 0u) { atomicMax(&unit_lo[slot], most_key); }
    workgroupBarrier();
    most_key = atomicLoad(&unit_lo[slot]);
}

// The k-th vector and the next one, k being even.
fn two_at_once(k: u32, b: vec4<u32>, c: vec4<u32>) {
    let p = at_once(b, k);
    let q = at_once(c, k + 1u);
    keep_two(k, p, q);
}

fn at_once(b: vec4<u32>, k: u32) -> vec2<u32> {
    var four: FourSteps;
    if (UNCLIPPED) { four = four_inner_steps(b, unit_quick, FUSED); } else { four = four_of(b); }
    doubt |= select(1u << (k & 31u), 0u, four.certain);
    if (FUSED) { visit_four_loss(b, four, ((doubt >> (k & 31u)) & 1u) == 0u); }
    return keep(k, four);
}

// The k-th vector, slot by slot; of 4-bit codes both vectors of its word.
fn one_by_one(k: u32) {
    const VECTORS = select(1u, 2u, PAIRS);
    let begin = k & ~(VECTORS - 1u);
    anew = vec4<u32>();
    for (var c = 0u; c < 4u * VECTORS; c++) {
        let b = x4(vector_at(begin + c / 4u))[c % 4u];
        let field = field_of(b, own);
        keep_one(c, field);
        count(b, own);
        if (((doubt >> ((begin + c / 4u) & 31u)) & 1u) == 1u) { visit_loss(b, field); }
    }
    keep_anew(begin);
    doubt &= ~(((1u << VECTORS) - 1u) << (begin & 31u));
}
