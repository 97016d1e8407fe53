//! Files are worked on in pieces, by many threads: whatever their number, the output is that of whole tensors.

use super::{Folder, le, tool};
use std::process::Output;
use wgpu_quant::file::{Dtype, PartBytes};
use wgpu_quant::{Granularity, Scheme, Spec, Tensor, cpu};

/// Some tensors of several pieces, and some of a part of one.
fn write_large_model(folder: &Folder) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let shapes = [vec![900, 701], vec![3, 300_001], vec![5, 7], vec![2, 3, 110_000], vec![1 << 19, 2], vec![40, 40]];
    let values = |n: usize, seed: usize| -> Vec<f32> {
        let mix = |i: usize| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) % 65_536;
        // The last one of each is far off, so that the ranges of pieces differ.
        (0..n).map(|i| if i + 1 == n { 3.0 } else { mix(i) as f32 / 32_768.0 - 1.0 }).collect()
    };
    let tensors: Vec<_> = shapes
        .into_iter()
        .enumerate()
        .map(|(i, shape)| (format!("w{i}"), shape.clone(), values(shape.iter().product(), i)))
        .collect();
    let stored: Vec<_> =
        tensors.iter().map(|(name, shape, values)| (&**name, Dtype::F32, &**shape, le(values))).collect();
    folder.write_safetensors("m.safetensors", &[], &stored);
    tensors
}

#[test]
fn the_output_is_that_of_whole_tensors_whatever_the_threads() {
    let folder = Folder::new();
    let tensors = write_large_model(&folder);
    for (scheme, per) in [
        (Scheme::INT8_ABSMAX, Granularity::Channel(0)),
        (Scheme::INT8_MINMAX, Granularity::Tensor),
        (Scheme::UINT4_AFFINE, Granularity::Channel(-1)),
        (Scheme::INT4_ABSMAX, Granularity::Group(33)),
        (Scheme::F16, Granularity::Tensor),
    ] {
        let case = format!("{scheme} {per}");
        let (name, per_name) = (scheme.to_string(), per.to_string());
        let mut args = vec!["--scheme", &name, "--device", "cpu", "--force", "--json", "-"];
        if !scheme.is_cast() {
            args.extend(["--per", &per_name]);
        }
        let run = |threads: &str| {
            let quantize = ["quantize", "m.safetensors", "-o", "q.safetensors"];
            let args = quantize.iter().chain(&args);
            let Output { status, stdout, .. } =
                tool(&folder).args(args).env("RAYON_NUM_THREADS", threads).output().unwrap();
            assert!(status.success(), "{case}");
            let report: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
            (folder.read("q.safetensors"), report["tensors"].clone(), report["totals"].clone())
        };
        let one = run("1");
        let five = run("5");
        assert!(one == five, "{case}");

        let stored = folder.tensors("q.safetensors");
        let spec = Spec::new(scheme).per(per);
        for (name, shape, values) in &tensors {
            let whole = cpu::quantize(Tensor::new(values, shape).unwrap(), &spec).unwrap();
            let parts = PartBytes::of(&whole.tensor);
            assert!(stored[name].2 == *parts.codes, "{case} {name}");
            if !scheme.is_cast() {
                assert!(stored[&format!("{name}.scale")].2 == *parts.scales, "{case} {name}");
            }
        }
        folder.run("verify m.safetensors q.safetensors").expect(0);
        let compared = folder.run("compare m.safetensors q.safetensors --json").expect(0).json();
        assert_eq!((&compared["tensors"], &compared["totals"]), (&one.1, &one.2), "{case}");
    }
}

/// A tensor of zeros that takes no disk, and far more than what the tool may take to work on it.
#[cfg(target_os = "linux")]
#[test]
fn a_large_tensor_is_worked_on_in_little_memory() {
    const ELEMS: usize = 64 << 20;
    let folder = Folder::new();
    let header = wgpu_quant::file::npy_header(Dtype::F32, &[ELEMS / 1024, 1024]).unwrap();
    folder.write("x.npy", &header);
    let file = std::fs::OpenOptions::new().write(true).open(folder.path("x.npy")).unwrap();
    file.set_len((header.len() + 4 * ELEMS) as u64).unwrap();
    for args in [&["--per", "channel=0"][..], &["--per", "tensor", "-q"], &["--scheme", "f16"]] {
        let quantize = ["quantize", "x.npy", "-o", "q.safetensors", "--force", "--device", "cpu"];
        let mut child = tool(&folder)
            .args(quantize)
            .args(args)
            .env("RAYON_NUM_THREADS", "2")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut most_kib = 0u64;
        while child.try_wait().unwrap().is_none() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
            most_kib = peak.and_then(|kib| kib.parse().ok()).unwrap_or(0).max(most_kib);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(child.wait().unwrap().success());
        // The input has 256 MiB, the codes 64 and more.
        assert!((1..64 << 10).contains(&most_kib), "{args:?}: {most_kib} KiB");
    }
}
