//! The CPU path against an oracle in exact whole numbers that shares no code with it: every bit of ranges,
//! scales, codes, counts, de-quantized values, losses and maxima, and the summaries within the contract's
//! tolerance of their exact values.

#[path = "common/corpus.rs"]
mod corpus;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "../src/rng.rs"]
mod rng;

use approx::abs_diff_eq;
use corpus::{Rng, gauss};
use oracle::{Encoded, Sums};
use wgpu_quant::{
    Counts, Granularity, Loss, LossDetail, LossSummary, QuantizeOutput, Quantized, Scheme, Spec, Tensor, cpu,
};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Tensor, and each axis of the shape counted from either end.
fn granularities(shape: &[usize]) -> Vec<Granularity> {
    let rank = i32::try_from(shape.len()).unwrap();
    [Granularity::Tensor].into_iter().chain((-rank..rank).map(Granularity::Channel)).collect()
}

#[track_caller]
fn assert_same_bits(what: &str, case: &str, x: &[u32], found: &[u32], expected: &[u32]) {
    assert_eq!(found.len(), expected.len(), "{case}: number of {what}");
    if let Some(i) = (0..found.len()).find(|&i| found[i] != expected[i]) {
        let (found, expected, x) = (found[i], expected[i], x.get(i));
        panic!("{case}: {what} {i} is {found:#010x}, not {expected:#010x}; x = {x:#010x?}");
    }
}

/// Quantizes by both, from the range on, and compares everything.
#[track_caller]
fn check(case: &str, x: &[f32], shape: &[usize], granularity: Granularity, scheme: Scheme) {
    let case = format!("{case} {scheme} {granularity} {shape:?}");
    let patterns = bits(x);
    let (count, unit_of) = oracle::units(shape, granularity);
    let of_unit = |unit| patterns.iter().zip(&unit_of).filter(move |(_, u)| **u == unit).map(|(x, _)| *x);
    let ranges: Vec<(u32, u32)> = (0..count).map(|unit| oracle::range(of_unit(unit))).collect();
    let scales: Vec<u32> = ranges.iter().map(|&range| oracle::scale(range, scheme)).collect();

    let tensor = Tensor::new(x, shape).unwrap();
    let found = cpu::min_max(tensor, granularity).unwrap();
    let found_ranges: Vec<(u32, u32)> = found.units.iter().map(|r| (r.lo.to_bits(), r.hi.to_bits())).collect();
    assert_eq!(found_ranges, ranges, "{case}: ranges");
    let found_scales: Vec<u32> = found.units.iter().map(|&range| cpu::scale(range, scheme).to_bits()).collect();
    assert_same_bits("scale", &case, &[], &found_scales, &scales);

    let spec = Spec::new(scheme).per(granularity);
    check_output(&case, tensor, &unit_of, &scales, |loss| cpu::quantize(tensor, &spec.loss(loss)).unwrap());
}

/// Quantizes by both with given scales, and compares everything.
#[track_caller]
fn check_with_scales(case: &str, x: &[f32], shape: &[usize], granularity: Granularity, scheme: Scheme, scales: &[f32]) {
    let case = format!("{case} {scheme} {granularity} {shape:?}");
    let tensor = Tensor::new(x, shape).unwrap();
    let (_, unit_of) = oracle::units(shape, granularity);
    let spec = Spec::new(scheme).per(granularity);
    check_output(&case, tensor, &unit_of, &bits(scales), |loss| {
        cpu::quantize_with_scales(tensor, &spec.loss(loss), scales).unwrap()
    });
}

#[track_caller]
fn check_output(
    case: &str,
    x: Tensor<'_>,
    unit_of: &[usize],
    scales: &[u32],
    quantize: impl Fn(LossDetail) -> QuantizeOutput,
) {
    let out = quantize(LossDetail::PerElement);
    let scheme = out.tensor.scheme();
    let x_bits = bits(x.data());
    let Encoded { codes, clipped, nan, inf } = oracle::encode(&x_bits, unit_of, scales, scheme);
    assert_same_bits("scale", case, &[], &bits(out.tensor.scales()), scales);
    let found: Vec<u32> = out.tensor.codes_i8().iter().map(|&code| i32::from(code).cast_unsigned()).collect();
    let expected: Vec<u32> = codes.iter().map(|code| code.cast_unsigned()).collect();
    assert_same_bits("code", case, &x_bits, &found, &expected);
    let Counts { clipped_elems, nan_elems, inf_elems, .. } = out.counts;
    assert_eq!((clipped_elems, nan_elems, inf_elems), (clipped, nan, inf), "{case}: clipped, NaN, Inf");

    let values = oracle::decode(&codes, unit_of, scales);
    assert_same_bits("x'", case, &x_bits, &bits(&cpu::dequantize(&out.tensor).unwrap()), &values);
    let loss = out.loss.as_ref().expect("the loss was asked for");
    check_loss(case, &x_bits, &values, unit_of, scales, loss);

    // The loss on its own, and less of it, are the same.
    assert!(cpu::loss(x, &out.tensor, true).unwrap() == *loss, "{case}: loss on its own");
    let summary = quantize(LossDetail::Summary);
    assert_eq!(summary.loss.unwrap().sums, loss.sums, "{case}: summary alone");
    let none = quantize(LossDetail::None);
    assert!(none.loss.is_none() && none.tensor == out.tensor && none.counts == out.counts, "{case}: no loss");
}

#[track_caller]
fn check_loss(case: &str, x: &[u32], values: &[u32], unit_of: &[usize], scales: &[u32], loss: &Loss) {
    let errors: Vec<u32> = x.iter().zip(values).map(|(&x, &value)| oracle::abs_error(x, value)).collect();
    assert_same_bits("loss", case, x, &bits(loss.abs_errors.as_ref().unwrap()), &errors);

    let mut total = Sums::default();
    let mut units = vec![Sums::default(); scales.len()];
    for ((&x, &value), &unit) in x.iter().zip(values).zip(unit_of) {
        total.add(x, value);
        units[unit].add(x, value);
    }
    assert_eq!(loss.units.len(), units.len(), "{case}: number of units' losses");
    for (unit, (found, exact)) in loss.units.iter().zip(&units).enumerate() {
        assert_eq!(found.max_abs_error.to_bits(), exact.max_bits, "{case}: maximum of unit {unit}");
        let slack = squares_slack(exact.noise(), exact.elems, f64::from(f32::from_bits(scales[unit])));
        assert_close(&format!("{case}: noise of unit {unit}"), found.noise, exact.noise(), slack);
    }
    let largest_scale = scales.iter().map(|&s| f64::from(f32::from_bits(s))).fold(0.0, f64::max);
    check_summary(case, &loss.summary(), &total, largest_scale);
}

#[track_caller]
fn assert_close(what: &str, found: f64, exact: f64, slack: f64) {
    assert!(abs_diff_eq!(found, exact, epsilon = slack), "{what} is {found:e}, not {exact:e} within {slack:e}");
}

/// What the contract allows a sum of `n` squares to be off by.
fn squares_slack(sum: f64, n: u64, largest_scale: f64) -> f64 {
    1e-5 * sum + n as f64 * 2f64.powi(-32) * largest_scale * largest_scale
}

#[track_caller]
fn check_summary(case: &str, found: &LossSummary, exact: &Sums, largest_scale: f64) {
    let n = exact.elems;
    assert_eq!((found.elems, found.nonfinite_out_elems), (n, exact.nonfinite_out), "{case}: elements");
    let max = (n > 0).then_some(exact.max_bits);
    assert_eq!(found.max_abs_error.map(f32::to_bits), max, "{case}: maximum");
    let (Some(mean), Some(mse)) = (exact.mean_abs_error(), exact.mse()) else {
        assert_eq!((found.mean_abs_error, found.mse, found.sqnr_db, found.cosine), (None, None, None, None), "{case}");
        return;
    };
    let slack = 1e-5 * mean + 2f64.powi(-16) * largest_scale;
    assert_close(&format!("{case}: mean"), found.mean_abs_error.unwrap(), mean, slack);
    assert_close(&format!("{case}: MSE"), found.mse.unwrap(), mse, squares_slack(mse, 1, largest_scale));

    // SQNR lies where a noise and a signal within their tolerance can put it; it has no value without them.
    let (signal, noise) = (exact.signal(), exact.noise());
    let (signal_slack, noise_slack) = (squares_slack(signal, n, largest_scale), squares_slack(noise, n, largest_scale));
    let decibels = |signal: f64, noise: f64| 10.0 * (signal.max(0.0) / noise.max(0.0)).log10();
    let least = decibels(signal - signal_slack, noise + noise_slack);
    let most = decibels(signal + signal_slack, noise - noise_slack);
    match found.sqnr_db {
        Some(_) if signal == 0.0 || noise == 0.0 => panic!("{case}: an SQNR of no signal or no noise"),
        Some(db) => assert!(least <= db && db <= most, "{case}: SQNR {db} is not in {least}..={most}"),
        None => assert!(signal <= signal_slack || noise <= noise_slack, "{case}: no SQNR"),
    }
    // An x that is off by 2^-16 s turns by that part of its length at most.
    match (found.cosine, exact.cosine()) {
        (Some(found), Some(exact)) => {
            let turn = 2f64.powi(-16) * largest_scale * (n as f64 / signal).sqrt();
            assert_close(&format!("{case}: cosine"), found, exact, 1e-5 + turn);
        }
        (None, None) => {}
        (Some(_), None) => panic!("{case}: a cosine of no signal"),
        (None, Some(_)) => assert!(signal <= signal_slack, "{case}: no cosine"),
    }
}

#[test]
fn the_oracle_rounds_as_the_hardware_does() {
    let mut rng = Rng::new(1);
    let mut value = || match rng.below(4) {
        0 => corpus::EDGES[rng.below(corpus::EDGES.len() as u32) as usize],
        // Few significant bits make ties and exact results common.
        1 => rng.next_u32() & u32::MAX << rng.below(24),
        _ => rng.next_u32(),
    };
    for _ in 0..100_000 {
        let (a, b) = (value(), value());
        if !oracle::is_finite(a) || !oracle::is_finite(b) {
            continue;
        }
        let (x, y) = (f32::from_bits(a), f32::from_bits(b));
        let k = a.cast_signed() >> 15;
        // A sign of zero is the one thing that the oracle's whole numbers do not know.
        let same = |what: &str, found: u32, hardware: f32| {
            let equal = found == hardware.to_bits() || found << 1 == 0 && hardware == 0.0;
            assert!(equal, "{what} of {a:#010x} and {b:#010x}: {found:#010x}, not {:#010x}", hardware.to_bits());
        };
        same("sum", oracle::add(a, b), x + y);
        same("difference", oracle::sub(a, b), x - y);
        same("product", oracle::mul_int(k, b), k as f32 * y);
        if y > 0.0 {
            same("quotient", oracle::div(a, b), x / y);
        }
        if k != 0 {
            same("quotient by an integer", oracle::div_int(b, k.abs()), y / k.abs() as f32);
        }
    }
}

#[test]
fn the_contracts_worked_example_holds_literally() {
    let x = [-10.0, -5.0, 0.0, 5.0, 10.0f32];
    let spec = Spec::new(Scheme::INT8_MINMAX).loss(LossDetail::PerElement);
    let out = cpu::quantize(Tensor::new(&x, &[5]).unwrap(), &spec).unwrap();
    assert_eq!(bits(out.tensor.scales()), [0x3da0_a0a1]);
    assert_eq!(out.tensor.scales(), [0.078431375]);
    assert_eq!(out.tensor.codes_i8(), [-127, -64, 0, 64, 127]);
    assert_eq!(x[0] / out.tensor.scales()[0], -127.49999);
    let values = cpu::dequantize(&out.tensor).unwrap();
    assert_eq!(bits(&values), bits(&[-9.960785, -5.019608, 0.0, 5.019608, 9.960785]));
    let errors: Vec<String> = out.loss.unwrap().abs_errors.unwrap().iter().map(|e| format!("{e:.6}")).collect();
    assert_eq!(errors, ["0.039215", "0.019608", "0.000000", "0.019608", "0.039215"]);
    check("worked example", &x, &[5], Granularity::Tensor, Scheme::INT8_MINMAX);
}

#[test]
fn every_kind_of_data_in_every_shape_and_granularity_agrees() {
    for kind in corpus::KINDS {
        for (seed, shape) in [&[211][..], &[13, 17], &[5, 7, 6], &[1, 1, 40], &[40, 1, 1]].into_iter().enumerate() {
            let x = corpus::data(kind, shape.iter().product(), seed as u64);
            for granularity in granularities(shape) {
                for &scheme in Scheme::ALL {
                    check(kind, &x, shape, granularity, scheme);
                }
            }
        }
    }
}

#[test]
fn any_bit_pattern_agrees_under_a_scale_of_its_own_magnitude() {
    // Rows whose exponents lie close together, so that codes of every size occur; NaN, Inf and -0 among them.
    let mut rng = Rng::new(2);
    let (rows, row_elems) = (300, 40);
    let mut x = Vec::new();
    for _ in 0..rows {
        let top = rng.below(255);
        for _ in 0..row_elems {
            let exponent = top.saturating_sub(rng.below(12));
            let odd = rng.below(50) == 0;
            let pattern = rng.next_u32() & 0x807f_ffff | exponent << 23;
            x.push(f32::from_bits(if odd {
                corpus::EDGES[rng.below(corpus::EDGES.len() as u32) as usize]
            } else {
                pattern
            }));
        }
    }
    for &scheme in Scheme::ALL {
        check("rows", &x, &[rows, row_elems], Granularity::Channel(0), scheme);
    }
}

#[test]
fn the_neighbours_of_every_halfway_point_agree_for_scales_of_every_exponent() {
    let mut rng = Rng::new(3);
    // Extreme significands at extreme and at ordinary exponents, and random scales of any exponent.
    let mut scales: Vec<u32> = corpus::SCALES.to_vec();
    for exponent in [0, 1, 2, 24, 120, 127, 230, 237, 238, 252, 253, 254] {
        for significand in [1, 0x7f_fffe, 0x7f_ffff, 0x2a_aaab] {
            scales.push(exponent << 23 | significand);
        }
    }
    for _ in 0..40 {
        scales.push(1 + rng.below(oracle::INF - 1));
        // Subnormal scales, of any number of digits.
        scales.push((rng.next_u32() & 0x007f_ffff) >> rng.below(23) | 1);
    }
    for (i, &s) in scales.iter().enumerate() {
        let s = f32::from_bits(s);
        let x = corpus::halfway_neighbours(s);
        let scheme = Scheme::ALL[i % Scheme::ALL.len()];
        check_with_scales(&format!("scale {:#010x}", s.to_bits()), &x, &[x.len()], Granularity::Tensor, scheme, &[s]);
    }
}

#[test]
fn the_neighbours_of_halfway_points_agree_under_the_scales_that_their_ranges_give() {
    let mut rng = Rng::new(4);
    for &scheme in Scheme::ALL {
        for _ in 0..12 {
            let exponent = rng.below(254);
            let ends = [rng.next_u32(), rng.next_u32()].map(|b| f32::from_bits(b & 0x807f_ffff | exponent << 23));
            let range = cpu::Range { lo: ends[0].min(ends[1]), hi: ends[0].max(ends[1]) };
            let mut x = corpus::halfway_neighbours(cpu::scale(range, scheme));
            x.retain(|v| (range.lo..=range.hi).contains(v));
            x.extend(ends);
            check("own range", &x, &[x.len()], Granularity::Tensor, scheme);
        }
    }
}

#[test]
fn given_scales_of_every_magnitude_agree_on_any_data_per_channel() {
    let mut rng = Rng::new(5);
    let shape = [4, 24, 3];
    let elems = shape.iter().product();
    for kind in ["bits", "finite-bits", "mixed", "subnormal", "huge", "gauss"] {
        let x = corpus::data(kind, elems, 5);
        for &scheme in Scheme::ALL {
            for (axis, &units) in shape.iter().enumerate() {
                let scales: Vec<f32> = (0..units).map(|_| f32::from_bits(1 + rng.below(oracle::INF - 1))).collect();
                let granularity = Granularity::Channel(i32::try_from(axis).unwrap());
                check_with_scales(kind, &x, &shape, granularity, scheme, &scales);
            }
        }
    }
}

#[test]
fn every_policy_on_odd_values_and_ranges_agrees() {
    const SUBNORMAL: f32 = f32::from_bits(1);
    let (nan, inf, max) = (f32::NAN, f32::INFINITY, f32::MAX);
    let cases: &[(&str, &[f32])] = &[
        ("empty", &[]),
        ("one value", &[3.25]),
        ("one zero", &[0.0]),
        ("one negative zero", &[-0.0]),
        ("one NaN", &[nan]),
        ("one negative infinity", &[-inf]),
        ("one subnormal", &[SUBNORMAL]),
        ("one largest", &[-max]),
        ("all NaN", &[nan; 9]),
        ("NaN and infinities only", &[nan, inf, -inf, -nan]),
        ("NaN, infinities and negative zero", &[nan, inf, -0.0, -inf, 1.5, -1.5, 0.0]),
        ("infinities beside a constant", &[inf, 2.0, 2.0, -inf]),
        ("positive constant", &[0.1; 5]),
        ("negative constant", &[-0.1; 5]),
        ("zeros of both signs", &[0.0, -0.0, 0.0, -0.0]),
        ("smallest subnormal constant", &[SUBNORMAL; 3]),
        ("negative subnormal constant", &[-64.0 * SUBNORMAL; 3]),
        ("subnormal constant that halves its scale's last place", &[f32::from_bits(63); 3]),
        ("subnormal range whose scale is 0", &[SUBNORMAL, -SUBNORMAL, 3.0 * SUBNORMAL]),
        ("subnormals that clip because the scale has one digit", &[f32::from_bits(190), f32::from_bits(128), 0.0]),
        ("neighbours whose width is one tick", &[f32::MIN_POSITIVE, f32::from_bits(0x0080_0001)]),
        ("heavy clipping, positive", &[1000.0, 1000.5, 1001.0, 1002.0]),
        ("heavy clipping, negative", &[-1000.0, -1000.5, -1001.0, -1002.0]),
        ("one-sided from zero", &[0.0, 1.0, 2.0, 200.0, 255.0]),
        ("overflowing width", &[max, -max, 1.0, 0.0, max / 2.0]),
        ("width that just overflows", &[max, -f32::from_bits(0x7300_0000)]),
        ("width that just does not", &[max, -f32::from_bits(0x72ff_ffff)]),
        ("largest, x' beyond binary32", &[max, max - 2e31, -max, 3.4e38]),
        ("infinities at an overflowing range", &[max, -max, inf, -inf, nan]),
    ];
    for (case, x) in cases {
        for &scheme in Scheme::ALL {
            for shape in [&[x.len()][..], &[x.len(), 1], &[1, 1, x.len()]] {
                for granularity in granularities(shape) {
                    check(case, x, shape, granularity, scheme);
                }
            }
        }
    }
}

#[test]
fn empty_tensors_agree_in_every_shape() {
    for shape in [&[0][..], &[0, 3], &[3, 0], &[2, 0, 5], &[0, 0, 0]] {
        for granularity in granularities(shape) {
            for &scheme in Scheme::ALL {
                check("empty", &[], shape, granularity, scheme);
            }
        }
    }
}

#[test]
fn a_scalar_agrees() {
    for &scheme in Scheme::ALL {
        for x in [1.0, -0.0, f32::NAN, f32::INFINITY, f32::from_bits(5)] {
            check("scalar", &[x], &[], Granularity::Tensor, scheme);
        }
    }
}

#[test]
fn ranges_and_scales_agree_for_any_two_ends() {
    let mut rng = Rng::new(6);
    let ends = || corpus::EDGES.into_iter().chain(corpus::SCALES).filter(|&b| oracle::is_finite(b));
    let mut pairs: Vec<[u32; 2]> = ends().flat_map(|a| ends().map(move |b| [a, b])).collect();
    pairs.extend((0..20_000).map(|_| [rng.next_u32(), rng.next_u32()]));
    // Ends of one exponent and of either sign: the width cancels or carries.
    pairs.extend((0..10_000).map(|_| {
        let [a, b] = [rng.next_u32(), rng.next_u32()];
        [a, b & 0x807f_ffff | a & 0x7f80_0000]
    }));
    for pair in pairs {
        let (lo, hi) = oracle::range(pair.into_iter());
        let range = cpu::Range { lo: f32::from_bits(lo), hi: f32::from_bits(hi) };
        for &scheme in Scheme::ALL {
            let (found, expected) = (cpu::scale(range, scheme).to_bits(), oracle::scale((lo, hi), scheme));
            assert_eq!(found, expected, "{scheme} {lo:#010x} {hi:#010x}: {found:#010x}, not {expected:#010x}");
        }
    }
}

#[test]
fn a_loss_of_many_equal_tiny_errors_is_not_lost() {
    // One value sets the range; all others are off by the same small part of a step, on a code or beside 0.
    let n = 2000;
    for down in (1..40).step_by(2) {
        for code in [0.0, 1.0, -100.0] {
            for top in [127.0f32, 126.999, 3.7e-30, 1e-40] {
                let step = top / 127.0;
                let mut x = vec![code * step + step * 2f32.powi(-down); n];
                x[n / 2] = top;
                for &scheme in Scheme::ALL {
                    check(&format!("2^-{down} beside {code}, top {top:e}"), &x, &[n], Granularity::Tensor, scheme);
                }
            }
        }
    }
}

#[test]
fn a_loss_dominated_by_one_outlier_or_one_channel_agrees() {
    let mut rng = Rng::new(7);
    let n = 500;
    for up in (-140..127).step_by(20) {
        // A channel each: noise around 1, the same at another magnitude, one outlier among zeros, one value.
        let mut x: Vec<f32> = (0..n).map(|_| gauss(&mut rng)).collect();
        x.extend((0..n).map(|_| gauss(&mut rng) * 2f32.powi(up)));
        x.extend((0..n).map(|i| if i == 7 { 2f32.powi(up) } else { 0.0 }));
        x.extend((0..n).map(|i| if i == 7 { 2f32.powi(up) } else { 1e-3 }));
        for &scheme in Scheme::ALL {
            for granularity in [Granularity::Tensor, Granularity::Channel(0)] {
                check(&format!("2^{up}"), &x, &[4, n], granularity, scheme);
            }
        }
    }
}

#[test]
fn a_clipped_outlier_of_any_size_leaves_the_summaries_within_tolerance() {
    // Given scales can clip without limit, and the largest loss sets the grid of its whole unit: each loss is
    // off by at most 2^-28 of it. That is within 1e-5 of the mean in a unit of up to 2,684 elements, however
    // far the outlier, and within 2^-16 s in a unit of any length, if the outlier is within 2^12 steps.
    for (n, ups) in [(2684, (0..120).step_by(7)), (20_000, (2..12).step_by(4))] {
        for up in ups {
            for down in [1, 6, 12, 20, 28] {
                let mut x = vec![0.98 * 2f32.powi(-down); n];
                x[n / 3] = 2f32.powi(up);
                let case = format!("outlier 2^{up} among 2^-{down}");
                check_with_scales(&case, &x, &[n], Granularity::Tensor, Scheme::INT8_ABSMAX, &[1.0]);
            }
        }
    }
}

#[test]
fn the_loss_of_codes_that_belong_to_another_tensor_agrees() {
    let mut rng = Rng::new(8);
    let shape = [6, 50];
    for kind in ["gauss", "mixed", "finite-bits", "subnormal"] {
        let x = corpus::data(kind, 300, 8);
        let codes: Vec<u8> = (0..300).map(|_| rng.next_u32() as u8).collect();
        for scale in [1.0, 0.003, f32::from_bits(7), 3e38] {
            let scales = vec![scale; 6];
            let (_, unit_of) = oracle::units(&shape, Granularity::Channel(0));
            let signed: Vec<i32> = codes.iter().map(|&code| i32::from(code.cast_signed())).collect();
            let values = oracle::decode(&signed, &unit_of, &bits(&scales));
            let q = Quantized::from_parts(
                Scheme::INT8_ABSMAX,
                Granularity::Channel(0),
                shape.to_vec(),
                codes.clone(),
                scales.clone(),
            )
            .unwrap();
            let loss = cpu::loss(Tensor::new(&x, &shape).unwrap(), &q, true).unwrap();
            check_loss(&format!("{kind} under scale {scale:e}"), &bits(&x), &values, &unit_of, &bits(&scales), &loss);
        }
    }
}
