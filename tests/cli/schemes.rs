//! Every scheme through the commands, on the CPU path.

use super::verify::rewrite;
use super::{Folder, X, le};
use serde_json::json;
use wgpu_quant::file::{Dtype, npy_header};
use wgpu_quant::{ElemType, Granularity, Scheme};

/// Two rows of an odd length, exact in every float type.
const VALUES: [f32; 10] = [-10.0, -5.0, 0.0, 5.0, 10.0, 0.5, -0.25, 3.0, 1.5, -1.0];

fn bytes_as(elem_type: ElemType, values: &[f32]) -> (Dtype, Vec<u8>) {
    match elem_type {
        ElemType::F64 => (Dtype::F64, values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect()),
        ElemType::F16 => (Dtype::F16, wgpu_quant::file::narrowed(values, Dtype::F16).into_owned()),
        ElemType::Bf16 => (Dtype::BF16, wgpu_quant::file::narrowed(values, Dtype::BF16).into_owned()),
        _ => (Dtype::F32, le(values)),
    }
}

/// Writes `q.safetensors` again as `bad.safetensors`, with other bytes in one tensor.
fn change(folder: &Folder, tensor: &str, bytes: impl FnOnce(&mut [u8])) {
    rewrite(folder, "q.safetensors", "bad.safetensors", |tensors, _| {
        bytes(&mut tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap().3);
    });
}

/// Every scheme with the granularities that it may be asked for; an empty flag is the default.
fn all() -> impl Iterator<Item = (Scheme, &'static str)> {
    let granularities = |scheme: &Scheme| -> &[&str] {
        if scheme.is_cast() { &[""] } else { &["", "--per tensor", "--per channel=-1", "--per group=2"] }
    };
    Scheme::ALL.iter().flat_map(move |scheme| granularities(scheme).iter().map(|flag| (*scheme, *flag)))
}

#[test]
fn every_scheme_and_granularity_is_written_verified_compared_and_dequantized() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[2, 5], &VALUES);
    for (scheme, per) in all() {
        let flags = format!("--scheme {scheme} {per} --force --json -");
        let report = folder.run(&format!("quantize x.npy -o q.safetensors --strict {flags}")).expect(0).json();
        folder.run("verify x.npy q.safetensors").expect(0);
        assert_eq!(folder.run("compare x.npy q.safetensors --json").expect(0).json(), report, "{scheme} {per}");
        let dry = folder.run(&format!("quantize x.npy --dry-run {flags}")).expect(0).json();
        assert_eq!(dry["tensors"][0]["bytes_out"], report["tensors"][0]["bytes_out"], "{scheme} {per}");

        let listing = folder.run("inspect q.safetensors --json").expect(0).json();
        let (row, rows) = (&listing["tensors"][0], listing["tensors"].as_array().unwrap().len());
        let granularity = report["tensors"][0]["granularity"].clone();
        assert_eq!((rows, &row["shape"], &row["scheme"]), (1, &json!([2, 5]), &json!(scheme.name())));
        assert_eq!((&row["granularity"], &row["bytes"]), (&granularity, &report["tensors"][0]["bytes_out"]));
        assert_eq!(row["bits_per_weight"].as_f64(), Some(row["bytes"].as_f64().unwrap() * 8.0 / 10.0), "{scheme}");
        assert_eq!((&listing["totals"]["elems"], &row["digest"]), (&json!(10), &report["tensors"][0]["digest"]));

        folder.run("dequantize q.safetensors -o back.npy --force -q").expect(0);
        let back = folder.read("back.npy");
        let header = npy_header(Dtype::F32, &[2, 5]).unwrap();
        assert_eq!(back[..header.len()], header, "{scheme} {per}");
        let back = back[header.len()..].as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
        let errors = back.zip(VALUES).map(|(back, x)| f64::from((back - x).abs()));
        let largest = errors.fold(0.0, f64::max);
        assert_eq!(report["tensors"][0]["max_abs_error"].as_f64(), Some(largest), "{scheme} {per}");
    }
}

#[test]
fn every_float_type_gives_the_codes_and_scales_that_its_values_in_f32_give() {
    let folder = Folder::new();
    for (scheme, per) in all() {
        let mut expected = None;
        for &elem_type in ElemType::ALL {
            let (dtype, bytes) = bytes_as(elem_type, &VALUES);
            let mut inputs = vec!["x.safetensors"];
            folder.write_safetensors("x.safetensors", &[], &[("x", dtype, &[2, 5], bytes.clone())]);
            let descr = match elem_type {
                ElemType::F64 => Some("<f8"),
                ElemType::F16 => Some("<f2"),
                ElemType::Bf16 => None,
                _ => Some("<f4"),
            };
            if let Some(descr) = descr {
                let header = npy_header(Dtype::F32, &[2, 5]).unwrap();
                let header = String::from_utf8_lossy(&header[10..]).replace("<f4", descr);
                folder.write("x.npy", &[b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), &bytes].concat());
                inputs.push("x.npy");
            }
            for input in inputs {
                let line = format!("quantize {input} -o q.safetensors --scheme {scheme} {per} --force --json -");
                let report = folder.run(&line).expect(0).json();
                assert_eq!(report["tensors"][0]["dtype"], json!(dtype.to_string()), "{input}");
                folder.run(&format!("verify {input} q.safetensors")).expect(0);
                let tensors = folder.tensors("q.safetensors");
                assert_eq!(expected.get_or_insert_with(|| tensors.clone()), &tensors, "{scheme} {per} {dtype} {input}");
            }
        }
    }
}

#[test]
fn the_digits_model_keeps_its_digest() {
    let digits = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/digits.safetensors");
    let folder = Folder::new();
    let run = folder.run(&format!("quantize {digits} -o q.safetensors")).expect(0);
    let digest = "digest: 32f4620fba6daf12afe4de75381a77518ce7f0b08823c3347f3228c6e0880e8b";
    assert_eq!(run.stdout.lines().last(), Some(digest));
}

#[test]
fn an_affine_example_comes_out_as_computed_by_hand() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[3], &[-1.0, 0.0, 14.0]);
    folder.run("quantize x.npy -o q.safetensors --scheme uint4-affine -q").expect(0);
    let tensors = folder.tensors("q.safetensors");
    // Of scale 1 and zero point 1: 0, 1, 15, and the zero point where the row ends within a byte.
    assert_eq!(tensors["x"], (Dtype::U8, vec![2], vec![0x10, 0x1f]));
    assert_eq!(tensors["x.scale"], (Dtype::F32, vec![], le(&[1.0])));
    assert_eq!(tensors["x.zero_point"], (Dtype::U8, vec![], vec![1]));
    folder.run("dequantize q.safetensors -o back.safetensors -q").expect(0);
    assert_eq!(folder.tensors("back.safetensors")["x"], (Dtype::F32, vec![3], le(&[-1.0, 0.0, 14.0])));
}

#[test]
fn a_cast_has_no_scale_and_no_granularity() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    folder.run("quantize m.safetensors -o q.safetensors --scheme f16 --strict -q").expect(0);
    let (before, after) = (folder.tensors("m.safetensors"), folder.tensors("q.safetensors"));
    assert!(before.keys().eq(after.keys()));
    assert_eq!(after["conv.weight"], before["conv.weight"]);
    assert_eq!(after["emb.weight"], (Dtype::F16, vec![2, 1], [0x3c00u16, 0xbe00].map(u16::to_le_bytes).concat()));
    let listing = folder.run("inspect q.safetensors").expect(0).stdout;
    assert!(listing.contains("BF16 as F16  f16     tensor"), "{listing}");
    for per in ["tensor", "channel=0", "group=2"] {
        for scheme in ["f16", "bf16"] {
            let run = folder.run(&format!("quantize m.safetensors -o c.safetensors --scheme {scheme} --per {per}"));
            let stderr = run.expect(2).stderr;
            let message = format!("--per {per} has no meaning for {scheme}: a cast rounds each value by itself");
            assert!(stderr.contains(&message) && stderr.contains("Usage: wgpu-quant quantize"), "{stderr}");
        }
    }
    assert_eq!(folder.names(), ["m.safetensors", "q.safetensors"]);
}

#[test]
fn saturation_belongs_to_f16_and_is_remembered() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[4], &[1.0, 1e6, f32::NEG_INFINITY, -65519.0]);
    let halves =
        |name: &str| folder.tensors(name)["x"].2.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect();
    let mut reports = vec![];
    for (name, flag, expected) in [
        ("plain.safetensors", "", vec![0x3c00, 0x7c00, 0xfc00, 0xfbff]),
        ("saturated.safetensors", "--saturate", vec![0x3c00, 0x7bff, 0xfbff, 0xfbff]),
    ] {
        let report = folder.run(&format!("quantize x.npy -o {name} --scheme f16 --json - {flag}")).expect(0).json();
        let found: Vec<u16> = halves(name);
        assert_eq!(found, expected, "{flag}");
        folder.run(&format!("verify x.npy {name}")).expect(0);
        assert_eq!(folder.run(&format!("compare x.npy {name} --json")).expect(0).json(), report, "{flag}");
        let row = &report["tensors"][0];
        assert_eq!((&row["clipped"], &row["inf"]), (&json!(1), &json!(1)), "{flag}");
        reports.push(report);
    }
    assert_ne!(reports[0]["tensors"][0]["digest"], reports[1]["tensors"][0]["digest"]);
    assert!(folder.metadata("saturated.safetensors")["wgpu_quant"].contains(r#""scheme":"f16","saturate":true,"#));
    assert!(!folder.metadata("plain.safetensors")["wgpu_quant"].contains("saturate"));
    for scheme in Scheme::ALL.iter().filter(|scheme| **scheme != Scheme::F16) {
        let run = folder.run(&format!("quantize x.npy -o no.safetensors --scheme {scheme} --saturate")).expect(2);
        let message = format!("--saturate has no meaning for {scheme}: it belongs to f16");
        assert!(run.stderr.contains(&message), "{}", run.stderr);
    }
}

#[test]
fn a_scalar_has_no_groups() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[], &[2.5]);
    let run = folder.run("quantize x.npy -o q.safetensors --per group=4").expect(0);
    assert!(run.stderr.contains("1 float tensor: its rank does not allow group=4"), "{}", run.stderr);
    assert_eq!(folder.tensors("q.safetensors")["x"], (Dtype::F32, vec![], le(&[2.5])));
    folder.run("quantize x.npy -o s.safetensors --per group=4 --strict").expect(3);
    folder.run("quantize x.npy -o t.safetensors --scheme uint4-affine --strict").expect(0);
    assert_eq!(folder.tensors("t.safetensors")["x"].1, [1]);
    folder.run("verify x.npy t.safetensors").expect(0);
    folder.run("dequantize t.safetensors -o back.npy -q").expect(0);
    assert_eq!(folder.read("back.npy"), [npy_header(Dtype::F32, &[]).unwrap(), le(&[2.5])].concat());
    for per in ["group=0", "group=-1", "group=", "group"] {
        folder.run(&format!("quantize x.npy -o u.safetensors --per {per}")).expect(2);
    }
}

#[test]
fn the_names_of_zero_points_must_be_free_where_there_are_any() {
    let folder = Folder::new();
    let tensors = [("w", Dtype::F32, &[1, 2][..], le(&[1.0, 2.0])), ("w.zero_point", Dtype::U8, &[1], vec![7])];
    folder.write_safetensors("m.safetensors", &[], &tensors);
    folder
        .run("quantize m.safetensors -o q.safetensors --scheme uint8-affine")
        .expect_error(&["m.safetensors: holds \"w.zero_point\", the name that the zero point of \"w\" needs"]);
    assert_eq!(folder.names(), ["m.safetensors"]);
    folder.run("quantize m.safetensors -o q.safetensors --scheme int8-absmax").expect(0);
    assert_eq!(folder.tensors("q.safetensors")["w.zero_point"].2, [7]);
    folder.run("verify m.safetensors q.safetensors").expect(0);
    let tensors = [("w", Dtype::F32, &[1, 2][..], le(&[1.0, 2.0])), ("w.scale", Dtype::U8, &[1], vec![7])];
    folder.write_safetensors("s.safetensors", &[], &tensors);
    folder.run("quantize s.safetensors -o c.safetensors --scheme bf16").expect(0);
    folder.run("quantize s.safetensors -o d.safetensors --scheme int4-absmax").expect_error(&["the scale of \"w\""]);
}

#[test]
fn a_changed_zero_point_is_found_with_its_range_unit() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[2, 5], &VALUES);
    for (scheme, unit) in [(Scheme::UINT4_AFFINE, 1), (Scheme::INT16_AFFINE, 1), (Scheme::UINT16_AFFINE, 0)] {
        folder.run(&format!("quantize x.npy -o q.safetensors --scheme {scheme} --force -q")).expect(0);
        let width = if scheme.code().bits() == 16 { 2 } else { 1 };
        change(&folder, "x.zero_point", |bytes| bytes[unit * width] ^= 1);
        let difference = |flag: &str| folder.run(&format!("verify x.npy bad.safetensors {flag}")).expect(4);
        let found = difference("--json").json()["devices"][0]["first_difference"].clone();
        assert_eq!((&found["part"], &found["index"]), (&json!("zero_point"), &json!(unit)));
        let [stored, recomputed] = ["stored", "recomputed"].map(|key| found[key].as_str().unwrap().to_owned());
        assert_eq!((stored.parse::<i32>().unwrap() - recomputed.parse::<i32>().unwrap()).abs(), 1, "{scheme}");
        let line = format!("zero point of range unit {unit}: stored {stored}, recomputed {recomputed}\n");
        assert!(difference("").stdout.contains(&line));
    }
}

#[test]
fn a_changed_packed_code_is_found_with_its_element_and_number() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[2, 5], &VALUES);
    folder.run("quantize x.npy -o q.safetensors --scheme int4-absmax -q").expect(0);
    // The second row begins at byte 3: its third element is the low half of byte 4.
    change(&folder, "x", |bytes| bytes[4] ^= 0x8);
    // 3 is the row's largest value.
    let run = folder.run("verify x.npy bad.safetensors").expect(4);
    assert!(run.stdout.contains("code of element 7: stored -1, recomputed 7\n"), "{}", run.stdout);
}

#[test]
fn a_zero_point_that_is_no_code_is_an_error_of_one_line() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[5], &X);
    folder.run("quantize x.npy -o q.safetensors --scheme uint4-affine -q").expect(0);
    change(&folder, "x.zero_point", |bytes| bytes[0] = 200);
    for line in ["dequantize bad.safetensors -o back.npy", "compare x.npy bad.safetensors"] {
        folder.run(line).expect_error(&["bad.safetensors: tensor \"x\": zero point 200", "0 to 15 are"]);
    }
    let run = folder.run("verify x.npy bad.safetensors").expect(4);
    assert!(run.stdout.contains("zero point of range unit 0: stored 200, recomputed 8\n"), "{}", run.stdout);
    assert_eq!(folder.names(), ["bad.safetensors", "q.safetensors", "x.npy"]);
}

#[test]
fn help_lists_every_scheme_and_granularity() {
    let folder = Folder::new();
    let help = folder.run("quantize --help").expect(0).stdout;
    for scheme in Scheme::ALL {
        assert!(help.contains(scheme.name()), "{scheme}");
    }
    for word in ["channel=K", "group=N", "--saturate", "F64", &Granularity::Tensor.to_string()] {
        assert!(help.contains(word), "{word}");
    }
}
