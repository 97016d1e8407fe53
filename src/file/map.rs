//! Memory-mapping an input; beside the CPU path's kernels the crate's only `unsafe`.

use super::{invalid, io_error};
use crate::error::Result;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// A file's bytes, to be looked at in place or read.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) file: File,
    map: Mmap,
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Maps a regular file for reading, so that memory is bounded by what is looked at, not by the file.
pub(super) fn map(path: &Path) -> Result<Mapped> {
    // Asked before opening: to open a pipe blocks until somebody writes to it.
    let metadata = std::fs::metadata(path).map_err(|e| io_error(path, e))?;
    if metadata.is_dir() {
        return Err(invalid(path, "is a folder; name a .safetensors or .npy file"));
    }
    if !metadata.is_file() {
        return Err(invalid(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(|e| io_error(path, e))?;
    // SAFETY: the map is private and read-only, and only plain bytes are read from it, every pattern of which
    // is valid. What no process can rule out is that another one changes the file meanwhile: changed bytes
    // would be read as changed values; after a truncation the system ends this process (SIGBUS) when it
    // touches a page that is gone, and the output, which is renamed into place last, does not appear.
    #[allow(unsafe_code, reason = "mapping a file is unsafe in every API; the comment above says what is relied on")]
    let map = unsafe { Mmap::map(&file) };
    let map = map.map_err(|e| io_error(path, e))?;
    Ok(Mapped { file, map })
}
