//! What `verify` finds, and the digests.

use super::{Folder, Run, X, le};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wgpu_quant::file::{Dtype, Input};

/// A model of many kinds of tensors as `m`, and quantized as `q`.
fn quantized_model() -> Folder {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    folder.run("quantize m.safetensors -o q.safetensors -q").expect(0);
    folder
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the metadata says of the quantized tensors.
fn description(folder: &Folder, name: &str) -> Value {
    serde_json::from_str(&folder.metadata(name)["wgpu_quant"]).unwrap()
}

/// Writes a file again with other tensors and another description.
pub(super) fn rewrite(
    folder: &Folder,
    from: &str,
    to: &str,
    change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>, &mut Value),
) {
    let mut tensors: Vec<_> =
        folder.tensors(from).into_iter().map(|(name, (dtype, shape, bytes))| (name, dtype, shape, bytes)).collect();
    let mut description = description(folder, from);
    change(&mut tensors, &mut description);
    let tensors: Vec<_> =
        tensors.iter().map(|(name, dtype, shape, bytes)| (&**name, *dtype, &**shape, bytes.clone())).collect();
    folder.write_safetensors(to, &[("wgpu_quant", &description.to_string())], &tensors);
}

/// Changes one byte of a tensor.
fn flip(folder: &Folder, from: &str, to: &str, tensor: &str, byte: usize) {
    rewrite(folder, from, to, |tensors, _| {
        tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap().3[byte] ^= 1;
    });
}

/// Removes every digest, as files of before have none.
fn without_digests(description: &mut Value) {
    description.as_object_mut().unwrap().remove("digest");
    for tensor in description["tensors"].as_object_mut().unwrap().values_mut() {
        tensor.as_object_mut().unwrap().remove("digest");
    }
}

/// Exit code 4, with these lines in the text, and the JSON.
#[track_caller]
fn expect_difference(folder: &Folder, files: &str, lines: &[&str]) -> Value {
    let run = folder.run(&format!("verify {files}")).expect(4);
    for line in lines {
        assert!(run.stdout.contains(line), "{line:?} is not in {}", run.stdout);
    }
    assert_eq!(run.stderr, "");
    let quiet = folder.run(&format!("verify {files} -q")).expect(4);
    assert!(quiet.stdout.is_empty() && quiet.stderr.starts_with("warning: "), "{}", quiet.stderr);
    folder.run(&format!("verify {files} --json")).expect(4).json()
}

#[test]
fn what_quantize_wrote_is_bit_identical() {
    let folder = quantized_model();
    let Run { stdout, stderr, .. } = folder.run("verify m.safetensors q.safetensors").expect(0);
    let lines: Vec<_> = stdout.lines().collect();
    let columns: Vec<_> = lines[0].split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
    assert_eq!(columns, ["device", "backend", "driver", "tensors", "digest", "result"]);
    assert!(lines[1].starts_with("cpu") && lines[1].ends_with("bit-identical"), "{stdout}");
    let digest = description(&folder, "q.safetensors")["digest"].clone();
    let digest = digest.as_str().unwrap();
    assert_eq!(lines[2..], ["", &*format!("digest: {digest}"), "bit-identical on 1 device"]);
    assert_eq!(stderr, "");

    let result = folder.run("verify m.safetensors q.safetensors --json").expect(0).json();
    assert_eq!(
        (&result["version"], &result["digest"], &result["verdict"], &result["file_difference"]),
        (&json!(1), &json!(digest), &json!("bit-identical on 1 device"), &json!(null))
    );
    let driver = &result["devices"][0]["driver"];
    let row = json!({
        "index": null, "name": "cpu", "backend": "cpu", "type": "cpu", "driver": driver, "tensors": 5,
        "digest": digest, "status": "bit-identical", "first_difference": null, "error": null,
    });
    assert_eq!(result["devices"], json!([row]));
    let quiet = folder.run("verify m.safetensors q.safetensors -q").expect(0);
    assert_eq!((quiet.stdout, quiet.stderr), (String::new(), String::new()));
}

#[test]
fn every_scheme_and_granularity_can_be_verified() {
    let folder = Folder::new();
    folder.write_model("m.safetensors");
    for (i, flags) in
        ["--scheme int8-minmax --per tensor --include *", "--per channel=-1", "--exclude *"].iter().enumerate()
    {
        folder.run(&format!("quantize m.safetensors -o {i}.safetensors -q {flags}")).expect(0);
        folder.run(&format!("verify m.safetensors {i}.safetensors")).expect(0);
    }
    // A .npy has no name inside, so that a renamed one still fits.
    folder.write_npy("x.npy", &[5], &X);
    folder.run("quantize x.npy -o x.safetensors -q").expect(0);
    folder.write("renamed.npy", &folder.read("x.npy"));
    folder.run("verify renamed.npy x.safetensors").expect(0);
}

#[test]
fn by_default_every_adapter_and_the_cpu_path_verify() {
    let digits = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/digits.safetensors");
    let folder = Folder::new();
    folder.run_args(["quantize", digits, "-o", "q.safetensors", "-q"]).expect(0);
    let result = folder.run_args(["verify", digits, "q.safetensors", "--json"]).expect(0).json();
    let adapters = folder.run("devices --json").expect(0).json();
    let rows = result["devices"].as_array().unwrap();
    let named = |rows: &[Value]| -> Vec<_> {
        rows.iter().map(|row| ["index", "name", "backend", "type", "driver"].map(|key| row[key].clone())).collect()
    };
    assert_eq!(rows[0]["backend"], "cpu");
    assert_eq!(named(&rows[1..]), named(adapters["devices"].as_array().unwrap()));
    let mut same = 0;
    for row in rows {
        // An adapter that cannot run the kernels is listed with its reason.
        if row["status"] == "skipped" {
            assert!(row["error"].is_string() && row["digest"].is_null(), "{row}");
            continue;
        }
        assert_eq!(
            (&row["status"], &row["tensors"], &row["error"]),
            (&json!("bit-identical"), &json!(3), &json!(null))
        );
        assert_eq!(row["digest"], result["digest"]);
        same += 1;
    }
    let plural = if same == 1 { "" } else { "s" };
    assert_eq!(result["verdict"], format!("bit-identical on {same} device{plural}"));
}

#[test]
fn a_changed_code_is_found_with_its_element() {
    let folder = quantized_model();
    flip(&folder, "q.safetensors", "bad.safetensors", "fc1.weight", 17);
    let stored = folder.tensors("bad.safetensors")["fc1.weight"].2[17].cast_signed();
    let recomputed = folder.tensors("q.safetensors")["fc1.weight"].2[17].cast_signed();
    let line = format!(
        "threads): tensor \"fc1.weight\": code of element 17: stored {stored}, recomputed {recomputed}\ndigest: "
    );
    let lines = [
        "difference in the file: tensor \"fc1.weight\": the metadata's digest is ",
        "\nfirst difference on CPU path (",
        &*line,
        "\ndiffers on 1 device, bit-identical on 0 devices\n",
    ];
    let result = expect_difference(&folder, "m.safetensors bad.safetensors", &lines);
    let row = &result["devices"][0];
    assert_eq!((&row["status"], &row["tensors"]), (&json!("differs"), &json!(5)));
    assert_eq!(
        row["first_difference"],
        json!({
            "tensor": "fc1.weight", "part": "codes", "index": 17, "stored": stored.to_string(),
            "recomputed": recomputed.to_string(),
        })
    );
    // The file's is that of what it holds, the device's that of what it should hold.
    assert_eq!(row["digest"], description(&folder, "q.safetensors")["digest"]);
    assert_ne!(row["digest"], result["digest"]);
}

#[test]
fn a_changed_scale_is_found_with_its_range_unit_in_bits() {
    let folder = quantized_model();
    flip(&folder, "q.safetensors", "bad.safetensors", "fc1.weight.scale", 8);
    let bits = |file: &str| {
        let bytes = &folder.tensors(file)["fc1.weight.scale"].2[8..12];
        format!("{:#010x}", u32::from_le_bytes(bytes.try_into().unwrap()))
    };
    let (stored, recomputed) = (bits("bad.safetensors"), bits("q.safetensors"));
    let line = format!("tensor \"fc1.weight\": scale of range unit 2: stored {stored}, recomputed {recomputed}\n");
    let result = expect_difference(&folder, "m.safetensors bad.safetensors", &[&line]);
    let difference = &result["devices"][0]["first_difference"];
    assert_eq!((&difference["part"], &difference["index"]), (&json!("scale"), &json!(2)));
    assert_eq!(difference["stored"], json!(stored));

    // Also one that no scale can be.
    rewrite(&folder, "q.safetensors", "nan.safetensors", |tensors, _| {
        let scales = &mut tensors.iter_mut().find(|(name, ..)| name == "fc1.weight.scale").unwrap().3;
        scales[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    expect_difference(&folder, "m.safetensors nan.safetensors", &["scale of range unit 0: stored 0x7fc00000"]);
}

#[test]
fn a_changed_copy_is_found_with_its_byte() {
    let folder = quantized_model();
    flip(&folder, "q.safetensors", "bad.safetensors", "fc1.bias", 2);
    let lines = [
        "difference in the file: tensor \"fc1.bias\": byte 2 of the copy is 0x01, of the original 0x00\n",
        "\nthe file differs, its quantized tensors are bit-identical on 1 device\n",
    ];
    let result = expect_difference(&folder, "m.safetensors bad.safetensors", &lines);
    assert_eq!(result["devices"][0]["status"], "bit-identical");
    assert!(result["file_difference"].as_str().unwrap().contains("fc1.bias"));
    rewrite(&folder, "q.safetensors", "shape.safetensors", |tensors, _| {
        tensors.iter_mut().find(|(name, ..)| name == "ids").unwrap().2 = vec![1, 2];
    });
    let line = "tensor \"ids\": the copy is I64 [1, 2], the original I64 [2, 1]";
    expect_difference(&folder, "m.safetensors shape.safetensors", &[line]);
}

#[test]
fn a_wrong_stored_digest_is_found_and_hinders_no_other_command() {
    let folder = quantized_model();
    let (wrong, good) = ("0123456789abcdef".repeat(4), description(&folder, "q.safetensors"));
    rewrite(&folder, "q.safetensors", "tensor.safetensors", |_, description| {
        description["tensors"]["fc1.weight"]["digest"] = json!(wrong);
    });
    let digest = good["tensors"]["fc1.weight"]["digest"].as_str().unwrap();
    let what = format!("the metadata's digest is {wrong}, that of the quantized tensors {digest}\n");
    let line = format!("difference in the file: tensor \"fc1.weight\": {what}");
    expect_difference(&folder, "m.safetensors tensor.safetensors", &[&line]);

    rewrite(&folder, "q.safetensors", "file.safetensors", |_, description| description["digest"] = json!(wrong));
    let digest = good["digest"].as_str().unwrap();
    let line =
        format!("difference in the file: the metadata's digest is {wrong}, that of the quantized tensors {digest}\n");
    let result = expect_difference(&folder, "m.safetensors file.safetensors", &[&line]);
    assert_eq!(result["digest"], json!(digest));

    folder.run("dequantize file.safetensors -o back.safetensors -q").expect(0);
    let compared = folder.run("compare m.safetensors file.safetensors --json").expect(0).json();
    assert_eq!(compared["totals"]["digest"], json!(digest), "of what was compared");
    let listing = folder.run("inspect file.safetensors --json").expect(0).json();
    assert_eq!(listing["totals"]["digest"], json!(wrong), "as the file says");
}

#[test]
fn a_malformed_digest_is_an_error() {
    let folder = quantized_model();
    rewrite(&folder, "q.safetensors", "bad.safetensors", |_, description| description["digest"] = json!("ABC"));
    for line in ["verify m.safetensors bad.safetensors", "inspect bad.safetensors"] {
        folder
            .run(line)
            .expect_error(&["bad.safetensors: ", "digest \"ABC\"; 64 hex digits in lower case are allowed"]);
    }
}

#[test]
fn a_wrong_original_is_found() {
    let folder = quantized_model();
    let other = |name: &str, tensor: &str, change: fn(&mut (Dtype, Vec<usize>, Vec<u8>))| {
        let mut tensors = folder.tensors("m.safetensors");
        change(tensors.get_mut(tensor).unwrap());
        let tensors: Vec<_> = tensors.iter().map(|(name, (d, s, bytes))| (&**name, *d, &**s, bytes.clone())).collect();
        folder.write_safetensors(name, &[], &tensors);
    };
    other("value.safetensors", "fc1.weight", |(_, _, bytes)| bytes[4..8].copy_from_slice(&9f32.to_le_bytes()));
    let line = "tensor \"fc1.weight\": scale of range unit 0: ";
    let result = expect_difference(&folder, "value.safetensors q.safetensors", &[line]);
    assert_eq!(result["file_difference"], json!(null));
    other("shape.safetensors", "fc1.weight", |(_, shape, _)| *shape = vec![16, 4]);
    let line = "tensor \"fc1.weight\": the original is F32 [16, 4], the metadata says F32 [4, 16]";
    let result = expect_difference(&folder, "shape.safetensors q.safetensors", &[line]);
    let row = &result["devices"][0];
    assert_eq!((&row["status"], &row["tensors"], &row["digest"]), (&json!("differs"), &json!(4), &json!(null)));
    // The same values, but widened.
    other("type.safetensors", "conv.weight", |(dtype, _, bytes)| {
        (*dtype, *bytes) = (Dtype::F32, le(&[1.0, -2.0, f32::from_bits((127 - 24) << 23), 0.0]));
    });
    let line = "tensor \"conv.weight\": the original is F32 [2, 1, 2], the metadata says F16 [2, 1, 2]";
    expect_difference(&folder, "type.safetensors q.safetensors", &[line]);
    // One of other names.
    folder.write_npy("x.npy", &[5], &X);
    let line = "q.safetensors: holds no tensor \"x\", which x.npy holds";
    let result = expect_difference(&folder, "x.npy q.safetensors", &[line]);
    assert_eq!((&result["digest"], &result["devices"][0]["tensors"]), (&json!(null), &json!(0)));
    folder.write_safetensors("few.safetensors", &[], &[("ids", Dtype::I64, &[2, 1], vec![0; 16])]);
    let line = "few.safetensors: holds no tensor \"conv.weight\", which q.safetensors holds";
    expect_difference(&folder, "few.safetensors q.safetensors", &[line]);
}

#[test]
fn swapped_names_are_found() {
    let folder = Folder::new();
    let tensor = |values: [f32; 2]| (Dtype::F32, &[1, 2][..], le(&values));
    let [(d, s, a), (_, _, b)] = [tensor([1.0, 0.5]), tensor([2.0, -0.25])];
    folder.write_safetensors("m.safetensors", &[], &[("a", d, s, a), ("b", d, s, b)]);
    folder.run("quantize m.safetensors -o q.safetensors -q").expect(0);
    let swap = |with_digests: bool, to: &str| {
        rewrite(&folder, "q.safetensors", to, |tensors, description| {
            for (name, ..) in tensors {
                let other = if name.starts_with('a') { "b" } else { "a" };
                name.replace_range(..1, other);
            }
            let entries = &mut description["tensors"];
            let a = entries["a"].take();
            entries["a"] = std::mem::replace(&mut entries["b"], a);
            if !with_digests {
                without_digests(description);
            }
        });
    };
    swap(true, "swapped.safetensors");
    let lines = ["difference in the file: the metadata's digest is ", "tensor \"a\": scale of range unit 0: "];
    expect_difference(&folder, "m.safetensors swapped.safetensors", &lines);
    swap(false, "bare.safetensors");
    let result = expect_difference(&folder, "m.safetensors bare.safetensors", &lines[1..]);
    assert_eq!(result["file_difference"], json!(null));
}

#[test]
fn a_file_without_digests_is_verified_and_shown_as_such() {
    let folder = quantized_model();
    let digest = description(&folder, "q.safetensors")["digest"].clone();
    rewrite(&folder, "q.safetensors", "old.safetensors", |_, description| without_digests(description));
    let result = folder.run("verify m.safetensors old.safetensors --json").expect(0).json();
    assert_eq!((&result["digest"], &result["devices"][0]["digest"]), (&digest, &digest));
    assert!(folder.run("inspect old.safetensors").expect(0).stdout.ends_with("\ndigest: absent\n"));
    let listing = folder.run("inspect old.safetensors --json").expect(0).json();
    assert_eq!(listing["totals"]["digest"], json!(null));
    folder.run("dequantize old.safetensors -o back.safetensors -q").expect(0);
    folder.run("compare m.safetensors old.safetensors -q").expect(0);
}

#[test]
fn the_digest_can_be_recomputed_from_the_file_alone() {
    let folder = quantized_model();
    let (tensors, said) = (folder.tensors("q.safetensors"), description(&folder, "q.safetensors"));
    let mut all = Sha256::new();
    for name in ["conv.weight", "emb.weight", "fc1.weight", "fc2.weight", "none.weight"] {
        let digest = Sha256::digest([&*tensors[name].2, &tensors[&format!("{name}.scale")].2].concat());
        assert_eq!(said["tensors"][name]["digest"], hex(&digest), "{name}");
        all.update(Sha256::digest(name.as_bytes()));
        all.update(digest);
    }
    let digest = hex(&all.finalize());
    assert_eq!(said["digest"], json!(digest));
    assert_eq!(said["tensors"].as_object().unwrap().len(), 5);

    // And every command shows it.
    let last = |line: &str| folder.run(line).expect(0).stdout.lines().last().unwrap().to_owned();
    assert_eq!(last("quantize m.safetensors -o again.safetensors"), format!("digest: {digest}"));
    assert_eq!(last("inspect q.safetensors"), format!("digest: {digest}"));
    let compared = folder.run("compare m.safetensors q.safetensors --json").expect(0).json();
    let listed = folder.run("inspect q.safetensors --json").expect(0).json();
    for report in [&compared, &listed] {
        assert_eq!(report["totals"]["digest"], json!(digest));
        for row in report["tensors"].as_array().unwrap() {
            // Null of a copy, as indexing a missing key is.
            assert_eq!(row["digest"], said["tensors"][row["name"].as_str().unwrap()]["digest"], "{row}");
        }
    }
    let dry = folder.run("quantize m.safetensors --dry-run --json -").expect(0).json();
    assert_eq!((&dry["totals"]["digest"], &dry["tensors"][0]["digest"]), (&json!(null), &json!(null)));
    assert!(!folder.run("quantize m.safetensors --dry-run").expect(0).stdout.contains("digest"));
}

#[test]
fn the_digests_move_nothing_in_the_file() {
    let folder = quantized_model();
    let file = |name: &str| Input::open(&folder.path(name)).unwrap();
    rewrite(&folder, "q.safetensors", "same.safetensors", |_, _| {});
    let (q, same) = (file("q.safetensors"), file("same.safetensors"));
    assert!(q.tensors().map(|t| (t.name, t.bytes)).eq(same.tensors().map(|t| (t.name, t.bytes))));
    // No header was cut short or left over: the file ends where the data does.
    let header = u64::from_le_bytes(folder.read("q.safetensors")[..8].try_into().unwrap());
    let data: usize = q.tensors().map(|tensor| tensor.bytes.len()).sum();
    assert_eq!(folder.read("q.safetensors").len(), 8 + header as usize + data);
    assert!(!String::from_utf8_lossy(&folder.read("q.safetensors")).contains(&"0".repeat(64)));
}

#[test]
fn what_cannot_be_verified_is_an_error() {
    let folder = quantized_model();
    folder.run("verify none.safetensors q.safetensors").expect_error(&["none.safetensors: "]);
    folder.run("verify m.safetensors none.safetensors").expect_error(&["none.safetensors: "]);
    folder.run("verify m.safetensors m.safetensors").expect_error(&["m.safetensors: is not quantized"]);
    let unknown = folder.run_args(["verify", "m.safetensors", "q.safetensors", "--device", "no such adapter"]);
    // A driver may have said something of its own before.
    let Run { stdout, stderr, .. } = unknown.expect(1);
    assert!(stdout.is_empty() && stderr.contains("\nerror: ") | stderr.starts_with("error: "), "{stderr}");
    assert!(stderr.contains("no such adapter"), "{stderr}");
}
