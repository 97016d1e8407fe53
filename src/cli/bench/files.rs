//! From a file to a file, by the tool's own command, against a copy of the file.

use super::super::args::Region;
use super::measure::{By, Case, Label};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use wgpu_quant::Result;
use wgpu_quant::file::{Dtype, NewFile, invalid, io_error, npy_header};

/// What is done to the file.
pub(super) const WHAT: &str = "quantize int8-absmax per channel=0";

/// A folder for the files, which goes with it.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    /// With the elements as a file in it.
    pub(super) fn new(x: &[f32], shape: &[usize]) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|e| io_error(&std::env::temp_dir(), e))?;
        let folder = Self(folder);
        let file = NewFile::create(&folder.input(), false)?;
        let header = npy_header(Dtype::F32, shape).map_err(|message| invalid(file.path(), message))?;
        file.write_at(0, &header)?;
        file.write_at(header.len() as u64, bytemuck::cast_slice(x))?;
        file.commit()?;
        Ok(folder)
    }

    fn input(&self) -> PathBuf {
        self.0.path().join("x.npy")
    }
}

/// The devices are those that `--device` names.
pub(super) fn cases<'a>(folder: &'a Folder, elems: usize, devices: &'a [(By, String)]) -> Vec<Case<'a>> {
    let bytes = 4.0 * elems as f64;
    let label = |what: &str, by, bytes| Label { region: Region::File, what: what.to_owned(), by, bytes };
    let copied = folder.0.path().join("copy.npy");
    let old = copied.clone();
    let copy = label("copy of the file", By::Yardstick, 2.0 * bytes);
    let mut cases = vec![Case::after(copy, move || removed(&old), move || copy_file(&folder.input(), &copied))];
    for (by, device) in devices {
        let out = folder.0.path().join(format!("{device}.safetensors"));
        let old = out.clone();
        let work = move || {
            let mut tool = Command::new(std::env::current_exe().map_err(|e| io_error("the tool".as_ref(), e))?);
            tool.arg("quantize").arg(folder.input()).arg("-o").arg(&out);
            tool.args(["--scheme", "int8-absmax", "--per", "channel=0", "--quiet", "--device", device]);
            match tool.status().map_err(|e| io_error("the tool".as_ref(), e))?.success() {
                true => Ok(()),
                false => Err(invalid(&out, "was not written")),
            }
        };
        let what = label(WHAT, by.clone(), 1.25 * bytes);
        cases.push(Case::after(what, move || removed(&old), work));
    }
    cases
}

/// By reading and writing: a file system that only notes a copy would be no yardstick.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut piece = vec![0; 1 << 20];
    let mut input = fs::File::open(from).map_err(|e| io_error(from, e))?;
    let mut output = fs::File::create(to).map_err(|e| io_error(to, e))?;
    loop {
        match input.read(&mut piece).map_err(|e| io_error(from, e))? {
            0 => return Ok(()),
            n => output.write_all(&piece[..n]).map_err(|e| io_error(to, e))?,
        }
    }
}

/// To write over an old file would be another thing than to write a new one.
fn removed(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error(path, e)),
        _ => Ok(()),
    }
}
