// Codes that are floats. A field is a code's stored bits.
// Needs from the prelude: HALF, true of f16 and false of bf16.

fn field_of(b: u32, r: Recipe) -> u32 {
    if (HALF) { return to_f16(b, params.saturate == 1u); }
    return to_bf16(b);
}

fn pad_of(r: Recipe) -> u32 { return 0u; }

// Whether b is finite and its cast is not, or would not be without saturation.
fn clips(b: u32, r: Recipe) -> bool {
    let beyond = select((to_bf16(b) & 0x7fffu) >= 0x7f80u, (to_f16(b, false) & 0x7fffu) >= 0x7c00u, HALF);
    return is_finite(b) && beyond;
}

fn value_of(field: u32, s: u32, z: i32) -> u32 {
    if (HALF) { return from_f16(field); }
    return from_bf16(field);
}

fn loss_steps(field: u32, out: u32, s: u32, z: i32) -> i32 { return cast_steps(out, s); }

fn open_four(r: Recipe) -> bool { return true; }

// Fields in place of steps; in doubt is what is clipped or not finite.
fn four_of(b: vec4<u32>) -> FourSteps {
    let a = b & vec4<u32>(MAGNITUDE);
    let most = max(max(a.x, a.y), max(a.z, a.w));
    if (HALF) { return FourSteps(four_f16(b), vec4<bool>(), most < 0x477ff000u, vec4<u32>()); }
    return FourSteps(four_bf16(b), vec4<bool>(), most < 0x7f7f8000u, vec4<u32>());
}

fn words_of(four: FourSteps, z: i32) -> vec2<u32> { return pack(four.steps); }

fn open_values(s: u32) -> bool { return true; }

fn values_of(four: FourSteps, s: u32) -> vec4<u32> { return four_widened(four.steps); }

fn four_widened(f: vec4<u32>) -> vec4<u32> {
    if (HALF) { return vec4<u32>(from_f16(f.x), from_f16(f.y), from_f16(f.z), from_f16(f.w)); }
    return f << vec4<u32>(16u);
}

fn is_four(s: u32, z: i32) -> bool { return true; }

fn unpacked_values(f: vec4<u32>, s: u32, z: i32) -> vec4<u32> { return four_widened(f); }
