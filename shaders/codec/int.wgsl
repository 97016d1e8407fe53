// Codes that are whole numbers, with a scale and perhaps a zero point. A field is a code's stored bits.
// Needs from the prelude: FIELD, the mask of a field.

fn field_of(b: u32, r: Recipe) -> u32 { return (bitcast<u32>(encode(b, r)) + bitcast<u32>(r.z)) & FIELD; }

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
