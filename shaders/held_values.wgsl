// De-quantized values in place of codes. Hooks are those of held.wgsl.

@group(0) @binding(4) var<storage, read_write> out: array<vec4<u32>>;

fn is_ready(s: u32) -> bool { return open_values(s); }

fn keep(k: u32, four: FourSteps) -> vec2<u32> {
    out[params.out_at / 4u + vector_at(k)] = values_of(four, own.s);
    return vec2<u32>();
}

fn keep_two(k: u32, p: vec2<u32>, q: vec2<u32>) {}

fn keep_one(c: u32, field: u32) { anew[c] = value_of(field, own.s, own.z); }

fn keep_anew(k: u32) { out[params.out_at / 4u + vector_at(k)] = anew; }
