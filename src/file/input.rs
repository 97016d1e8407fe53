//! An input file: its tensors by name, whatever the format.

use super::map::{Mapped, map};
use super::{Dtype, at, invalid, io_error, npy, safetensors};
use crate::error::Result;
use crate::tensor::ElemType;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file format, as a file's extension names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// `.safetensors`: any number of tensors.
    Safetensors,
    /// `.npy`: one tensor without a name.
    Npy,
}

impl FileKind {
    /// The format that the extension names, in any case.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        if extension.eq_ignore_ascii_case("safetensors") {
            Some(Self::Safetensors)
        } else if extension.eq_ignore_ascii_case("npy") {
            Some(Self::Npy)
        } else {
            None
        }
    }
}

/// Where a file holds a tensor, and as what.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
}

/// A file that was checked whole: every tensor's bytes are there.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    kind: FileKind,
    map: Mapped,
    tensors: BTreeMap<String, Place>,
    metadata: BTreeMap<String, String>,
}

/// A tensor as a file holds it.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its elements' type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// Its elements, row-major and little-endian.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// The number of elements.
    pub fn elems(&self) -> usize {
        // Checked when the file was read, so that there is no error; not a plain product, because in a shape
        // that holds a 0 the others may be anything.
        crate::elems(self.shape).unwrap_or(0)
    }

    /// The elements' type, where they are floats that are quantized.
    pub fn elem_type(&self) -> Option<ElemType> {
        match self.dtype {
            Dtype::F32 => Some(ElemType::F32),
            Dtype::F16 => Some(ElemType::F16),
            Dtype::BF16 => Some(ElemType::Bf16),
            Dtype::F64 => Some(ElemType::F64),
            _ => None,
        }
    }

    /// The elements in this machine's byte order, as [`Tensor::from_bytes`](crate::Tensor::from_bytes) takes them.
    pub fn ne_bytes(&self) -> Cow<'a, [u8]> {
        if cfg!(target_endian = "little") {
            return Cow::Borrowed(self.bytes);
        }
        let width = self.elem_type().map_or(1, ElemType::bytes);
        Cow::Owned(self.bytes.chunks(width).flat_map(|element| element.iter().rev().copied()).collect())
    }
}

impl Input {
    /// Opens and checks a file. A `.npy` file's tensor is named after the file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when it cannot be read, [`Error::File`](crate::Error::File) when its
    /// content is not what the format promises.
    pub fn open(path: &Path) -> Result<Self> {
        let Some(kind) = FileKind::of(path) else {
            // A missing file and a folder have better reasons than their names.
            map(path)?;
            return Err(invalid(path, "unknown extension; .safetensors and .npy are read"));
        };
        let map = map(path)?;
        let (tensors, metadata) = match kind {
            FileKind::Safetensors => safetensors::read(&map),
            FileKind::Npy => tensor_name(path)
                .and_then(|name| npy::read(&map).map(|place| (BTreeMap::from([(name, place)]), BTreeMap::new()))),
        }
        .map_err(|message| invalid(path, message))?;
        Ok(Self { path: path.to_owned(), kind, map, tensors, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// The text metadata that it carries.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|(name, place)| self.view(name, place))
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get_key_value(name).map(|(name, place)| self.view(name, place))
    }

    /// Reads the bytes of a tensor that begin with its byte `at`, from any thread.
    ///
    /// What is looked at once is had for less by reading it into memory that is used again: its pages need no place in
    /// this process, and do not count as its memory.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the system cannot, or the file is shorter than it was; and
    /// [`Error::File`](crate::Error::File) when the tensor does not reach so far, or there is none.
    pub fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> Result<()> {
        let place = self.tensors.get(name).map_or(0..0, |place| place.bytes.clone());
        let start = usize::try_from(at).ok().and_then(|at| place.start.checked_add(at));
        match start {
            Some(start) if start <= place.end && bytes.len() <= place.end - start => {
                at::read(&self.map.file, start as u64, bytes).map_err(|e| io_error(&self.path, e))
            }
            _ => Err(invalid(&self.path, format!("tensor {name:?} has no {} bytes from byte {at} on", bytes.len()))),
        }
    }

    fn view<'a>(&'a self, name: &'a str, place: &'a Place) -> TensorView<'a> {
        TensorView { name, dtype: place.dtype, shape: &place.shape, bytes: &self.map[place.bytes.clone()] }
    }
}

fn tensor_name(path: &Path) -> Result<String, String> {
    match path.file_stem().and_then(|stem| stem.to_str()) {
        Some(stem) => Ok(stem.to_owned()),
        None => Err("its name, which becomes the tensor's, is not UTF-8".to_owned()),
    }
}
