//! The files that the command line reads and writes: safetensors in the native layout, and `.npy`.
//!
//! Inputs are untrusted: every length is checked before it is used, what two readers could understand
//! differently (a key that occurs twice, a NUL in a name) is refused, and an error names the file, what was
//! found and what is allowed. Outputs are whole or absent, and the same bytes on every machine.

mod at;
mod digest;
mod input;
mod json;
mod map;
mod native;
mod new_file;
mod npy;
mod safetensors;

pub use self::safetensors::Layout;
pub use ::safetensors::Dtype;
pub use digest::{Digest, Digester};
pub use input::{FileKind, Input, TensorView};
pub use native::{METADATA_KEY, Part, PartBytes, PartKind, Source, Sources, parts, zero_points};
pub use new_file::{NewFile, check_target, remove_unfinished, same_file};
pub use npy::header as npy_header;

use crate::error::Error;
use crate::exact::narrow::{to_bf16, to_f16};
use crate::tensor::ElemType;
use rayon::prelude::*;
use std::borrow::Cow;
use std::path::Path;

/// An error about a file's content.
pub fn invalid(path: &Path, message: impl Into<String>) -> Error {
    Error::File { path: path.to_owned(), message: message.into() }
}

/// What the system reported about a file.
pub fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

/// Turns the elements of a file, which are little-endian, into this machine's byte order.
pub fn to_native_order(elem_type: ElemType, bytes: &mut [u8]) {
    if cfg!(target_endian = "big") {
        bytes.chunks_mut(elem_type.bytes()).for_each(<[u8]>::reverse);
    }
}

/// Values as a file holds them: little-endian.
pub fn le_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect())
    }
}

/// The values as a file holds them in F32, F16 or BF16, little-endian.
///
/// Beyond the type's range lies infinity, -0 stays, and a NaN keeps its sign and top payload bits, with the
/// quiet bit set. Any other type is taken as F32.
pub fn narrowed(values: &[f32], dtype: Dtype) -> Cow<'_, [u8]> {
    let pack = |narrow: fn(u32) -> u32| {
        let half = |v: &f32| narrow(v.to_bits()).to_le_bytes().into_iter().take(2);
        Cow::Owned(values.par_iter().flat_map_iter(half).collect())
    };
    match dtype {
        Dtype::F16 => pack(|b| to_f16(b, false)),
        Dtype::BF16 => pack(to_bf16),
        _ => le_bytes(values),
    }
}
