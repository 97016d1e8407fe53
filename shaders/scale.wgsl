// One invocation per range unit: from the range's keys to the scale and the zero point, the recipe that quantize
// needs, and the largest loss of a clipped unit. Twin: src/cpu/scale.rs.

@group(0) @binding(2) var<storage, read_write> ranges: array<vec2<u32>>;        // hi key, lo key per unit
@group(0) @binding(3) var<storage, read_write> scales: array<u32>;              // read when params.given
@group(0) @binding(4) var<storage, read_write> recipes: array<Recipe>;
@group(0) @binding(5) var<storage, read_write> losses: array<u32>;              // LOSS_WORDS per unit
@group(0) @binding(6) var<storage, read_write> zero_points: array<i32>;         // read when params.given

@compute @workgroup_size(WORKGROUP)
fn scale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let unit = tile_of(group, groups) * WORKGROUP + lane;
    if (unit >= params.units) { return; }
    let keys = ranges[params.ranges_at + unit];
    let hi = from_hi_key(keys.x);
    let lo = from_lo_key(keys.y);
    var s: u32;
    var z = 0;
    if (params.given == 1u) {
        s = scales[params.scales_at + unit];
        if (params.has_zero_point == 1u) { z = nearest_code(zero_points[params.zero_points_at + unit]); }
    } else {
        s = scale_of(lo, hi, rule());
        z = zero_point_of(lo, s, rule());
        scales[params.scales_at + unit] = s;
        if (params.has_zero_point == 1u) { zero_points[params.zero_points_at + unit] = z; }
    }
    let r = recipe(s, z, params.qmin, params.qmax, bitcast<u32>(params.qmax) - bitcast<u32>(params.qmin) > 255u);
    recipes[params.recipes_at + unit] = r;
    if (params.with_loss == 1u) { losses[params.losses_at + unit * LOSS_WORDS] = reach(lo, hi, r); }
}
