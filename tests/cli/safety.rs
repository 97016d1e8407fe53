//! What is refused, and what is left behind.

use super::{Folder, X, tool};
use std::fs;
#[cfg(unix)]
use std::process::{Command, Output, Stdio};
use wgpu_quant::file::{Dtype, npy_header};

#[test]
fn nothing_is_overwritten_without_force_and_a_failure_leaves_no_trace() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[5], &X);
    folder.write("q.safetensors", b"precious");
    folder.run("quantize x.npy -o q.safetensors").expect_error(&["q.safetensors: already exists", "--force"]);
    folder.run("quantize x.npy -o q.safetensors --dry-run").expect_error(&["already exists"]);
    folder.run("quantize x.npy -o new.safetensors --json q.safetensors").expect_error(&["already exists"]);
    folder.run("dequantize x.npy -o q.safetensors").expect_error(&["already exists"]);
    assert_eq!(folder.read("q.safetensors"), b"precious");
    folder.run("quantize x.npy -o none/q.safetensors").expect_error(&["none/q.safetensors: No such file"]);
    folder.run("quantize missing.npy -o new.safetensors").expect_error(&["missing.npy: "]);
    folder.run("quantize x.npy -o new.safetensors --json new.safetensors").expect_error(&["same file"]);
    folder.run("quantize x.npy -o new.safetensors --json x.npy --force").expect_error(&["same file as x.npy"]);
    // Found while it runs: the scale in the file is no scale.
    folder.run("quantize x.npy -o bad.safetensors -q").expect(0);
    let mut bytes = folder.read("bad.safetensors");
    let scale = bytes.len() - 9;
    bytes[scale..scale + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    folder.write("bad.safetensors", &bytes);
    folder
        .run("dequantize bad.safetensors -o new.safetensors")
        .expect_error(&["bad.safetensors: tensor \"x\": scale NaN"]);
    folder.run("compare x.npy bad.safetensors").expect_error(&["bad.safetensors: tensor \"x\": scale NaN"]);
    assert_eq!(folder.names(), ["bad.safetensors", "q.safetensors", "x.npy"]);

    folder.run("quantize x.npy -o q.safetensors --json r.json").expect_error(&["q.safetensors: already exists"]);
    folder.write("r.json", b"old");
    folder.run("quantize x.npy -o q.safetensors --json r.json --force").expect(0);
    assert_ne!(folder.read("q.safetensors"), b"precious");
    assert_ne!(folder.read("r.json"), b"old");
    assert_eq!(folder.names(), ["bad.safetensors", "q.safetensors", "r.json", "x.npy"]);
}

#[test]
fn an_input_is_never_its_own_output() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    let before = folder.read("m.safetensors");
    folder.run("quantize m.safetensors -o ./m.safetensors --force").expect_error(&["same file as m.safetensors"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path("m.safetensors"), folder.path("link.safetensors")).unwrap();
        folder.run("quantize m.safetensors -o link.safetensors --force").expect_error(&["same file"]);
    }
    assert_eq!(folder.read("m.safetensors"), before);
}

#[test]
fn hostile_inputs_are_errors_of_one_line() {
    let folder = Folder::new();
    let safetensors =
        |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    folder.write("twice.safetensors", &safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0]));
    folder.run("inspect twice.safetensors").expect_error(&["twice.safetensors: ", "\"a\" occurs twice"]);
    folder.write(
        "escape.safetensors",
        &safetensors(r#"{"\u001b[2J\n":{"dtype":"\u001b]0;","shape":[1],"data_offsets":[0,1]}}"#, &[0]),
    );
    folder.run("inspect escape.safetensors").expect_error(&["unknown variant"]);
    folder.write(
        "escape.safetensors",
        &safetensors(r#"{"\u001b[2J\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0]),
    );
    let listing = folder.run("inspect escape.safetensors").expect(0).stdout;
    assert!(listing.contains(r"\u{1b}[2J\n") && !listing.contains('\u{1b}'), "{listing}");
    let long = "n".repeat(1 << 20);
    folder.write(
        "long.safetensors",
        &safetensors(&format!(r#"{{"{long}\u0000":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), &[0]),
    );
    let run = folder.run("inspect long.safetensors").expect(1);
    assert!(run.stderr.len() < 2000, "{} bytes", run.stderr.len());
    // A shape without elements that asks for terabytes of scales.
    folder.write(
        "wide.safetensors",
        &safetensors(r#"{"a":{"dtype":"F32","shape":[1099511627776,0],"data_offsets":[0,0]}}"#, &[]),
    );
    folder
        .run("quantize wide.safetensors -o q.safetensors")
        .expect_error(&["tensor \"a\": shape [1099511627776, 0] holds more elements or range units"]);
    folder.run("quantize wide.safetensors -o q.safetensors --per tensor").expect(0);
    folder.write("text.npy", b"not numpy");
    folder.run("quantize text.npy -o t.safetensors").expect_error(&["text.npy: not a .npy file"]);
    folder.run("inspect text.npy").expect_error(&["text.npy: not a .npy file"]);
    folder.run("inspect .").expect_error(&["is a folder"]);
    folder.run("compare text.npy text.npy").expect_error(&["text.npy: not a .npy file"]);
}

#[test]
fn wrong_usage_ends_with_2() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[5], &X);
    for line in [
        "",
        "nothing",
        "quantize",
        "quantize x.npy",
        "quantize x.npy -o q.npy",
        "quantize x.npy -o q.gguf",
        "quantize x.npy -o q.safetensors --scheme int7",
        "quantize x.npy -o q.safetensors --per row",
        "quantize x.npy -o q.safetensors --per channel=x",
        "quantize x.npy -o q.safetensors --include [",
        "dequantize q.safetensors -o x.txt",
        "compare x.npy q.safetensors --min-sqnr nan",
        "compare x.npy q.safetensors --min-sqnr high",
        "inspect",
        "verify x.npy",
        "verify x.npy q.safetensors --json -q",
        "devices x",
    ] {
        let run = folder.run(line).expect(2);
        assert!(run.stdout.is_empty() && !run.stderr.is_empty(), "{line}");
    }
    let help = folder.run("quantize x.npy -o q.safetensors --scheme int7").stderr;
    assert!(help.contains("int8-absmax") && help.contains("int8-minmax"), "{help}");
    assert_eq!(folder.names(), ["x.npy"]);
}

#[test]
fn help_names_every_flag() {
    let folder = Folder::new();
    let help = folder.run("quantize --help").expect(0).stdout;
    for flag in [
        "--output",
        "--scheme",
        "--per",
        "--saturate",
        "--device",
        "--include",
        "--exclude",
        "--strict",
        "--dry-run",
        "--force",
        "--json",
        "--quiet",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
    let help = folder.run("--help").expect(0).stdout;
    for command in ["quantize", "dequantize", "inspect", "compare", "verify", "devices", "Exit codes"] {
        assert!(help.contains(command), "{command}");
    }
}

/// A tensor of zeros that takes a while, without taking the disk.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_the_output_whole_or_absent_and_no_temporary_file() {
    const ELEMS: usize = 64 << 20;
    let folder = Folder::new();
    let header = npy_header(Dtype::F32, &[ELEMS]).unwrap();
    folder.write("x.npy", &header);
    let file = fs::OpenOptions::new().write(true).open(folder.path("x.npy")).unwrap();
    file.set_len((header.len() + 4 * ELEMS) as u64).unwrap();
    let mut child =
        tool(&folder).args(["quantize", "x.npy", "-o", "q.safetensors", "--device", "cpu", "-q"]).spawn().unwrap();
    // Until it has begun to write.
    while folder.names() == ["x.npy"] && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    match child.wait().unwrap().code() {
        Some(130) => assert_eq!(folder.names(), ["x.npy"]),
        // It was done before the signal came.
        code => {
            assert_eq!(code, Some(0));
            assert_eq!(folder.names(), ["q.safetensors", "x.npy"]);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[5], &X);
    let mut child =
        tool(&folder).args(["inspect", "x.npy"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), String::from_utf8(stderr).unwrap().as_str()), (Some(0), ""));
}
