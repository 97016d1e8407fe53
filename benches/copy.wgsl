// The yardsticks: reads a vector of four words and writes it (`copy`), or writes one word of it, as quantizing to 8 bits
// does, without arithmetic to speak of (`narrow`), or nothing (`scan`).

const LANES = 256u;

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> narrowed: array<u32>;

struct At {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

fn vector_of(at: At, k: u32) -> u32 { return (at.group.x + at.group.y * at.groups.x) * 4u * LANES + k * LANES + at.lane; }

@compute @workgroup_size(LANES)
fn copy(at: At) {
    for (var k = 0u; k < 4u; k++) {
        let v = vector_of(at, k);
        if (v < arrayLength(&x)) { y[v] = x[v]; }
    }
}

@compute @workgroup_size(LANES)
fn narrow(at: At) {
    for (var k = 0u; k < 4u; k++) {
        let v = vector_of(at, k);
        if (v < arrayLength(&x)) {
            let bits = x[v];
            narrowed[v] = bits.x ^ bits.y ^ bits.z ^ bits.w;
        }
    }
}

// Writes where all bits are 0 in all of its vectors: never, of floats that are not all 0.
@compute @workgroup_size(LANES)
fn scan(at: At) {
    var bits = vec4<u32>();
    for (var k = 0u; k < 16u; k++) {
        let v = (at.group.x + at.group.y * at.groups.x) * 16u * LANES + k * LANES + at.lane;
        if (v < arrayLength(&x)) { bits |= x[v]; }
    }
    if (all(bits == vec4<u32>())) { narrowed[0] = 1u; }
}
