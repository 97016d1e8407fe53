// Quantize in one pass, an invocation per range unit, for short units of a multiple of eight slots: nobody waits for
// anybody. The chunk's runs are all of params.run elements, and each is a unit of its own.

@group(0) @binding(3) var<storage, read_write> scales: array<u32>;
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;

var<private> own_recipe: Recipe;
var<private> hi_most: u32;
var<private> lo_most: u32;

fn prepare(tile: u32, lane: u32) {}

fn traverse(tile: u32, lane: u32) {
    let nth = tile * WORKGROUP + lane;
    let start = nth * params.run / 4u;
    if (4u * start >= params.elems) { return; }
    let end = start + params.run / 4u;
    var v = start;
    for (; v + 4u <= end; v += 4u) {
        let a = x4(v);
        let b = x4(v + 1u);
        let c = x4(v + 2u);
        let d = x4(v + 3u);
        fold_four(a);
        fold_four(b);
        fold_four(c);
        fold_four(d);
    }
    for (; v < end; v++) { fold_four(x4(v)); }
    let unit = params.first_unit + nth;
    let lo = from_lo_key(lo_most);
    let s = scale_of(lo, from_hi_key(hi_most), rule());
    let z = zero_point_of(lo, s, rule());
    scales[params.scales_at + unit] = s;
    if (params.has_zero_point == 1u) { zero_points[params.zero_points_at + unit] = z; }
    own_recipe = recipe(s, z, params.qmin, params.qmax, CODE_BITS == 16u);
    open_unit(unit);
    for (v = start; v < end; v += 2u) {
        let a = fetch(v);
        let b = fetch(v + 1u);
        four(v, a);
        four(v + 1u, b);
    }
}

fn four(v: u32, f: vec4<u32>) {
    take(f);
    visit_all();
    store(v);
}

fn fold_four(b: vec4<u32>) {
    hi_most = max(hi_most, max(max(hi_key(b.x), hi_key(b.y)), max(hi_key(b.z), hi_key(b.w))));
    lo_most = max(lo_most, max(max(lo_key(b.x), lo_key(b.y)), max(lo_key(b.z), lo_key(b.w))));
}

fn recipe_of(unit: u32) -> Recipe { return own_recipe; }
