// Zeroes, for what is added to: one word an invocation. params.elems is their number.

@group(0) @binding(1) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn clear(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = tile_of(group, groups) * WORKGROUP + lane;
    if (i < params.elems) { words[params.out_at + i] = 0u; }
}
