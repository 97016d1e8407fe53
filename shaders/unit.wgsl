// What becomes of a range unit's range, for the kernels that decide it.

fn rule() -> Rule {
    return Rule(
        params.kind, params.qmin, params.qmax, params.divisor, params.divisor_factor, params.magnitude_divisor,
        params.magnitude_factor, params.zero_scale,
    );
}

// How far the range reaches beyond the outermost de-quantized values, where that is more than a step: the
// unit's largest loss then. Interior losses are about half a step, so that up to a step the grid is the same.
fn reach(lo: u32, hi: u32, r: Recipe) -> u32 {
    let end_p = mul_int(0u, r.cap_p, r.s);
    let end_n = mul_int(SIGN, r.cap_n, r.s);
    var far = 0u;
    if (is_finite(end_p)) {
        let d = sub(hi, end_p);
        far = max(far, select(d, 0u, (d >> 31u) == 1u));
    }
    if (is_finite(end_n)) {
        let d = sub(end_n, lo);
        far = max(far, select(d, 0u, (d >> 31u) == 1u));
    }
    return select(0u, far, far > r.s);
}

// A zero point from elsewhere, which may be anything, as the nearest code.
fn nearest_code(z: i32) -> i32 { return min(max(z, params.qmin), params.qmax); }
