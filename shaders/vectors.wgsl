// De-quantized values on their way out, four at once: for chunks of a multiple of four.

@group(0) @binding(4) var<storage, read_write> out: array<vec4<u32>>;

var<private> values: vec4<u32>;

fn store_four(v: u32) { out[params.out_at / 4u + v] = values; }

fn store(v: u32) {
    if (4u * v < params.elems) { out[params.out_at / 4u + v] = values; }
}
