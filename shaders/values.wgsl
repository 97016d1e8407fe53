// De-quantized values on their way out, for the kernels that give them.

@group(0) @binding(4) var<storage, read_write> out: array<u32>;

var<private> values: vec4<u32>;

// Nothing beyond the last element: what follows may be somebody else's.
fn store(v: u32) {
    let i = 4u * v;
    if (i < params.elems) { out[params.out_at + i] = values.x; }
    if (i + 1u < params.elems) { out[params.out_at + i + 1u] = values.y; }
    if (i + 2u < params.elems) { out[params.out_at + i + 2u] = values.z; }
    if (i + 3u < params.elems) { out[params.out_at + i + 3u] = values.w; }
}
