//! What the commands print.

use super::{Folder, X, le};
use serde_json::{Value, json};
use std::fs;
use wgpu_quant::file::Dtype;

#[test]
fn the_report_has_the_promised_keys_and_compare_repeats_it() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[2, 3], &[1.0, f32::NAN, -3.0, f32::INFINITY, 0.0, 2.0]);
    folder.run("quantize x.npy -o q.safetensors --scheme int8-minmax --json report.json").expect(0);
    let report: Value = serde_json::from_slice(&folder.read("report.json")).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&report), "device tensors totals version");
    assert_eq!(report["version"], 1);
    assert_eq!(keys(&report["device"]), "backend driver index name reason type");
    assert_eq!(report["device"]["name"], "cpu");
    assert_eq!(
        keys(&report["tensors"][0]),
        "bytes_in bytes_out clipped digest dtype granularity inf max_abs_error mean_abs_error mse name nan nonfinite_out reason \
         scheme shape sqnr_db status"
    );
    let row = &report["tensors"][0];
    for (key, expected) in [
        ("name", json!("x")),
        ("shape", json!([2, 3])),
        ("dtype", json!("F32")),
        ("granularity", json!("channel=0")),
        ("bytes_in", json!(24)),
        ("bytes_out", json!(6 + 8)),
        ("nan", json!(1)),
        ("inf", json!(1)),
        // The scale of the second row spans 0..2, so that 2 / s = 255 is far outside the codes.
        ("clipped", json!(2)),
        ("nonfinite_out", json!(0)),
        ("status", json!("quantized")),
        ("reason", json!(null)),
    ] {
        assert_eq!(row[key], expected, "{key}");
    }
    assert_eq!(report["totals"]["bytes_out"], 14);
    assert_eq!(report["totals"]["max_abs_error"], row["max_abs_error"]);

    let compared = folder.run("compare x.npy q.safetensors --json").expect(0).json();
    assert_eq!(compared, report);
}

#[test]
fn figures_without_a_value_are_null() {
    let folder = Folder::new();
    folder.write_npy("x.npy", &[3], &[0.0, -0.0, 0.0]);
    let report = folder.run("quantize x.npy -o q.safetensors --json -").expect(0).json();
    let row = &report["tensors"][0];
    assert_eq!((&row["max_abs_error"], &row["mse"], &row["sqnr_db"]), (&json!(0.0), &json!(0.0), &json!(null)));
    folder.write_npy("none.npy", &[0], &[]);
    let report = folder.run("quantize none.npy -o none.safetensors --json -").expect(0).json();
    for key in ["max_abs_error", "mean_abs_error", "mse", "sqnr_db"] {
        assert_eq!(report["tensors"][0][key], json!(null), "{key}");
    }
    assert_eq!(report["totals"]["bits_per_weight"], json!(null));
    // Nothing lost meets any bound.
    folder.run("compare x.npy q.safetensors --min-sqnr 1000 -q").expect(0);
    folder.run("compare none.npy none.safetensors --min-sqnr 1000 -q").expect(0);
}

#[test]
fn compare_ends_with_4_when_the_total_is_below_the_bound() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    folder.run("quantize m.safetensors -o q.safetensors -q").expect(0);
    let run = folder.run("compare m.safetensors q.safetensors").expect(0);
    assert!(run.stdout.contains("fc1.weight") && run.stdout.contains("SQNR"), "{}", run.stdout);
    let report = folder.run("compare m.safetensors q.safetensors --json").expect(0).json();
    let total = report["totals"]["sqnr_db"].as_f64().unwrap();
    folder.run(&format!("compare m.safetensors q.safetensors --min-sqnr {total}")).expect(0);
    let run = folder.run(&format!("compare m.safetensors q.safetensors -q --min-sqnr {}", total + 0.001)).expect(4);
    assert_eq!((run.stdout.as_str(), run.stderr.lines().count()), ("", 1));
    folder.run("compare m.safetensors q.safetensors --min-sqnr -5").expect(0);
}

#[test]
fn compare_refuses_files_that_do_not_belong_together() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    folder.run("quantize m.safetensors -o q.safetensors -q").expect(0);
    folder.run("compare q.safetensors m.safetensors").expect_error(&["m.safetensors: is not quantized"]);
    let weight = le(&[1.0; 64]);
    folder.write_safetensors("other.safetensors", &[], &[("fc1.weight", Dtype::F32, &[4, 16], weight.clone())]);
    folder.run("compare other.safetensors q.safetensors").expect_error(&["other.safetensors: holds no tensor"]);
    folder.run("quantize other.safetensors -o oq.safetensors -q").expect(0);
    folder.run("compare m.safetensors oq.safetensors").expect_error(&["oq.safetensors: holds no tensor"]);
    folder.write_safetensors("shape.safetensors", &[], &[("fc1.weight", Dtype::F32, &[16, 4], weight)]);
    folder.run("compare shape.safetensors oq.safetensors").expect_error(&["[16, 4]", "[4, 16]"]);
    for (name, bias) in [("a", 1.0), ("b", 2.0)] {
        folder.write_safetensors(&format!("{name}.safetensors"), &[], &[("bias", Dtype::F32, &[1], le(&[bias]))]);
    }
    folder.run("quantize a.safetensors -o aq.safetensors -q").expect(0);
    folder.run("compare b.safetensors aq.safetensors").expect_error(&["neither quantized nor equal"]);
    // A .npy has no name inside, so that a renamed one still fits.
    folder.write_npy("x.npy", &[5], &X);
    folder.run("quantize x.npy -o xq.safetensors -q").expect(0);
    fs::rename(folder.path("x.npy"), folder.path("renamed.npy")).unwrap();
    folder.run("compare renamed.npy xq.safetensors").expect(0);
}

#[test]
fn a_dry_run_writes_no_output_and_foretells_the_sizes() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    let dry = folder.run("quantize m.safetensors -o q.safetensors --dry-run --json -").expect(0).json();
    assert_eq!(folder.names(), ["m.safetensors"]);
    let real = folder.run("quantize m.safetensors -o q.safetensors --json -").expect(0).json();
    for key in ["tensors", "quantized", "copied", "bytes_in", "bytes_out", "ratio", "bits_per_weight"] {
        assert_eq!(dry["totals"][key], real["totals"][key], "{key}");
    }
    for (dry, real) in dry["tensors"].as_array().unwrap().iter().zip(real["tensors"].as_array().unwrap()) {
        assert_eq!(dry["bytes_out"], real["bytes_out"]);
        assert_eq!(dry["max_abs_error"], json!(null));
    }
    let text = folder.run("quantize m.safetensors --dry-run").expect(0).stdout;
    assert!(text.contains("fc1.weight") && !text.contains("SQNR"), "{text}");
}

#[test]
fn the_table_is_on_stdout_and_quiet_means_quiet() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    let run = folder.run("quantize m.safetensors -o a.safetensors").expect(0);
    assert_eq!(run.stderr, "");
    let lines: Vec<_> = run.stdout.lines().collect();
    let columns: Vec<_> = lines[0].split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
    assert_eq!(columns, ["tensor", "shape", "dtype", "scheme", "per", "bytes", "max error", "SQNR dB", "clipped"]);
    assert!(run.stdout.contains("[4, 16]    F32    int8-absmax  channel=0  256 B -> 80 B"), "{}", run.stdout);
    assert!(run.stdout.contains("copied: 1 tensor, 16 B: not a float tensor"), "{}", run.stdout);
    assert!(run.stdout.contains("copied: 2 tensors, 20 B: rank below 2"), "{}", run.stdout);
    assert!(run.stdout.contains("\ndevice: CPU path"), "{}", run.stdout);
    let run = folder.run("quantize m.safetensors -o b.safetensors -q").expect(0);
    assert_eq!((run.stdout, run.stderr), (String::new(), String::new()));
}

#[test]
fn inspect_shows_a_quantized_tensor_as_one() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    folder.run("quantize m.safetensors -o q.safetensors -q").expect(0);
    let listing = folder.run("inspect q.safetensors --json").expect(0).json();
    let rows = listing["tensors"].as_array().unwrap();
    assert_eq!(rows.len(), 8);
    let description: Value = serde_json::from_str(&folder.metadata("q.safetensors")["wgpu_quant"]).unwrap();
    let expected = json!({
        "name": "fc1.weight", "shape": [4, 16], "dtype": "F32", "stored": "I8", "scheme": "int8-absmax",
        "granularity": "channel=0", "bytes": 80, "bits_per_weight": 10.0,
        "digest": description["tensors"]["fc1.weight"]["digest"]
    });
    assert_eq!(rows.iter().find(|row| row["name"] == "fc1.weight"), Some(&expected));
    assert_eq!(listing["totals"]["quantized"], 5);
    assert_eq!(listing["metadata"]["format"], "pt");
    let text = folder.run("inspect q.safetensors").expect(0).stdout;
    assert!(text.contains("F32 as I8") && text.contains("bits per weight"), "{text}");
    folder.write_npy("x.npy", &[5], &X);
    let listing = folder.run("inspect x.npy --json").expect(0).json();
    assert_eq!(listing["tensors"][0]["bytes"], 20);
}

#[test]
fn devices_lists_the_adapters() {
    let folder = Folder::new();
    let listing = folder.run("devices --json").expect(0).json();
    assert_eq!(listing["version"], 1);
    for device in listing["devices"].as_array().unwrap() {
        for key in ["name", "backend", "type", "driver"] {
            assert!(device[key].is_string(), "{key}: {device}");
        }
    }
    assert!(!folder.run("devices").expect(0).stdout.is_empty());
}
