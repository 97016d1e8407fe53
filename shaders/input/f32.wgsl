// Input of type f32: the bits as they are.

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;

fn x4(v: u32) -> vec4<u32> { return x[params.x_at + v]; }

fn x1(i: u32) -> u32 { return x[params.x_at + i / 4u][i % 4u]; }
