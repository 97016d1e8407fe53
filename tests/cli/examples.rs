//! Exact results, and back.

use super::{Folder, X, X_CODES, X_OUT, le};
use serde_json::{Value, json};
use wgpu_quant::file::{Dtype, npy_header};

#[test]
fn the_worked_example_comes_out_bit_for_bit_from_a_npy() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[5], &X);
    folder.run("quantize x.npy -o q.safetensors --scheme int8-minmax --json report.json").expect(0);
    // Both digests are Python's hashlib's.
    let description = concat!(
        r#"{"version":1,"digest":"15e12cd556bc4839f1e1a46cabc68734807705153b584c71a735ec37ff87667a","#,
        r#""tensors":{"x":{"scheme":"int8-minmax","granularity":"tensor","shape":[5],"dtype":"F32","#,
        r#""digest":"40f5c07a6db65023ca9c521a6d37e4bec9f259ac30acb54ced172e858367f8cd"}}}"#
    );
    let escaped = description.replace('"', r#"\""#);
    let header = format!(
        r#"{{"__metadata__":{{"wgpu_quant":"{escaped}"}},"x.scale":{{"dtype":"F32","shape":[],"data_offsets":[0,4]}},"x":{{"dtype":"I8","shape":[5],"data_offsets":[4,9]}}}}"#
    );
    let padded = header.len().next_multiple_of(8);
    let expected = [
        &(padded as u64).to_le_bytes()[..],
        format!("{header:<padded$}").as_bytes(),
        &0x3da0a0a1u32.to_le_bytes(),
        &X_CODES,
    ]
    .concat();
    assert_eq!(folder.read("q.safetensors"), expected);

    let report: Value = serde_json::from_slice(&folder.read("report.json")).unwrap();
    let row = &report["tensors"][0];
    let max = (X_OUT[0] - X[0]).abs();
    assert_eq!(row["max_abs_error"].as_f64(), Some(f64::from(max)));
    assert_eq!(max, 0.039215088);

    folder.run("dequantize q.safetensors -o back.npy").expect(0);
    assert_eq!(folder.read("back.npy"), [npy_header(Dtype::F32, &[5]).unwrap(), le(&X_OUT)].concat());
}

#[test]
fn the_worked_example_comes_out_bit_for_bit_from_a_safetensors() {
    let folder = Folder::new();
    folder.write_safetensors("m.safetensors", &[], &[("layer.x", Dtype::F32, &[5], le(&X))]);
    folder.run("quantize m.safetensors -o q.safetensors --scheme int8-minmax --per tensor --include layer.*").expect(0);
    let tensors = folder.tensors("q.safetensors");
    assert_eq!(tensors["layer.x"], (Dtype::I8, vec![5], X_CODES.to_vec()));
    assert_eq!(tensors["layer.x.scale"], (Dtype::F32, vec![], 0x3da0a0a1u32.to_le_bytes().to_vec()));
    folder.run("dequantize q.safetensors -o back.safetensors").expect(0);
    assert_eq!(folder.tensors("back.safetensors")["layer.x"], (Dtype::F32, vec![5], le(&X_OUT)));
    assert!(folder.metadata("back.safetensors").is_empty());
}

#[test]
fn dequantized_values_can_be_narrowed() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[5], &X);
    folder.run("quantize x.npy -o q.safetensors --scheme int8-minmax --per tensor -q").expect(0);
    let halves = |bits: [u16; 5]| bits.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<u8>>();
    // -9.960785, -5.019608, 0, 5.019608, 9.960785
    let bf16 = halves([0xc11f, 0xc0a1, 0, 0x40a1, 0x411f]);
    folder.run("dequantize q.safetensors -o b.safetensors --dtype bf16 -q").expect(0);
    assert_eq!(folder.tensors("b.safetensors")["x"], (Dtype::BF16, vec![5], bf16));
    let f16 = halves([0xc8fb, 0xc505, 0, 0x4505, 0x48fb]);
    folder.run("dequantize q.safetensors -o h.npy --dtype f16 -q").expect(0);
    assert_eq!(folder.read("h.npy"), [npy_header(Dtype::F16, &[5]).unwrap(), f16].concat());
    folder.run("dequantize q.safetensors -o b.npy --dtype bf16 -q").expect_error(&["BF16", ".safetensors"]);
    folder.run("dequantize q.safetensors -o b.npy --dtype int8 -q").expect(2);
}

#[test]
fn a_round_trip_keeps_names_copies_and_other_metadata() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    folder.run("quantize m.safetensors -o q.safetensors -q").expect(0);
    folder.run("dequantize q.safetensors -o back.safetensors").expect(0);
    let (before, back) = (folder.tensors("m.safetensors"), folder.tensors("back.safetensors"));
    assert!(before.keys().eq(back.keys()));
    for (name, (dtype, shape, bytes)) in &before {
        let (back_dtype, back_shape, back_bytes) = &back[name];
        assert_eq!(shape, back_shape);
        if shape.len() < 2 || *dtype == Dtype::I64 {
            assert_eq!((dtype, bytes), (back_dtype, back_bytes), "{name}");
        } else {
            assert_eq!(*back_dtype, Dtype::F32, "{name}");
        }
    }
    let mut metadata = folder.metadata("m.safetensors");
    assert_eq!(folder.metadata("back.safetensors"), metadata);
    let mut quantized = folder.metadata("q.safetensors");
    let description: Value = serde_json::from_str(&quantized.remove("wgpu_quant").unwrap()).unwrap();
    assert_eq!(quantized, std::mem::take(&mut metadata));
    let digest = &description["tensors"]["conv.weight"]["digest"];
    let expected = json!({
        "scheme": "int8-absmax", "granularity": "channel=0", "shape": [2, 1, 2], "dtype": "F16", "digest": digest
    });
    assert_eq!(description["tensors"]["conv.weight"], expected);
}

#[test]
fn the_same_input_and_flags_give_the_same_bytes() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    for (out, flags) in [("a", ""), ("b", "-q"), ("c", "--json c.json"), ("d", "--strict")] {
        folder.run(&format!("quantize m.safetensors -o {out}.safetensors {flags}")).expect(0);
        assert_eq!(folder.read(&format!("{out}.safetensors")), folder.read("a.safetensors"));
    }
    folder.run_args(["quantize", "m.safetensors", "-o", "e.safetensors"]).expect(0);
    assert_eq!(folder.read("e.safetensors"), folder.read("a.safetensors"), "whatever device `auto` takes");
}
