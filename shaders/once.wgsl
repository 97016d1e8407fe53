// Quantize in one pass: a tile holds whole range units, at most ONCE_UNITS. It is read twice, the second time from a
// cache: first for its ranges, then, when scales are made of them, for its codes. The chunk's runs are all of params.run
// elements, and each is a unit of its own.
// Needs from the prelude: ONCE_UNITS.

@group(0) @binding(3) var<storage, read_write> scales: array<u32>;
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;

var<workgroup> tile_hi: array<atomic<u32>, ONCE_UNITS>;
var<workgroup> tile_lo: array<atomic<u32>, ONCE_UNITS>;
var<workgroup> tile_recipes: array<Recipe, ONCE_UNITS>;
var<private> once_hi: u32;
var<private> once_lo: u32;

fn prepare(tile: u32, lane: u32) {
    let start = tile * params.tile_elems;
    let end = min(start + params.tile_elems, params.elems);
    tile_unit = params.first_unit + start / max(params.run, 1u);        // never 0; `max` shows it
    for (var i = lane; i < ONCE_UNITS; i += WORKGROUP) {
        atomicStore(&tile_hi[i], 0u);
        atomicStore(&tile_lo[i], 0u);
    }
    workgroupBarrier();
    var unit = 0u;
    for (var k = 0u; k < 2u * BLOCKS; k++) {
        let v = vector_of(start, lane, k);
        if (4u * v >= end) { break; }
        let at = place_in_tile(4u * v - start);
        if (at.unit != unit) {
            fold_into(unit);
            unit = at.unit;
        }
        let b = x4(v);
        let together = at.left >= 4u && 4u * v + 4u <= end;
        if (together) {
            once_hi = max(once_hi, max(max(hi_key(b.x), hi_key(b.y)), max(hi_key(b.z), hi_key(b.w))));
            once_lo = max(once_lo, max(max(lo_key(b.x), lo_key(b.y)), max(lo_key(b.z), lo_key(b.w))));
        }
        var left = at.left;
        for (var c = select(0u, 4u, together); c < 4u; c++) {
            if (4u * v + c >= end) { break; }
            if (left == 0u) {
                fold_into(unit);
                unit += 1u;
                left = params.run;
            }
            left -= 1u;
            once_hi = max(once_hi, hi_key(b[c]));
            once_lo = max(once_lo, lo_key(b[c]));
        }
    }
    fold_into(unit);
    workgroupBarrier();
    for (var i = lane; i < ONCE_UNITS; i += WORKGROUP) {
        let at = tile_unit + i;
        if (i * params.run < params.tile_elems && at < params.units) {
            let hi = from_hi_key(atomicLoad(&tile_hi[i]));
            let lo = from_lo_key(atomicLoad(&tile_lo[i]));
            let s = scale_of(lo, hi, rule());
            let z = zero_point_of(lo, s, rule());
            scales[params.scales_at + at] = s;
            if (params.has_zero_point == 1u) { zero_points[params.zero_points_at + at] = z; }
            let r = recipe(s, z, params.qmin, params.qmax);
            tile_recipes[i] = r;
            know_largest(i, reach(lo, hi, r));
        }
    }
    workgroupBarrier();
}

// The unit of a tile's slot, counted within the tile, and what is left of it. With f = ceil(2^n / run) and slots below 2^14,
// slot * f / 2^n is too large by less than slot * run / 2^n / run, which n = 14 + ceil(log2 run) keeps below 1 / run: the
// whole part is the quotient's. Nothing overflows: f is at most 2^15 + 1.
struct InTile { unit: u32, left: u32 }

fn place_in_tile(slot: u32) -> InTile {
    let unit = (slot * params.run_factor) >> (params.run_shift & 31u);
    return InTile(unit, (unit + 1u) * params.run - slot);
}

fn fold_into(unit: u32) {
    if (once_hi != 0u) {
        atomicMax(&tile_hi[unit], once_hi);
        atomicMax(&tile_lo[unit], once_lo);
    }
    once_hi = 0u;
    once_lo = 0u;
}

fn traverse(tile: u32, lane: u32) {
    let start = tile * params.tile_elems;
    let end = min(start + params.tile_elems, params.elems);
    row = ONCE_UNITS;
    for (var k = 0u; k < 2u * BLOCKS; k++) {
        let v = vector_of(start, lane, k);
        // The second half of a block is stored with the first, be there any of it or not.
        if (4u * (v & ~1u) >= end) { break; }
        if (4u * v < end) { within_tile(v, start, end); }
        store(v);
    }
    leave();
}

fn within_tile(v: u32, start: u32, end: u32) {
    let at = place_in_tile(4u * v - start);
    load(v);
    change_to(at.unit);
    let together = at.left >= 4u && 4u * v + 4u <= end;
    if (together) { visit_all(); }
    var left = at.left;
    for (var c = select(0u, 4u, together); c < 4u; c++) {
        if (4u * v + c >= end) { break; }
        if (left == 0u) {
            change_to(row + 1u);
            left = params.run;
        }
        left -= 1u;
        visit(c);
    }
}

fn change_to(unit: u32) {
    if (unit != row) {
        leave();
        row = unit;
        open_unit(tile_unit + unit);
    }
}

fn leave() {
    if (row < ONCE_UNITS) { flush_slot(row); }
}

fn recipe_of(unit: u32) -> Recipe { return tile_recipes[unit - tile_unit]; }
