//! Which tensors are quantized, copied and refused.

use super::{Folder, X, le};
use wgpu_quant::file::Dtype;

#[test]
fn by_default_floats_of_rank_2_and_more_are_quantized_per_channel_0_and_the_rest_is_copied() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    let run = folder.run("quantize m.safetensors -o q.safetensors --strict --json -").expect(0);
    let rows: Vec<_> = run.json()["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            ["name", "dtype", "scheme", "granularity", "status"]
                .map(|key| row[key].as_str().unwrap_or("-").to_owned())
                .join(" ")
        })
        .collect();
    assert_eq!(
        rows,
        [
            "conv.weight F16 int8-absmax channel=0 quantized",
            "emb.weight BF16 int8-absmax channel=0 quantized",
            "fc1.bias F32 - - copied",
            "fc1.weight F32 int8-absmax channel=0 quantized",
            "fc2.weight F64 int8-absmax channel=0 quantized",
            "ids I64 - - copied",
            "none.weight F32 int8-absmax channel=0 quantized",
            "scalar F32 - - copied",
        ]
    );
    let (before, after) = (folder.tensors("m.safetensors"), folder.tensors("q.safetensors"));
    for name in ["fc1.bias", "ids", "scalar"] {
        assert_eq!(before[name], after[name]);
    }
    // 0.1 and -0.2 rounded to f32: the scale is rne(rne32(0.2) / 127).
    assert_eq!(after["fc2.weight"], (Dtype::I8, vec![1, 2], vec![64, (-127i8) as u8]));
    assert_eq!(after["fc2.weight.scale"], (Dtype::F32, vec![1], le(&[0.2f32 / 127.0])));
    // 1 and -2; the least f16 subnormal and 0.
    let least = f32::from_bits((127 - 24) << 23);
    assert_eq!(after["conv.weight"], (Dtype::I8, vec![2, 1, 2], vec![64, (-127i8) as u8, 127, 0]));
    assert_eq!(after["conv.weight.scale"], (Dtype::F32, vec![2], le(&[2.0 / 127.0, least / 127.0])));
    assert_eq!(after["emb.weight"], (Dtype::I8, vec![2, 1], vec![127, (-127i8) as u8]));
    assert_eq!(after["none.weight.scale"], (Dtype::F32, vec![3], le(&[1.0; 3])));
    assert_eq!(after.len(), 8 + 5);
}

#[test]
fn include_adds_to_the_default_choice_and_exclude_wins() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    let quantized = |flags: &str| {
        let line = format!("quantize m.safetensors --dry-run --strict --json - {flags}");
        let report = folder.run(&line).expect(0).json();
        let rows = report["tensors"].as_array().unwrap();
        let planned = rows.iter().filter(|row| row["status"] == "planned");
        planned.map(|row| row["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(quantized(""), "conv.weight emb.weight fc1.weight fc2.weight none.weight");
    assert_eq!(quantized("--include *.bias"), "conv.weight emb.weight fc1.bias fc1.weight fc2.weight none.weight");
    assert_eq!(quantized("--include * --exclude fc*"), "conv.weight emb.weight none.weight scalar");
    assert_eq!(quantized("--exclude *"), "");
    assert_eq!(quantized("--exclude {emb,none}.weight --exclude fc[12].*"), "conv.weight");
}

#[test]
fn a_pattern_that_matches_nothing_is_a_warning() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    let run = folder.run("quantize m.safetensors --dry-run --exclude lm_head.*").expect(0);
    assert_eq!(run.stderr, "warning: --exclude \"lm_head.*\" matches no tensor\n");
}

#[test]
fn strict_ends_with_3_when_a_float_tensor_is_left_alone_by_no_wish_of_the_user() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    let lax = folder.run("quantize m.safetensors -o lax.safetensors --per channel=2").expect(0);
    assert!(
        lax.stderr.contains("warning: copied and not quantized: 4 float tensors: its rank does not allow channel=2")
    );
    assert!(lax.stdout.contains("its rank does not allow channel=2"), "{}", lax.stdout);
    folder.run("quantize m.safetensors -o strict.safetensors --per channel=2 --strict").expect(3);
    assert_eq!(folder.read("strict.safetensors"), folder.read("lax.safetensors"));
    folder.run("quantize m.safetensors --dry-run --per channel=2 --strict").expect(3);
    folder.run("quantize m.safetensors --dry-run --per channel=2 --strict --exclude [!c]*").expect(0);
    folder.run("quantize m.safetensors --dry-run --per channel=-1 --strict --include *").expect(3);
    folder.run("quantize m.safetensors --dry-run --per tensor --strict --include *").expect(0);

    folder.write_safetensors("f8.safetensors", &[], &[("w", Dtype::F8_E4M3, &[1, 1], vec![0])]);
    folder.run("quantize f8.safetensors --dry-run --strict").expect(3);
    folder.write_safetensors("i8.safetensors", &[], &[("w", Dtype::I8, &[1, 1], vec![0])]);
    folder.run("quantize i8.safetensors --dry-run --strict").expect(0);
}

#[test]
fn names_that_the_output_needs_must_be_free() {
    let folder = Folder::new();
    let weight = || le(&[1.0, 2.0]);
    let tensors = [("w", Dtype::F32, &[1, 2][..], weight()), ("w.scale", Dtype::F32, &[1], le(&[1.0]))];
    folder.write_safetensors("m.safetensors", &[], &tensors);
    folder.run("quantize m.safetensors -o q.safetensors").expect_error(&["m.safetensors: holds \"w.scale\"", "\"w\""]);
    folder.run("quantize m.safetensors -o q.safetensors --exclude w").expect(0);
    assert_eq!(folder.tensors("q.safetensors"), folder.tensors("m.safetensors"));
    folder.write_npy("__metadata__.npy", &[5], &X);
    folder.run("quantize __metadata__.npy -o x.safetensors").expect_error(&["reserves"]);
}

#[test]
fn a_quantized_file_is_not_quantized_again_and_a_plain_one_not_dequantized() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    folder.run("quantize m.safetensors -o q.safetensors -q").expect(0);
    folder.run("quantize q.safetensors -o qq.safetensors").expect_error(&["q.safetensors: is quantized", "dequantize"]);
    folder.run("dequantize m.safetensors -o d.safetensors").expect_error(&["m.safetensors: is not quantized"]);
    folder.run("dequantize q.safetensors -o d.npy").expect_error(&["q.safetensors: holds 8 tensors; a .npy holds one"]);
}
