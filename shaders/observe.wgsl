// One invocation per range unit of a slab: its batch's range goes into what was observed. Twin: src/cpu/observe.rs.

@group(0) @binding(2) var<storage, read> ranges: array<vec2<u32>>;              // hi key, lo key per unit of the slab
@group(0) @binding(3) var<storage, read_write> observed: array<vec2<u32>>;      // the same of every unit

@compute @workgroup_size(WORKGROUP)
fn observe(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let unit = tile_of(group, groups) * WORKGROUP + lane;
    if (unit >= params.units) { return; }
    let at = params.first_unit + unit;
    observed[at] = merged(observed[at], ranges[unit], params.averaging);
}
