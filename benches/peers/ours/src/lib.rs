//! `wgpu_quant::cpu` behind C functions. As many threads as `RAYON_NUM_THREADS` says.

use std::slice::from_raw_parts;
use wgpu_quant::{Granularity, QuantizeOutput, Scheme, Spec, Tensor, cpu};

fn spec(scheme: u32, per: u32) -> Spec {
    let scheme = [Scheme::INT8_ABSMAX, Scheme::UINT8_AFFINE, Scheme::INT4_ABSMAX][scheme as usize];
    Spec::new(scheme).per([Granularity::Tensor, Granularity::Channel(0), Granularity::Group(32)][per as usize])
}

/// Scheme: 0 int8-absmax, 1 uint8-affine, 2 int4-absmax. Per: 0 tensor, 1 row, 2 group of 32. What it gives is freed by
/// `ours_free`, which the caller leaves out of the time.
///
/// # Safety
/// `x` holds `rows * columns` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ours_quantize(
    x: *const f32,
    rows: usize,
    columns: usize,
    scheme: u32,
    per: u32,
) -> *mut QuantizeOutput {
    // SAFETY: the caller's promise.
    let x = unsafe { from_raw_parts(x, rows * columns) };
    let shape = [rows, columns];
    let tensor = Tensor::new(x, &shape).expect("the shape is the data's");
    Box::into_raw(Box::new(cpu::quantize(tensor, &spec(scheme, per)).expect("it can be quantized")))
}

/// The same into what `ours_quantize` gave before.
///
/// # Safety
/// That of `ours_quantize`; `output` comes from it, and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ours_quantize_into(
    x: *const f32,
    rows: usize,
    columns: usize,
    scheme: u32,
    per: u32,
    output: *mut QuantizeOutput,
) {
    // SAFETY: the caller's promises.
    let (x, output) = unsafe { (from_raw_parts(x, rows * columns), &mut *output) };
    let shape = [rows, columns];
    let tensor = Tensor::new(x, &shape).expect("the shape is the data's");
    cpu::quantize_into(tensor, &spec(scheme, per), output).expect("it can be quantized");
}

/// Its codes; the number of bytes goes to `bytes`.
///
/// # Safety
/// `output` comes from `ours_quantize`; `bytes` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ours_codes(output: *const QuantizeOutput, bytes: *mut usize) -> *const u8 {
    // SAFETY: the caller's promise.
    let codes = unsafe { &*output }.tensor.codes();
    // SAFETY: the caller's promise.
    unsafe { *bytes = codes.len() };
    codes.as_ptr()
}

/// # Safety
/// `output` comes from `ours_quantize`, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ours_free(output: *mut QuantizeOutput) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(output) });
}

/// The range per tensor or row, as a number that nobody needs.
///
/// # Safety
/// That of `ours_quantize`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ours_ranges(x: *const f32, rows: usize, columns: usize, per: u32) -> usize {
    // SAFETY: the caller's promise.
    let x = unsafe { from_raw_parts(x, rows * columns) };
    let shape = [rows, columns];
    let tensor = Tensor::new(x, &shape).expect("the shape is the data's");
    size_of_val(&cpu::min_max(tensor, spec(0, per).granularity).expect("it has ranges"))
}
