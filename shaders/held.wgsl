// Quantize in one read: an invocation holds 32 neighbouring slots from their range to their codes, or to their de-quantized
// values (VALUES). For chunks of whole units
// that follow each other, each of a multiple of 32 slots and at most a workgroup's. Twin: src/cpu/quantize.rs.
// Needs from the prelude: ALONE, whether a unit is one invocation's; UNCLIPPED, whether no finite value is clipped by its
// unit's own scale, and codes have at most 127 steps: by the largest magnitude over the last code, where neither the scale nor
// the quotient is off by more than 2^-24 of itself. Composed with no_loss.wgsl or loss_sums.wgsl.

@group(0) @binding(3) var<storage, read_write> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;

const SHARED = select(WORKGROUP, 1u, ALONE);
var<workgroup> unit_hi: array<atomic<u32>, SHARED>;
var<workgroup> unit_lo: array<atomic<u32>, SHARED>;

var<private> hi: u32;
var<private> lo: u32;           // UNCLIPPED: the complement of the least key, for what is not finite has the least ones
var<private> doubt: u32;        // bit k: the invocation's k-th vector of four is to be visited slot by slot
var<private> own: Recipe;
var<private> first: u32;        // where the invocation's codes or values begin, in vectors of words
var<private> most_key: u32;     // UNCLIPPED: of the upper end of the range, where the loss has to know it

// Where an invocation's slots lie, and those of its unit.
struct Piece { v: u32, slot: u32, unit: u32, is_first: bool }

@compute @workgroup_size(WORKGROUP)
fn held(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(group, groups);
    let nth = tile * (params.tile_elems / 4u) + 8u * lane;
    let exists = 32u * lane < params.tile_elems && 4u * nth < params.elems;
    let v = select(0u, nth, exists);
    let a = x4(v);
    let b = x4(v + 1u);
    let c = x4(v + 2u);
    let d = x4(v + 3u);
    let e = x4(v + 4u);
    let f = x4(v + 5u);
    let g = x4(v + 6u);
    let h = x4(v + 7u);
    fold(a);
    fold(b);
    fold(c);
    fold(d);
    fold(e);
    fold(f);
    fold(g);
    fold(h);
    doubt = select(0xffu, 0u, !UNCLIPPED || ~lo >= 2u * HIDDEN);
    let slot = select((32u * lane * params.run_factor) >> (params.run_shift & 31u), lane, ALONE);
    if (!ALONE) {
        begin_loss(tile, lane);
        share(lane, slot, exists);
    }
    if (UNCLIPPED) { own.s = scale_of_magnitude(from_magnitude_key(hi), rule()); }
    if (UNCLIPPED && FUSED) {
        // Where a scale has few digits, the range may reach far beyond the codes. Seldom; a loop that is not entered costs
        // nothing, see rows.
        for (var few = exists && !is_quick(own.s); few; few = false) {
            most_key = max(max(most_key_of(a, b), most_key_of(c, d)), max(most_key_of(e, f), most_key_of(g, h)));
        }
        if (!ALONE) { share_most(slot); }
    }
    let unit = unit_of_slot(tile, slot);
    let piece = Piece(v, slot, unit, ALONE || slot * params.run == 32u * lane);
    if (exists) { hold(piece, a, b, c, d, e, f, g, h); }
    flush_tally();
    if (!ALONE) { drain_loss(tile, lane); }
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
        let s = scale_of(least, most, rule());
        z = zero_point_of(least, s, rule());
        own = recipe(s, z, params.qmin, params.qmax, CODE_BITS == 16u);
        unit_quick = quick(own);
        if (FUSED) { known = reach(least, most, own); }
    }
    let s = own.s;
    if (piece.is_first) {
        scales[params.scales_at + piece.unit] = s;
        if (params.has_zero_point == 1u) { zero_points[params.zero_points_at + piece.unit] = z; }
    }
    open_sums(s, z, known);
    if (!is_quick(s) || !sums_by_four() || (VALUES && !open_values(s))) { doubt = 0xffu; }
    first = params.out_at / 4u + select(piece.v * CODE_BITS / 32u, piece.v, VALUES);
    let p = at_once(a, 0u);
    let q = at_once(b, 1u);
    let r = at_once(c, 2u);
    let t = at_once(d, 3u);
    put(0u, p, q, r, t);
    let i = at_once(e, 4u);
    let j = at_once(f, 5u);
    let k = at_once(g, 6u);
    let l = at_once(h, 7u);
    put(1u, i, j, k, l);
    if (CODE_BITS == 4u && !VALUES) { out[first] = vec4<u32>(halves(p, q), halves(r, t), halves(i, j), halves(k, l)); }
    if (UNCLIPPED && doubt != 0u) { own = recipe(s, z, params.qmin, params.qmax, false); }
    while (doubt != 0u) {
        one_by_one(piece.v, 31u - countLeadingZeros(max(doubt & (0u - doubt), 1u)));
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
fn share(lane: u32, slot: u32, exists: bool) {
    atomicStore(&unit_hi[lane], 0u);
    atomicStore(&unit_lo[lane], 0u);
    workgroupBarrier();
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

// The codes of the k-th vector, as packed. Values are stored at once.
fn at_once(b: vec4<u32>, k: u32) -> vec2<u32> {
    var four: FourSteps;
    if (UNCLIPPED) { four = four_inner_steps(b, unit_quick, FUSED); } else { four = four_of(b); }
    doubt |= select(1u << (k & 31u), 0u, four.certain);
    if (FUSED) { visit_four_loss(b, four, ((doubt >> (k & 31u)) & 1u) == 0u); }
    if (VALUES) { out[first + k] = values_of(four, own.s); }
    return words_of(four, select(own.z, 0, UNCLIPPED));
}

// Stores four vectors, the first or the second ones, of codes of 8 or 16 bits.
fn put(nth: u32, p: vec2<u32>, q: vec2<u32>, r: vec2<u32>, t: vec2<u32>) {
    if (VALUES) { return; }
    if (CODE_BITS == 8u) { out[first + nth] = vec4<u32>(p.x, q.x, r.x, t.x); }
    if (CODE_BITS == 16u) {
        out[first + 2u * nth] = vec4<u32>(p, q);
        out[first + 2u * nth + 1u] = vec4<u32>(r, t);
    }
}

// The word of two vectors of 4-bit codes.
fn halves(p: vec2<u32>, q: vec2<u32>) -> u32 { return p.x | (q.x << 16u); }

// The k-th vector, slot by slot, over what was stored of it; of 4-bit codes both vectors of its word.
fn one_by_one(v: u32, k: u32) {
    const VECTORS = select(1u, 2u, CODE_BITS == 4u && !VALUES);
    let begin = k & ~(VECTORS - 1u);
    var words = vec2<u32>();
    var values: vec4<u32>;
    for (var c = 0u; c < 4u * VECTORS; c++) {
        let b = x4(v + begin + c / 4u)[c % 4u];
        let field = field_of(b, own);
        count(b, own);
        if (VALUES) {
            values[c] = value_of(field, own.s, own.z);
        } else {
            words[CODE_BITS * c / 32u] |= field << ((CODE_BITS * c) & 31u);
        }
        if (((doubt >> ((begin + c / 4u) & 31u)) & 1u) == 1u) { visit_loss(b, field); }
    }
    if (VALUES) {
        out[first + k] = values;
    } else {
        let at = 4u * first + begin * CODE_BITS / 8u;
        out[at / 4u][at % 4u] = words.x;
        if (CODE_BITS == 16u) { out[at / 4u][at % 4u + 1u] = words.y; }
    }
    doubt &= ~(((1u << VECTORS) - 1u) << (begin & 31u));
}
