// Quantize in one pass: a tile holds whole range units, at most ONCE_UNITS. It is read twice, the second time from a
// cache: first for its ranges, then, when scales are made of them, for its codes. The chunk's runs are all of params.run
// elements, and each is a unit of its own. Composed with fours.wgsl.
// Needs from the prelude: ONCE_UNITS.

@group(0) @binding(3) var<storage, read_write> scales: array<u32>;
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;

var<workgroup> tile_hi: array<atomic<u32>, ONCE_UNITS>;
var<workgroup> tile_lo: array<atomic<u32>, ONCE_UNITS>;
var<workgroup> tile_recipes: array<Recipe, ONCE_UNITS>;
var<private> once_hi: u32;
var<private> once_lo: u32;

fn prepare(tile: u32, lane: u32) {
    for (var i = lane; i < ONCE_UNITS; i += WORKGROUP) {
        atomicStore(&tile_hi[i], 0u);
        atomicStore(&tile_lo[i], 0u);
    }
    workgroupBarrier();
    let start = tile * params.tile_elems;
    let end = min(start + params.tile_elems, params.elems);
    begin_tile(start);
    let whole = params.run >= end - start;
    var unit = 0u;
    var k = select(0u, 2u * BLOCKS, start >= end);
    for (; whole && k < 2u * BLOCKS; k += 4u) {
        let v = vec4<u32>(
            vector_of(start, lane, k), vector_of(start, lane, k + 1u), vector_of(start, lane, k + 2u), vector_of(start, lane, k + 3u),
        );
        if (4u * v.w + 4u > end) { break; }
        let a = x4(v.x);
        let b = x4(v.y);
        let c = x4(v.z);
        let d = x4(v.w);
        fold_four(a);
        fold_four(b);
        fold_four(c);
        fold_four(d);
    }
    for (; k < 2u * BLOCKS; k++) {
        let v = vector_of(start, lane, k);
        if (4u * v >= end) { break; }
        let next = unit_in_tile(4u * v - start);
        if (next != unit) {
            fold_into(unit);
            unit = next;
        }
        let beyond = vec4<u32>(4u * v) + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(end);
        fold_four(select(x4(v), vec4<u32>(MAGNITUDE), beyond));
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
            let r = recipe(s, z, params.qmin, params.qmax, CODE_BITS == 16u);
            tile_recipes[i] = r;
            know_largest(i, reach(lo, hi, r));
        }
    }
    workgroupBarrier();
}

fn fold_four(b: vec4<u32>) {
    once_hi = max(once_hi, max(max(hi_key(b.x), hi_key(b.y)), max(hi_key(b.z), hi_key(b.w))));
    once_lo = max(once_lo, max(max(lo_key(b.x), lo_key(b.y)), max(lo_key(b.z), lo_key(b.w))));
}

fn fold_into(unit: u32) {
    if (once_hi != 0u) {
        atomicMax(&tile_hi[unit], once_hi);
        atomicMax(&tile_lo[unit], once_lo);
    }
    once_hi = 0u;
    once_lo = 0u;
}

fn recipe_of(unit: u32) -> Recipe { return tile_recipes[unit - tile_unit]; }
