// Codes that are whole numbers, with a scale and perhaps a zero point. A field is a code's stored bits.
// Needs from the prelude: FIELD, the mask of a field.

fn field_of(b: u32, r: Recipe) -> u32 { return (bitcast<u32>(encode(b, r, CODE_BITS == 16u)) + bitcast<u32>(r.z)) & FIELD; }

// What fills up a row.
fn pad_of(r: Recipe) -> u32 { return bitcast<u32>(r.z) & FIELD; }

fn clips(b: u32, r: Recipe) -> bool { return is_clipped(b, r); }

// The code less its zero point.
fn steps(field: u32, z: i32) -> i32 {
    return bitcast<i32>((field ^ params.sign_bit) - params.sign_bit - bitcast<u32>(z));
}

fn value_of(field: u32, s: u32, z: i32) -> u32 { return decode(steps(field, z), s); }

// What the loss counts of a code whose value is `out`.
fn loss_steps(field: u32, out: u32, s: u32, z: i32) -> i32 { return steps(field, z); }

var<private> unit_quick: Quick;

// Whether codes of the unit come by four.
fn open_four(r: Recipe) -> bool {
    unit_quick = quick(r);
    return is_quick(r.s);
}

fn four_of(b: vec4<u32>) -> FourSteps {
    if (CODE_BITS == 16u) { return four_wide_steps(b, unit_quick); }
    return four_steps(b, unit_quick, FUSED);
}

fn words_of(four: FourSteps, z: i32) -> vec2<u32> {
    if (CODE_BITS == 16u) { return pack((signed_steps(four) + bitcast<u32>(z)) & vec4<u32>(FIELD)); }
    return vec2<u32>(pack_steps(four.steps, four.neg, z), 0u);
}


// Whether their values do.
fn open_values(s: u32) -> bool { return CODE_BITS == 16u || is_direct(s); }

fn values_of(four: FourSteps, s: u32) -> vec4<u32> {
    if (CODE_BITS == 16u) {
        let d = bitcast<vec4<i32>>(signed_steps(four));
        return vec4<u32>(decode(d.x, s), decode(d.y, s), decode(d.z, s), decode(d.w, s));
    }
    return four_values(four.steps, four.neg, s);
}

fn signed_steps(four: FourSteps) -> vec4<u32> { return select(four.steps, vec4<u32>() - four.steps, four.neg); }

// Whether codes with this scale and zero point are decoded by four.
fn is_four(s: u32, z: i32) -> bool {
    return CODE_BITS < 16u && is_direct(s) && z >= params.qmin && z <= params.qmax;
}

fn unpacked_values(f: vec4<u32>, s: u32, z: i32) -> vec4<u32> {
    let sign = vec4<u32>(params.sign_bit);
    let q = (f ^ sign) - sign - bitcast<u32>(z);
    let neg = q >= vec4<u32>(SIGN);
    return four_values(select(q, vec4<u32>() - q, neg), neg, s);
}
