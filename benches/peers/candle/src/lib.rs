//! `QTensor::quantize` behind C functions.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::sync::Mutex;

static X: Mutex<Option<Tensor>> = Mutex::new(None);

/// Keeps a copy of the input.
///
/// # Safety
/// `x` holds `rows * columns` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn candle_set(x: *const f32, rows: usize, columns: usize) {
    // SAFETY: the caller's promise.
    let x = unsafe { std::slice::from_raw_parts(x, rows * columns) };
    let tensor = Tensor::from_slice(x, (rows, columns), &Device::Cpu).expect("the shape is the data's");
    *X.lock().expect("no other thread failed") = Some(tensor);
}

/// Quantizes it to Q8_0 (0) or Q4_0 (1); gives the bytes.
#[unsafe(no_mangle)]
pub extern "C" fn candle_quantize(kind: u32) -> usize {
    let x = X.lock().expect("no other thread failed");
    let kind = if kind == 0 { GgmlDType::Q8_0 } else { GgmlDType::Q4_0 };
    let x = x.as_ref().expect("candle_set was called");
    QTensor::quantize(x, kind).expect("it can be quantized").storage_size_in_bytes()
}
