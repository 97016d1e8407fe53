// Input of type f64: rounded once to binary32, two words an element, the low one first.

@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;

fn x4(v: u32) -> vec4<u32> {
    let a = x[2u * (params.x_at + v)];
    let b = x[2u * (params.x_at + v) + 1u];
    return vec4<u32>(from_f64(a.x, a.y), from_f64(a.z, a.w), from_f64(b.x, b.y), from_f64(b.z, b.w));
}

fn x1(i: u32) -> u32 {
    let w = x[2u * params.x_at + i / 2u];
    let second = i % 2u == 1u;
    return from_f64(select(w.x, w.z, second), select(w.y, w.w, second));
}
