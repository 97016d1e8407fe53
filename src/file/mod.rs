//! The files that the command line reads and writes: safetensors in the native layout, and `.npy`.
//!
//! Inputs are untrusted: every length is checked before it is used, what two readers could understand
//! differently (a key that occurs twice, a NUL in a name) is refused, and an error names the file, what was
//! found and what is allowed. Outputs are whole or absent, and the same bytes on every machine.

mod digest;
mod input;
mod json;
mod map;
mod narrow;
mod native;
mod new_file;
mod npy;
mod safetensors;
mod widen;

pub use self::safetensors::Layout;
pub use ::safetensors::Dtype;
pub use digest::Digest;
pub use input::{FileKind, Input, TensorView};
pub use narrow::narrowed;
pub use native::{METADATA_KEY, Source, Sources, part_bytes, parts};
pub use new_file::{NewFile, check_target, remove_unfinished, same_file};
pub use npy::header as npy_header;

use crate::error::Error;
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

/// Values as a file holds them: little-endian.
pub fn le_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect())
    }
}
