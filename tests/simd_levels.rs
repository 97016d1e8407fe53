//! Every vector unit that this machine has gives the bits of the baseline, whose bits `cpu_matches_oracle` holds against an
//! oracle: all functions of `cpu`, over all schemes, granularities and kinds of data, from any address on and of any length.

#[path = "common/corpus.rs"]
mod corpus;
#[path = "../src/rng.rs"]
mod rng;

use corpus::Rng;
use wgpu_quant::Granularity::{self, Channel, Group};
use wgpu_quant::cpu::{SimdLevel, limit_simd_level, simd_level};
use wgpu_quant::{ElemType, Loss, LossDetail, QuantizeOutput, Scheme, Spec, Tensor, cpu};

/// All that `cpu` makes of a tensor under a spec, as numbers.
fn everything(x: Tensor<'_>, spec: &Spec, scale: f32, rng: &mut Rng) -> Vec<u64> {
    let mut all = vec![];
    let ranges = cpu::min_max(x, spec.granularity).unwrap();
    all.extend(ranges.units.iter().flat_map(|range| [range.lo, range.hi]).map(|v| u64::from(v.to_bits())));
    all.extend([ranges.nan_elems, ranges.inf_elems]);
    let out = cpu::quantize(x, spec).unwrap();
    add_output(&mut all, &out);
    add_floats(&mut all, &cpu::dequantize(&out.tensor).unwrap());
    add_loss(&mut all, &cpu::loss(x, &out.tensor, true).unwrap());
    let fake = cpu::fake_quantize(x, spec).unwrap();
    add_floats(&mut all, &fake.values);
    if !spec.scheme.is_cast() {
        let units = ranges.units.len();
        let z = |rng: &mut Rng| spec.scheme.qmin() + (rng.below(16)).cast_signed();
        let zero_points: Vec<i32> = (0..if spec.scheme.has_zero_point() { units } else { 0 }).map(|_| z(rng)).collect();
        // Codes of these scales, and the loss of codes that belong to others.
        let given = cpu::quantize_with_scales(x, spec, &vec![scale; units], &zero_points).unwrap();
        add_output(&mut all, &given);
        add_loss(&mut all, &cpu::loss(x, &out.tensor, false).unwrap());
        let fake = cpu::fake_quantize_with_scales(x, spec, &vec![scale; units], &zero_points).unwrap();
        add_floats(&mut all, &fake.values);
    }
    all
}

fn add_floats(all: &mut Vec<u64>, values: &[f32]) {
    all.extend(values.iter().map(|v| u64::from(v.to_bits())));
}

fn add_output(all: &mut Vec<u64>, out: &QuantizeOutput) {
    all.extend([out.counts.clipped_elems, out.counts.nan_elems, out.counts.inf_elems]);
    all.extend(out.tensor.codes().iter().map(|&byte| u64::from(byte)));
    add_floats(all, out.tensor.scales());
    all.extend(out.tensor.zero_points().iter().map(|&z| u64::from(z.cast_unsigned())));
    add_loss(all, out.loss.as_ref().unwrap());
}

fn add_loss(all: &mut Vec<u64>, loss: &Loss) {
    let summary = loss.summary();
    all.extend([summary.elems, summary.nonfinite_out_elems]);
    all.push(summary.max_abs_error.map_or(u64::MAX, |v| v.to_bits().into()));
    let figures = [summary.mean_abs_error, summary.mse, summary.sqnr_db, summary.cosine];
    all.extend(figures.map(|figure| figure.map_or(u64::MAX, f64::to_bits)));
    all.extend(loss.units.iter().flat_map(|unit| [unit.max_abs_error.to_bits().into(), unit.noise.to_bits()]));
    add_floats(all, loss.abs_errors.as_deref().unwrap_or_default());
}

/// Compares each level with the baseline.
#[track_caller]
fn check(case: &str, x: Tensor<'_>, spec: &Spec, scale: f32) {
    limit_simd_level(SimdLevel::Baseline);
    let expected = everything(x, spec, scale, &mut Rng::new(1));
    for level in SimdLevel::ALL {
        limit_simd_level(level);
        // What this machine has not is as the best that it has.
        if level != SimdLevel::Baseline && simd_level() == level {
            let found = everything(x, spec, scale, &mut Rng::new(1));
            let first = (0..expected.len()).find(|&i| found.get(i) != expected.get(i));
            assert!(first.is_none() && found.len() == expected.len(), "{level} {case} {spec:?}: number {first:?}");
        }
    }
}

fn granularities(scheme: Scheme) -> Vec<Granularity> {
    let all = [Granularity::Tensor, Channel(0), Channel(-1), Group(32), Group(64), Group(128), Group(3), Group(20)];
    all.into_iter().filter(|&granularity| !scheme.is_cast() || granularity == Granularity::Tensor).collect()
}

// One test, because the level is the process's.
#[test]
fn every_level_gives_the_bits_of_the_baseline() {
    let shapes: [&[usize]; 7] = [&[3, 333], &[7, 64], &[1, 1031], &[5, 256], &[2, 3, 100], &[40, 1], &[13]];
    for &scheme in Scheme::ALL {
        for (i, kind) in corpus::KINDS.iter().enumerate() {
            let shape = shapes[i % shapes.len()];
            let n = shape.iter().product();
            // As slices begin anywhere, one that no vector's width divides among them.
            let data = corpus::data(kind, n + 3, i as u64);
            for granularity in granularities(scheme) {
                let spec = Spec::new(scheme).per(granularity).loss(LossDetail::PerElement);
                let scale = [0.01, 1.0, 3e-41, 1e37][i % 4];
                check(kind, Tensor::new(&data[i % 4..][..n], shape).unwrap(), &spec, scale);
            }
        }
        // Halfway between codes, and the floats beside it, for scales of every size.
        for bits in corpus::SCALES {
            let scale = f32::from_bits(bits);
            let x = corpus::halfway_neighbours(scale);
            let spec = Spec::new(scheme).loss(LossDetail::PerElement);
            check(&format!("halfway points of {bits:#010x}"), Tensor::new(&x, &[x.len()]).unwrap(), &spec, scale);
        }
    }
    // Types that are widened first, from an odd address on and with a row pitch; and more than a block.
    let mut rng = Rng::new(5);
    for &elem_type in ElemType::ALL {
        let (rows, row, pitch) = (9, 1001, 1003);
        let (shape, strides) = ([rows, row], [pitch, 1]);
        let mut bytes = vec![0u8; rows * pitch * elem_type.bytes() + 1];
        bytes.iter_mut().for_each(|byte| *byte = rng.next_u32() as u8);
        let bytes = &bytes[1..];
        let dense = &bytes[..rows * row * elem_type.bytes()];
        for scheme in [Scheme::INT8_ABSMAX, Scheme::UINT4_AFFINE, Scheme::INT16_MINMAX, Scheme::F16, Scheme::BF16] {
            for granularity in granularities(scheme) {
                let spec = Spec::new(scheme).per(granularity).loss(LossDetail::PerElement);
                check("dense", Tensor::from_bytes(elem_type, dense, &[rows, row]).unwrap(), &spec, 0.01);
                let pitched = Tensor::strided(elem_type, bytes, &shape, &strides).unwrap();
                check("pitched", pitched, &spec, 0.01);
            }
        }
    }
    // Output that goes past the caches, into the memory of another one.
    let x = corpus::data("gauss", 5 << 20, 9);
    let x = Tensor::new(&x, &[5 << 8, 4096]).unwrap();
    let mut out = cpu::quantize(Tensor::new(&[], &[0]).unwrap(), &Spec::new(Scheme::INT4_AFFINE)).unwrap();
    let (mut values, mut fake) = (vec![f32::NAN; 7], cpu::fake_quantize(x, &Spec::new(Scheme::INT8_ABSMAX)).unwrap());
    for scheme in [Scheme::INT8_ABSMAX, Scheme::UINT16_AFFINE, Scheme::UINT4_AFFINE, Scheme::BF16] {
        for granularity in granularities(scheme) {
            let spec = Spec::new(scheme).per(granularity).loss(LossDetail::Summary);
            limit_simd_level(SimdLevel::Baseline);
            let expected = cpu::quantize(x, &spec).unwrap();
            let expected_values = cpu::dequantize(&expected.tensor).unwrap();
            for level in SimdLevel::ALL {
                limit_simd_level(level);
                cpu::quantize_into(x, &spec, &mut out).unwrap();
                assert!(out == expected, "{level} {spec:?}");
                cpu::dequantize_into(&out.tensor, &mut values).unwrap();
                let same = |a: &[f32], b: &[f32]| a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()));
                assert!(same(&values, &expected_values), "{level} {spec:?}");
                cpu::fake_quantize_into(x, &spec, &mut fake).unwrap();
                assert!(same(&fake.values, &expected_values) && fake.counts == expected.counts, "{level} {spec:?}");
                if !scheme.is_cast() {
                    let (scales, zero_points) = (expected.tensor.scales(), expected.tensor.zero_points());
                    cpu::quantize_with_scales_into(x, &spec, scales, zero_points, &mut out).unwrap();
                    assert!(out == expected, "{level} {spec:?}, with given scales");
                }
            }
        }
    }
}
