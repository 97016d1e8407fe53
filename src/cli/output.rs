//! A safetensors file that is being written, tensor by tensor.

use std::path::Path;
use wgpu_quant::file::{self, Layout, NewFile};
use wgpu_quant::{Error, Result};

/// Refuses to write over a file that is being read or written already.
pub(crate) fn check(out: &Path, others: &[&Path], force: bool) -> Result<()> {
    match others.iter().find(|other| file::same_file(out, other)) {
        Some(other) => Err(file::invalid(out, format!("is the same file as {}", other.display()))),
        None => file::check_target(out, force),
    }
}

/// A new file with its header, or a dry run of one; tensors go to their places as they come.
#[derive(Debug)]
pub(crate) struct Writer {
    layout: Layout,
    file: Option<NewFile>,
}

impl Writer {
    pub(crate) fn create(path: &Path, force: bool, layout: Layout) -> Result<Self> {
        let mut file = NewFile::create(path, force)?;
        file.set_len(layout.file_bytes())?;
        file.write_at(0, layout.header())?;
        Ok(Self { layout, file: Some(file) })
    }

    /// Knows how large everything would be, and writes nothing.
    pub(crate) fn dry(layout: Layout) -> Self {
        Self { layout, file: None }
    }

    pub(crate) fn is_dry(&self) -> bool {
        self.file.is_none()
    }

    /// The bytes that a tensor takes.
    pub(crate) fn tensor_bytes(&self, name: &str) -> u64 {
        self.layout.place(name).map_or(0, |place| place.end - place.start)
    }

    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        match self.layout.place(name) {
            Some(place) if place.end - place.start == bytes.len() as u64 => file.write_at(place.start, bytes),
            _ => Err(file::invalid(file.path(), format!("tensor {name:?}: no place for {} bytes", bytes.len()))),
        }
    }

    /// Writes another header over the first: what is known only once the data is.
    pub(crate) fn replace_header(&mut self, layout: &Layout) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        match (layout.header(), self.layout.header().len()) {
            (header, kept) if header.len() == kept => file.write_at(0, header),
            (header, kept) => {
                Err(file::invalid(file.path(), format!("a header of {} bytes, {kept} were kept for it", header.len())))
            }
        }
    }

    pub(crate) fn commit(self) -> Result<()> {
        self.file.map_or(Ok(()), NewFile::commit)
    }
}

/// An error that says at which tensor it happened.
pub(crate) fn at_tensor(input: &Path, name: &str, error: Error) -> Error {
    match error {
        Error::Io { .. } | Error::File { .. } => error,
        other => file::invalid(input, format!("tensor {name:?}: {other}")),
    }
}
