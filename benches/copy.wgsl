// The yardstick: reads a vector of four words, writes one, as quantize does, and no arithmetic to speak of
// (COPY_ALL false); or writes all four (COPY_ALL true).

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> all: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> quarter: array<u32>;

@compute @workgroup_size(256)
fn copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = group.x + group.y * groups.x;
    for (var k = 0u; k < 4u; k++) {
        let v = tile * 1024u + k * 256u + lane;
        if (v >= VECTORS) { break; }
        let bits = x[v];
        if (COPY_ALL) {
            all[v] = bits;
        } else {
            quarter[v] = bits.x ^ bits.y ^ bits.z ^ bits.w;
        }
    }
}
