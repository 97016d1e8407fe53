//! The command line tool, run as a user runs it.
#![cfg(feature = "cli")]

#[cfg(feature = "gpu")]
mod bench;
mod choice;
mod examples;
mod reports;
mod safety;
mod schemes;
#[cfg(feature = "gpu")]
mod selftest;
mod streams;
mod verify;

use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use wgpu_quant::file::{Dtype, Layout, npy_header};

/// A folder, in which the tool runs.
struct Folder(TempDir);

/// What a run printed, and its exit code.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// A failure: one line that starts with `error: ` and holds all of these.
    #[track_caller]
    fn expect_error(self, holds: &[&str]) {
        let Self { stdout, stderr, .. } = self.expect(1);
        assert_eq!(stdout, "");
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
        for part in holds {
            assert!(stderr.contains(part), "{part:?} is not in {stderr}");
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

type Tensors<'a> = [(&'a str, Dtype, &'a [usize], Vec<u8>)];

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the tool here with the words of `line`, on the CPU where it computes.
    fn run(&self, line: &str) -> Run {
        let computes =
            ["quantize ", "dequantize ", "compare ", "verify "].iter().any(|command| line.starts_with(command));
        self.run_args(
            line.split_whitespace().chain(if computes { &["--device", "cpu"][..] } else { &[] }.iter().copied()),
        )
    }

    fn run_args<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Run {
        let Output { status, stdout, stderr } = tool(self).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn write_npy(&self, name: &str, shape: &[usize], values: &[f32]) {
        self.write(name, &[npy_header(Dtype::F32, shape).unwrap(), le(values)].concat());
    }

    fn write_safetensors(&self, name: &str, metadata: &[(&str, &str)], tensors: &Tensors<'_>) {
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let stored = tensors.iter().map(|(name, dtype, shape, _)| ((*name).to_owned(), *dtype, shape.to_vec()));
        let layout = Layout::new(stored, &metadata).unwrap();
        let mut bytes = layout.header().to_vec();
        bytes.resize(layout.file_bytes() as usize, 0);
        for (name, _, _, data) in tensors {
            let place = layout.place(name).unwrap();
            bytes[place.start as usize..place.end as usize].copy_from_slice(data);
        }
        self.write(name, &bytes);
    }

    /// A model of many kinds of tensors.
    fn write_model(&self, name: &str) {
        let weight: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) * 0.01).collect();
        self.write_safetensors(
            name,
            &[("format", "pt"), ("note", "quotes \" and \u{1F980}")],
            &[
                ("fc1.weight", Dtype::F32, &[4, 16], le(&weight)),
                ("fc1.bias", Dtype::F32, &[4], le(&[0.5, -0.25, 0.125, 1.0])),
                ("fc2.weight", Dtype::F64, &[1, 2], [0.1f64, -0.2].iter().flat_map(|v| v.to_le_bytes()).collect()),
                (
                    "conv.weight",
                    Dtype::F16,
                    &[2, 1, 2],
                    [0x3c00u16, 0xc000, 0x0001, 0].iter().flat_map(|v| v.to_le_bytes()).collect(),
                ),
                (
                    "emb.weight",
                    Dtype::BF16,
                    &[2, 1],
                    [0x3f80u16, 0xbfc0].iter().flat_map(|v| v.to_le_bytes()).collect(),
                ),
                ("none.weight", Dtype::F32, &[3, 0], vec![]),
                ("scalar", Dtype::F32, &[], le(&[2.5])),
                ("ids", Dtype::I64, &[2, 1], [7i64, -7].iter().flat_map(|v| v.to_le_bytes()).collect()),
            ],
        );
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A file's tensors, read by the safetensors crate.
    fn tensors(&self, name: &str) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
        let bytes = self.read(name);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.iter()
            .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect()
    }

    fn metadata(&self, name: &str) -> BTreeMap<String, String> {
        let bytes = self.read(name);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

fn tool(folder: &Folder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgpu-quant"));
    command.current_dir(folder.0.path()).stdin(Stdio::null());
    command
}

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

const X: [f32; 5] = [-10.0, -5.0, 0.0, 5.0, 10.0];
const X_OUT: [f32; 5] = [-9.960785, -5.019608, 0.0, 5.019608, 9.960785];
const X_CODES: [u8; 5] = [(-127i8) as u8, (-64i8) as u8, 0, 64, 127];
