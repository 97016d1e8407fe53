// Input of type bf16: widened exactly, two elements a word.

@group(0) @binding(2) var<storage, read> x: array<vec2<u32>>;

fn x4(v: u32) -> vec4<u32> {
    let w = x[params.x_at + v];
    return vec4<u32>(
        from_bf16(w.x & 0xffffu), from_bf16(w.x >> 16u), from_bf16(w.y & 0xffffu), from_bf16(w.y >> 16u),
    );
}

fn x1(i: u32) -> u32 { return from_bf16((x[params.x_at + i / 4u][(i / 2u) % 2u] >> (16u * (i % 2u))) & 0xffffu); }
