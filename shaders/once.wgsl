// Quantize in one pass: a tile holds whole range units, at most ONCE_UNITS; it is read once, into the workgroup's
// memory, and range, scale and codes come from there. The chunk's runs are all of params.run elements, and each is a
// unit of its own.
// Needs from the prelude: ONCE_UNITS, and ONCE_ELEMS, the most slots of a tile.

@group(0) @binding(3) var<storage, read_write> scales: array<u32>;
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;

var<workgroup> tile_x: array<vec4<u32>, ONCE_ELEMS / 4u>;
var<workgroup> tile_hi: array<atomic<u32>, ONCE_UNITS>;
var<workgroup> tile_lo: array<atomic<u32>, ONCE_UNITS>;
var<workgroup> tile_recipes: array<Recipe, ONCE_UNITS>;
var<private> tile_start: u32;       // the tile's first vector
var<private> once_unit: u32;        // the open unit, counted within the tile
var<private> once_hi: u32;
var<private> once_lo: u32;

fn prepare(tile: u32, lane: u32) {
    let start = tile * params.tile_elems;
    let length = max(params.run, 1u);       // never 0; `max` shows it
    tile_start = start / 4u;
    tile_unit = params.first_unit + start / length;
    for (var i = lane; i < ONCE_UNITS; i += WORKGROUP) {
        atomicStore(&tile_hi[i], 0u);
        atomicStore(&tile_lo[i], 0u);
    }
    workgroupBarrier();
    once_unit = 0u;
    for (var k = 0u; k < BLOCKS; k++) {
        let first = 8u * (k * WORKGROUP + lane);
        if (first >= params.tile_elems || start + first >= params.elems) { break; }
        fold_four(start, first);
        fold_four(start, first + 4u);
    }
    fold_unit();
    workgroupBarrier();
    for (var i = lane; i < ONCE_UNITS; i += WORKGROUP) {
        let unit = tile_unit + i;
        if (i * length < params.tile_elems && unit < params.units) {
            let hi = from_hi_key(atomicLoad(&tile_hi[i]));
            let lo = from_lo_key(atomicLoad(&tile_lo[i]));
            let s = scale_of(lo, hi, rule());
            let z = zero_point_of(lo, s, rule());
            scales[params.scales_at + unit] = s;
            if (params.has_zero_point == 1u) { zero_points[params.zero_points_at + unit] = z; }
            let r = recipe(s, z, params.qmin, params.qmax);
            tile_recipes[i] = r;
            know_largest(i, reach(lo, hi, r));
        }
    }
    workgroupBarrier();
}

// Reads four elements of the tile, and adds them to their units' ranges.
fn fold_four(start: u32, first: u32) {
    if (start + first >= params.elems) { return; }
    let four_bits = x4((start + first) / 4u);
    tile_x[first / 4u] = four_bits;
    let length = max(params.run, 1u);
    var unit = first / length;
    var left = length - (first - unit * length);
    for (var c = 0u; c < 4u; c++) {
        if (start + first + c >= params.elems) { break; }
        if (left == 0u) {
            unit += 1u;
            left = length;
        }
        left -= 1u;
        if (unit != once_unit) {
            fold_unit();
            once_unit = unit;
        }
        once_hi = max(once_hi, hi_key(four_bits[c]));
        once_lo = max(once_lo, lo_key(four_bits[c]));
    }
}

fn fold_unit() {
    if (once_hi != 0u) {
        atomicMax(&tile_hi[once_unit], once_hi);
        atomicMax(&tile_lo[once_unit], once_lo);
    }
    once_hi = 0u;
    once_lo = 0u;
}

fn input4(v: u32) -> vec4<u32> { return tile_x[v - tile_start]; }

fn recipe_of(unit: u32) -> Recipe {
    let r = tile_recipes[unit - tile_unit];
    // es is never beyond; `clamp` shows it of memory that begins anyhow.
    let es = clamp(r.es, -512, 511);
    return Recipe(
        r.s, r.ms, es, r.reciprocal, r.window_p, r.window_n, r.clip_p, r.clip_n, r.cap_p, r.cap_n, r.z,
    );
}
