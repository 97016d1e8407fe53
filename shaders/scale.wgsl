// One invocation per range unit: from the range's keys to the scale, the recipe that quantize needs, and the
// largest loss of a clipped unit. Twin: src/cpu/scale.rs.

@group(0) @binding(2) var<storage, read> ranges: array<vec2<u32>>;              // hi key, lo key per unit
@group(0) @binding(3) var<storage, read_write> scales: array<u32>;              // read when params.given
@group(0) @binding(4) var<storage, read_write> recipes: array<Recipe>;
@group(0) @binding(5) var<storage, read_write> losses: array<u32>;              // LOSS_WORDS per unit

// How far the range reaches beyond the outermost de-quantized values, where that is more than a step: the
// unit's largest loss then. Interior losses are about half a step, so that up to a step the grid is the same.
fn reach(lo: u32, hi: u32, s: u32) -> u32 {
    let end_p = decode(QMAX, s);
    let end_n = decode(QMIN, s);
    var far = 0u;
    if (is_finite(end_p)) {
        let d = sub(hi, end_p);
        far = max(far, select(d, 0u, (d >> 31u) == 1u));
    }
    if (is_finite(end_n)) {
        let d = sub(end_n, lo);
        far = max(far, select(d, 0u, (d >> 31u) == 1u));
    }
    return select(0u, far, far > s);
}

@compute @workgroup_size(WORKGROUP)
fn scale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let unit = (group.x + group.y * groups.x) * WORKGROUP + lane;
    if (unit >= params.units) { return; }
    let keys = ranges[unit];
    let hi = from_hi_key(keys.x);
    let lo = from_lo_key(keys.y);
    var s: u32;
    if (params.given == 1u) {
        s = scales[unit];
    } else {
        s = scale_of(lo, hi);
        scales[unit] = s;
    }
    recipes[unit] = recipe(s, lo, hi);
    if (params.with_loss == 1u) { losses[unit * LOSS_WORDS] = reach(lo, hi, s); }
}
