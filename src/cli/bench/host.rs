//! From host memory to host memory: the CPU path, the adapter with its copies, and copies of the same bytes.

use super::super::args::Region;
use super::Wanted;
use super::measure::{By, Case, Checked, Label};
use super::operation::Job;
use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;
use wgpu_quant::{Result, Scheme, Spec, Tensor, cpu};

fn label(what: impl Into<String>, by: By, bytes: f64) -> Label {
    Label { region: Region::Host, what: what.into(), by, bytes }
}

pub(super) fn copies(x: &[f32]) -> Vec<Case<'_>> {
    let bytes = 4.0 * x.len() as f64;
    let to = Rc::new(RefCell::new(vec![0f32; x.len()]));
    let again = Rc::clone(&to);
    let thread_elems = x.len().div_ceil(rayon::current_num_threads()).max(1);
    vec![
        Case::of(label("memcpy, all threads", By::Yardstick, 2.0 * bytes), move || {
            let mut to = to.borrow_mut();
            on_all_threads(to.chunks_mut(thread_elems).zip(x.chunks(thread_elems)), |(to, from)| {
                to.copy_from_slice(from)
            });
            Ok(())
        }),
        Case::of(label("memcpy, one thread", By::Bound, 2.0 * bytes), move || {
            again.borrow_mut().copy_from_slice(x);
            Ok(())
        }),
        Case::of(label("read only, all threads", By::Bound, bytes), move || {
            on_all_threads(x.chunks(thread_elems), |part| {
                black_box(part.iter().fold(0, |all, v| all | v.to_bits()));
            });
            Ok(())
        }),
    ]
}

/// Each part on a thread of its own, one of them this one: as the CPU path does it, so that none waits for one thread more to
/// wake up.
fn on_all_threads<T: Send>(mut parts: impl Iterator<Item = T>, work: impl Fn(T) + Sync) {
    let first = parts.next();
    rayon::in_place_scope(|scope| {
        for part in parts {
            let work = &work;
            scope.spawn(move |_| work(part));
        }
        first.into_iter().for_each(&work);
    });
}

/// The CPU path, into outputs that are there already, as the copies', and once into new ones.
pub(super) fn cpu<'a>(wanted: &Wanted<'a>) -> Result<Checked<'a>> {
    let Wanted { x, shape, operations, .. } = *wanted;
    let tensor = Tensor::new(x, shape)?;
    let mut all = Checked::default();
    for operation in operations {
        let spec = operation.spec;
        let label = |what| label(what, By::Cpu, operation.bytes_per_elem * x.len() as f64);
        let what = operation.what();
        let case = match operation.job {
            Job::Ranges => Case::of(label(what), move || cpu::min_max(tensor, spec.granularity)),
            Job::Quantize => {
                if spec == Spec::new(spec.scheme) && spec.scheme == Scheme::INT8_ABSMAX {
                    let fresh = Case::of(label(format!("{what}, new output")), move || cpu::quantize(tensor, &spec));
                    all.cases.push(fresh);
                }
                let mut out = cpu::quantize(tensor, &spec)?;
                Case::of(label(what), move || cpu::quantize_into(tensor, &spec, &mut out))
            }
            Job::FakeQuantize => {
                let mut out = cpu::fake_quantize(tensor, &spec)?;
                Case::of(label(what), move || cpu::fake_quantize_into(tensor, &spec, &mut out))
            }
            Job::Dequantize => {
                let q = cpu::quantize(tensor, &spec)?.tensor;
                let mut values = cpu::dequantize(&q)?;
                Case::of(label(what), move || cpu::dequantize_into(&q, &mut values))
            }
        };
        all.cases.push(case);
    }
    Ok(all)
}

/// The adapter, with everything that a call takes.
#[cfg(feature = "gpu")]
pub(super) fn gpu<'a>(gpu: &'a wgpu_quant::Gpu, wanted: &Wanted<'a>) -> Result<Checked<'a>> {
    let Wanted { x, shape, operations, .. } = *wanted;
    let tensor = Tensor::new(x, shape)?;
    let mut all = Checked::default();
    // Per row alone: the copies, which take the time, are those of the others.
    let per_row = wgpu_quant::Granularity::Channel(0);
    for operation in operations.iter().filter(|operation| operation.spec.granularity == per_row) {
        let spec = operation.spec;
        let label = label(operation.what(), By::Gpu, operation.bytes_per_elem * x.len() as f64);
        let expected = cpu::quantize(tensor, &spec)?;
        let (case, is_right) = match operation.job {
            Job::Quantize => {
                let is_right = gpu.quantize(tensor, &spec)?.value == expected;
                (Case::of(label, move || gpu.quantize(tensor, &spec)), is_right)
            }
            Job::Dequantize => {
                let q = expected.tensor;
                let is_right = *gpu.dequantize(&q)? == cpu::dequantize(&q)?;
                (Case::of(label, move || gpu.dequantize(&q)), is_right)
            }
            Job::Ranges | Job::FakeQuantize => continue,
        };
        all.push(case, is_right);
    }
    Ok(all)
}
