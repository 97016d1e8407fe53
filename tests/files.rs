//! The file formats: what is read, what is refused, and the bytes that are written.
#![cfg(feature = "cli")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use wgpu_quant::file::{
    Digest, Dtype, Input, Layout, METADATA_KEY, NewFile, PartBytes, Source, Sources, TensorView, narrowed, npy_header,
    parts,
};
use wgpu_quant::{Granularity, Quantized, Scheme, Spec, Tensor, cpu};

/// A safetensors file from its header's text and its data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A version 1.0 `.npy` file from its header's text and its data.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn open(name: &str, bytes: &[u8]) -> wgpu_quant::Result<Input> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    Input::open(&path)
}

/// A float tensor's values.
fn values(tensor: TensorView<'_>) -> Vec<f32> {
    let bytes = tensor.ne_bytes();
    let x = Tensor::from_bytes(tensor.elem_type().unwrap(), &bytes, tensor.shape).unwrap();
    let mut values = vec![0.0; x.elems()];
    x.read(0, &mut values);
    values
}

/// The one-line error of opening these bytes.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let error = match open(name, bytes) {
        Ok(input) => panic!("accepted {:?}", input.tensors().collect::<Vec<_>>()),
        Err(error) => error.to_string(),
    };
    let (path, reason) = error.split_once(&format!("{name}: ")).expect("the error names the file");
    assert!(!path.is_empty() && !reason.is_empty(), "{error}");
    reason.to_owned()
}

#[test]
fn hostile_safetensors_are_refused_with_the_reason() {
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let one = |dtype, shape, offsets| format!("{{{}}}", entry("a", dtype, shape, offsets));
    let two = |first: [&str; 3], second: [&str; 3]| {
        let [a, b] = [("a", first), ("b", second)].map(|(n, [d, s, o])| entry(n, d, s, o));
        format!("{{{a},{b}}}")
    };
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("an empty file", vec![], "too small"),
        ("seven bytes", vec![0; 7], "too small"),
        ("a length of 2^63", (1u64 << 63).to_le_bytes().to_vec(), "too large"),
        ("a header of 101 MB", 101_000_000u64.to_le_bytes().to_vec(), "too large"),
        ("a header beyond the end", 100u64.to_le_bytes().to_vec(), "invalid header length"),
        ("a header that is not UTF-8", [&1u64.to_le_bytes()[..], b"\xff"].concat(), "UTF-8"),
        ("a header that starts with a space", safetensors(" {}", b""), "starts with ' '"),
        ("no JSON", safetensors("{nothing}", b""), "line 1"),
        ("200,000 brackets", safetensors(&format!(r#"{{"a":{}"#, "[".repeat(200_000)), b""), "recursion limit"),
        ("an array", safetensors("[]", b""), "starts with '['"),
        (
            "an overflowing shape",
            safetensors(&one("F32", "[4194305,4194305,211106198978564]", "[0,4]"), &[0; 4]),
            "overflow",
        ),
        ("a negative dimension", safetensors(&one("F32", "[-1]", "[0,4]"), &[0; 4]), "invalid value"),
        ("an unknown type", safetensors(&one("F33", "[1]", "[0,4]"), &[0; 4]), "unknown variant"),
        ("half a byte", safetensors(&one("F4", "[3]", "[0,2]"), &[0; 2]), "byte boundary"),
        ("fewer bytes than the shape", safetensors(&one("F32", "[2]", "[0,4]"), &[0; 4]), "invalid shape"),
        ("reversed offsets", safetensors(&one("F32", "[1]", "[4,0]"), &[0; 4]), "invalid offset"),
        ("trailing bytes", safetensors(&one("F32", "[1]", "[0,4]"), &[0; 5]), "not fully covered"),
        ("missing bytes", safetensors(&one("F32", "[1]", "[0,4]"), &[0; 3]), "not fully covered"),
        ("a hole", safetensors(&two(["U8", "[1]", "[0,1]"], ["U8", "[1]", "[2,3]"]), &[0; 3]), "invalid offset"),
        ("an overlap", safetensors(&two(["U8", "[2]", "[0,2]"], ["U8", "[2]", "[1,3]"]), &[0; 3]), "invalid offset"),
        (
            "a name twice",
            safetensors(&format!("{{{0},{0}}}", entry("a", "U8", "[1]", "[0,1]")), &[0]),
            r#"the key "a" occurs twice"#,
        ),
        (
            "a name twice, once escaped",
            safetensors(
                &format!("{{{},{}}}", entry("a", "U8", "[1]", "[0,1]"), entry(r"\u0061", "U8", "[1]", "[0,1]")),
                &[0],
            ),
            r#"the key "a" occurs twice"#,
        ),
        (
            "a metadata key twice",
            safetensors(r#"{"__metadata__":{"k":"1","k":"2"}}"#, b""),
            r#"the key "k" occurs twice"#,
        ),
        (
            "metadata twice",
            safetensors(r#"{"__metadata__":{},"__metadata__":{}}"#, b""),
            r#"the key "__metadata__" occurs twice"#,
        ),
        ("metadata that is no text", safetensors(r#"{"__metadata__":{"k":1}}"#, b""), "invalid type"),
        (
            "a NUL in a name",
            safetensors(&format!("{{{}}}", entry(r"a\u0000b", "U8", "[1]", "[0,1]")), &[0]),
            "holds a NUL",
        ),
    ];
    for (what, bytes, expected) in cases {
        let reason = refusal("x.safetensors", bytes);
        assert!(reason.contains(expected), "{what}: {reason}");
    }
}

#[test]
fn unusual_but_valid_safetensors_are_read() {
    let header = r#"{"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},"":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}   "#;
    let input = open("x.safetensors", &safetensors(header, &[0, 0, 0x80, 0x3f, 9])).unwrap();
    let found: Vec<_> = input.tensors().map(|t| (t.name, t.dtype, t.shape, t.bytes)).collect();
    assert_eq!(
        found,
        [
            ("", Dtype::U8, &[1][..], &[9][..]),
            ("e", Dtype::F32, &[0, 7], &[]),
            ("s", Dtype::F32, &[], &[0, 0, 0x80, 0x3f])
        ]
    );
    assert_eq!(values(input.tensor("s").unwrap()), [1.0]);
    assert!(input.tensor("").unwrap().elem_type().is_none());
    assert_eq!(open("x.safetensors", &safetensors("{}", b"")).unwrap().tensors().count(), 0);
}

#[test]
fn every_cut_and_every_changed_byte_of_a_file_is_an_error_or_a_file() {
    let f32_1_to_3: Vec<u8> = [1f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let header = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[3,1],"data_offsets":[0,12]}}"#;
    let files = [
        ("x.safetensors", safetensors(header, &f32_1_to_3)),
        ("x.npy", [npy_header(Dtype::F32, &[3, 1]).unwrap(), f32_1_to_3].concat()),
    ];
    for (name, bytes) in files {
        assert_eq!(values(open(name, &bytes).unwrap().tensors().next().unwrap()), [1.0, 2.0, 3.0]);
        for end in 0..bytes.len() {
            refusal(name, &bytes[..end]);
        }
        for at in 0..bytes.len() {
            for value in [0, b' ', b'"', b'9', b'[', b'}', b'~', 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                // No panic, and no tensor whose bytes are not there.
                if let Ok(input) = open(name, &changed) {
                    for tensor in input.tensors() {
                        let bits = tensor.elems() * tensor.dtype.bitsize();
                        assert_eq!(tensor.bytes.len() * 8, bits, "byte {at} = {value}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_npy_file_is_read_in_every_version_and_spelling() {
    let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }";
    let data = [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0];
    let with_version = |version: &[u8], length: &[u8], dict: &str| {
        [b"\x93NUMPY", version, length, dict.as_bytes(), &data[..]].concat()
    };
    let (short, long) = ((dict.len() as u16).to_le_bytes(), (dict.len() as u32).to_le_bytes());
    let mut files = vec![with_version(&[1, 0], &short, dict), with_version(&[2, 0], &long, dict)];
    files.push(with_version(&[3, 0], &long, dict));
    files.extend(
        [
            r#"{"shape":(2,1),"fortran_order":False,"descr":"<f4"}"#,
            " { 'descr' : '<f4' , 'shape' : ( 2 , 1 , ) , 'fortran_order' : False } \n",
        ]
        .map(|dict| npy(dict, &data)),
    );
    for file in files {
        let input = open("some.name.npy", &file).unwrap();
        let tensor = input.tensors().next().unwrap();
        assert_eq!((tensor.name, tensor.dtype, tensor.shape), ("some.name", Dtype::F32, &[2, 1][..]));
        assert_eq!(values(tensor), [1.0, -2.0]);
    }
    for (dict, data, expected) in [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': ()}", &(0.1f64).to_le_bytes()[..], 0.1f32),
        ("{'descr': '<f2', 'fortran_order': False, 'shape': (1,)}", &[0x00, 0x3e], 1.5),
    ] {
        let input = open("x.npy", &npy(dict, data)).unwrap();
        assert_eq!(values(input.tensors().next().unwrap()), [expected]);
    }
    let empty = open(
        "x.npy",
        &npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776, 0)}", b""),
    );
    assert_eq!(empty.unwrap().tensors().next().unwrap().elems(), 0);
}

#[test]
fn hostile_npy_files_are_refused_with_the_reason() {
    let dict = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
    };
    let plain = |shape: &str| dict("'<f4'", "False", shape);
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("an empty file", vec![], "does not start with"),
        ("another format", b"PK\x03\x04".to_vec(), "does not start with"),
        ("only the magic", b"\x93NUMPY".to_vec(), "ends inside its header"),
        ("version 4", b"\x93NUMPY\x04\x00\x00\x00\x00\x00".to_vec(), "version 4.0"),
        ("a header of 4 GiB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "4294967295 bytes"),
        ("a header beyond the end", b"\x93NUMPY\x01\x00\x10\x00{".to_vec(), "ends inside its header"),
        ("big-endian", npy(&dict("'>f4'", "False", "(1,)"), &[0; 4]), "astype('<f4')"),
        ("Fortran order", npy(&dict("'<f4'", "True", "(1, 1)"), &[0; 4]), "ascontiguousarray"),
        ("integers", npy(&dict("'<i4'", "False", "(1,)"), &[0; 4]), "'<f4', '<f8' and '<f2' are read"),
        ("pickled objects", npy(&dict("'|O'", "False", "(1,)"), &[0; 8]), "\"|O\""),
        ("a structured array", npy(&dict("[('a', '<f4')]", "False", "(1,)"), &[0; 4]), "structured"),
        ("an expression", npy(&dict("__import__('os')", "False", "()"), &[0; 4]), "is expected"),
        ("a key twice", npy("{'shape': (), 'shape': (), 'descr': '<f4', 'fortran_order': False}", &[0; 4]), "twice"),
        (
            "an unknown key",
            npy("{'shape': (), 'more': '', 'descr': '<f4', 'fortran_order': False}", &[0; 4]),
            "\"more\"",
        ),
        ("a missing key", npy("{'descr': '<f4', 'fortran_order': False}", &[0; 4]), "lacks"),
        ("a negative dimension", npy(&plain("(-1,)"), &[0; 4]), "a dimension"),
        ("a dimension of 30 digits", npy(&plain("(111111111111111111111111111111,)"), &[0; 4]), "a dimension"),
        ("an overflowing shape", npy(&plain("(4294967296, 4294967296)"), &[0; 4]), "more elements"),
        ("an overflowing size", npy(&plain("(9223372036854775807,)"), &[0; 4]), "too large"),
        ("a terabyte that is not there", npy(&plain("(1099511627776,)"), &[0; 4]), "4 bytes of data"),
        ("missing bytes", npy(&plain("(2,)"), &[0; 7]), "7 bytes of data; shape [2] of F32 takes 8"),
        ("trailing bytes", npy(&plain("(2,)"), &[0; 9]), "9 bytes of data"),
        ("a second dict", npy(&(plain("(1,)") + "{}"), &[0; 4]), "nothing is expected"),
        ("an open tuple", npy("{'shape': (1", &[0; 4]), "`)` is expected"),
        ("an open string", npy("{'shape", &[0; 4]), "without an end"),
    ];
    for (what, bytes, expected) in cases {
        let reason = refusal("x.npy", bytes);
        assert!(reason.contains(expected), "{what}: {reason}");
    }
}

#[test]
fn what_is_no_file_of_a_known_kind_is_refused() {
    let folder = TempDir::new().unwrap();
    let refusal = |path: &Path| Input::open(path).unwrap_err().to_string();
    assert!(refusal(folder.path()).contains("is a folder"));
    assert!(refusal(&folder.path().join("none.npy")).contains("none.npy: "));
    let text = folder.path().join("x.txt");
    fs::write(&text, "x").unwrap();
    assert!(refusal(&text).contains(".safetensors and .npy are read"));
    #[cfg(unix)]
    assert!(refusal(Path::new("/dev/null")).contains("not a regular file"));
}

#[test]
fn a_written_npy_header_is_numpys_own() {
    for (shape, tuple) in [(&[][..], "()"), (&[5], "(5,)"), (&[2, 3], "(2, 3)")] {
        let header = npy_header(Dtype::F32, shape).unwrap();
        let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple}, }}");
        let expected = format!("{dict:<117}\n");
        assert_eq!(header, [b"\x93NUMPY\x01\x00\x76\x00", expected.as_bytes()].concat(), "{shape:?}");
    }
    assert!(npy_header(Dtype::F32, &[1; 65]).unwrap_err().contains("rank 65"));
    assert_eq!(npy_header(Dtype::F32, &[usize::MAX; 64]).unwrap().len() % 64, 0);
}

#[test]
fn a_layout_aligns_every_tensor_and_depends_on_no_order() {
    let tensors = [
        ("b", Dtype::I8, vec![3]),
        ("a", Dtype::I8, vec![1]),
        ("c", Dtype::F32, vec![]),
        ("d", Dtype::F64, vec![1]),
        ("e", Dtype::F16, vec![1]),
        ("z", Dtype::F32, vec![0, 4]),
    ]
    .map(|(name, dtype, shape)| (name.to_owned(), dtype, shape));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let layout = Layout::new(tensors.clone(), &metadata).unwrap();
    let text = r#"{"__metadata__":{"format":"pt"},"d":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"c":{"dtype":"F32","shape":[],"data_offsets":[8,12]},"z":{"dtype":"F32","shape":[0,4],"data_offsets":[12,12]},"e":{"dtype":"F16","shape":[1],"data_offsets":[12,14]},"a":{"dtype":"I8","shape":[1],"data_offsets":[14,15]},"b":{"dtype":"I8","shape":[3],"data_offsets":[15,18]}}"#;
    assert_eq!(std::str::from_utf8(&layout.header()[8..]).unwrap().trim_end(), text);
    assert_eq!(layout.header().len() % 8, 0);
    assert_eq!(layout.header()[..8], (layout.header().len() as u64 - 8).to_le_bytes());
    assert_eq!(layout.file_bytes(), layout.header().len() as u64 + 18);
    for (name, dtype, _) in &tensors {
        let place = layout.place(name).unwrap();
        assert_eq!(place.start % (dtype.bitsize() as u64 / 8), 0, "{name}");
    }
    let mut reversed = tensors.to_vec();
    reversed.reverse();
    assert_eq!(Layout::new(reversed, &metadata).unwrap().header(), layout.header());

    let refusal = |names: &[&str], shape: &[usize]| {
        let tensors = names.iter().map(|name| ((*name).to_owned(), Dtype::F32, shape.to_vec()));
        Layout::new(tensors, &BTreeMap::new()).unwrap_err()
    };
    assert!(refusal(&["x", "x"], &[1]).contains("two tensors"));
    assert!(refusal(&["__metadata__"], &[1]).contains("reserves"));
    assert!(refusal(&["x"], &[1 << 61, 1 << 2]).contains("too large"));
    assert!(refusal(&["x"], &[1 << 60]).contains("too large"));
}

/// A quantized file whose metadata is this text.
fn described(text: &str, codes_dtype: &str, scale: f32) -> Vec<u8> {
    let text = text.replace('\\', r"\\").replace('"', r#"\""#);
    let header = format!(
        r#"{{"__metadata__":{{"{METADATA_KEY}":"{text}"}},"w.scale":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},"w":{{"dtype":"{codes_dtype}","shape":[1,2],"data_offsets":[4,6]}}}}"#
    );
    safetensors(&header, &[&scale.to_le_bytes()[..], &[0x7f, 0x81]].concat())
}

const GOOD: &str =
    r#"{"version":1,"tensors":{"w":{"scheme":"int8-absmax","granularity":"channel=0","shape":[1,2],"dtype":"BF16"}}}"#;

/// The same with digests that need not be right to be read.
fn with_digests() -> String {
    let digest = |digits: &str| format!(r#""digest":"{}""#, digits.repeat(16));
    let text = GOOD.replace(r#""version":1"#, &format!(r#""version":1,{}"#, digest("0a1b")));
    text.replace(r#""dtype":"BF16""#, &format!(r#""dtype":"BF16",{}"#, digest("2c3d")))
}

#[test]
fn digests_are_read_back_and_files_of_before_have_none() {
    let input = open("x.safetensors", &described(&with_digests(), "I8", 0.5)).unwrap();
    let sources = Sources::read(&input).unwrap().unwrap();
    assert_eq!(sources.to_json().unwrap(), with_digests());
    assert_eq!(sources.digest.unwrap().to_string(), "0a1b".repeat(16));
    assert_eq!(sources.tensors["w"].digest.unwrap().to_string(), "2c3d".repeat(16));
    let stored = sources.stored(&input, "w").unwrap();
    assert_eq!((&*stored.codes, &*stored.scales), (&[0x7f, 0x81][..], &0.5f32.to_le_bytes()[..]));
    assert_eq!((&*stored.zero_points, stored.count()), (&[][..], 6));
    assert!(sources.stored(&input, "w.scale").is_none());
    let input = open("x.safetensors", &described(GOOD, "I8", 0.5)).unwrap();
    let sources = Sources::read(&input).unwrap().unwrap();
    assert_eq!((sources.digest, sources.tensors["w"].digest), (None, None));
}

#[test]
fn a_described_tensor_is_read_back() {
    let input = open("x.safetensors", &described(GOOD, "I8", 0.5)).unwrap();
    let sources = Sources::read(&input).unwrap().unwrap();
    assert_eq!(sources.to_json().unwrap(), GOOD);
    assert_eq!(sources.tensors["w"].dtype, Dtype::BF16);
    assert_eq!(sources.companions().into_iter().collect::<Vec<_>>(), ["w.scale"]);
    let quantized = sources.load(&input, "w").unwrap().unwrap();
    assert_eq!((quantized.scheme(), quantized.granularity()), (Scheme::INT8_ABSMAX, Granularity::Channel(0)));
    assert_eq!((quantized.code_values(), quantized.scales()), (vec![127, -127], &[0.5][..]));
    assert!(sources.load(&input, "w.scale").unwrap().is_none());
}

#[test]
fn a_false_description_is_refused() {
    let change = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        described(&GOOD.replace(from, to), "I8", 0.5)
    };
    let cases: &[(Vec<u8>, &str)] = &[
        (described("", "I8", 0.5), "EOF"),
        (described("[]", "I8", 0.5), "metadata \"wgpu_quant\""),
        (change(r#""version":1"#, r#""version":2"#), "version 2; this program reads version 1"),
        (change(r#""version":1"#, r#""version":1,"version":1"#), "occurs twice"),
        (change("int8-absmax", "int7-absmax"), "unknown scheme \"int7-absmax\""),
        (change("channel=0", "group=0"), "unknown granularity"),
        (change("channel=0", "group=32"), "\"w.scale\" is F32 [1], expected F32 [1, 1]"),
        (change("int8-absmax", "f16"), "channel=0 has no meaning"),
        (change("int8-absmax", "int4-absmax"), "\"w\" is I8 [1, 2], expected U8 [1, 1]"),
        (change("int8-absmax", "uint8-affine"), "\"w\" is I8 [1, 2], expected U8 [1, 2]"),
        (change("int8-absmax", "int8-affine"), "holds no \"w.zero_point\""),
        (change("\"granularity\"", "\"saturate\":true,\"granularity\""), "int8-absmax cannot saturate"),
        (change("channel=0", "channel=2"), "axis 2 does not exist"),
        (change("channel=0", "channel=1"), "\"w.scale\" is F32 [1], expected F32 [2]"),
        (change("channel=0", "tensor"), "\"w.scale\" is F32 [1], expected F32 []"),
        (change("[1,2]", "[2,1]"), "\"w\" is I8 [1, 2], expected I8 [2, 1]"),
        (change("[1,2]", "[18446744073709551615,2]"), "more elements"),
        (change("BF16", "F128"), "unknown variant"),
        (change(r#""w""#, r#""v""#), "holds no \"v\""),
        (described(&with_digests().replace("0a1b", "0A1B"), "I8", 0.5), "64 hex digits in lower case are allowed"),
        (described(&with_digests().replace("2c3d", "2c3"), "I8", 0.5), "digest \"2c32c3"),
        (described(&with_digests().replace(&format!("\"{}\"", "2c3d".repeat(16)), "7"), "I8", 0.5), "invalid type"),
        (described(GOOD, "U8", 0.5), "\"w\" is U8 [1, 2], expected I8 [1, 2]"),
    ];
    for (bytes, expected) in cases {
        let input = open("x.safetensors", bytes).unwrap();
        let error = Sources::read(&input).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("x.safetensors: "), "{error}");
    }
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let input = open("x.safetensors", &described(GOOD, "I8", scale)).unwrap();
        let error = Sources::read(&input).unwrap().unwrap().load(&input, "w").unwrap_err().to_string();
        assert!(error.contains("tensor \"w\": scale"), "{error}");
    }
}

/// A file that holds a quantized tensor `w` and nothing else, as `quantize` would write it.
fn stored(q: &Quantized) -> Vec<u8> {
    let source = Source {
        scheme: q.scheme(),
        granularity: q.granularity(),
        saturate: false,
        shape: q.shape().to_vec(),
        dtype: Dtype::F32,
        digest: Some(PartBytes::of(q).digest()),
    };
    let (parts, stored) = (parts("w", &source).unwrap(), PartBytes::of(q));
    let sources = Sources { tensors: BTreeMap::from([("w".to_owned(), source)]), digest: None };
    let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), sources.to_json().unwrap())]);
    let all = parts.iter().map(|part| (part.name.clone(), part.dtype, part.shape.clone()));
    let layout = Layout::new(all, &metadata).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.file_bytes() as usize, 0);
    for part in &parts {
        let place = layout.place(&part.name).unwrap();
        bytes[place.start as usize..place.end as usize].copy_from_slice(stored.part(part.kind));
    }
    bytes
}

#[test]
fn every_scheme_and_granularity_comes_back_from_a_file_as_it_was() {
    use Granularity::{Channel, Group, Tensor as Whole};
    let mut round_trips = 0;
    for shape in [&[][..], &[1], &[7], &[3, 5], &[2, 3, 4], &[2, 1, 9], &[0, 3], &[3, 0]] {
        let x: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i * 29 % 31) as f32 - 11.5).collect();
        for &scheme in Scheme::ALL {
            for granularity in [Whole, Channel(0), Channel(-1), Group(1), Group(2), Group(3), Group(100)] {
                let spec = Spec::new(scheme).per(granularity);
                let Ok(out) = cpu::quantize(Tensor::new(&x, shape).unwrap(), &spec) else {
                    assert!(spec.units(shape).is_err(), "{scheme} {granularity} {shape:?}");
                    continue;
                };
                let input = open("x.safetensors", &stored(&out.tensor)).unwrap();
                let sources = Sources::expect(&input).unwrap();
                let back = sources.load(&input, "w").unwrap().unwrap();
                assert_eq!(back, out.tensor, "{scheme} {granularity} {shape:?}");
                let digest = sources.stored(&input, "w").unwrap().digest();
                assert_eq!(sources.tensors["w"].digest, Some(digest));
                assert_eq!(input.tensors().count(), 1 + sources.companions().len());
                round_trips += 1;
            }
        }
    }
    // With scales all 7 granularities, but for the scalar, which has one; of a cast one.
    assert_eq!(round_trips, 15 * (7 * 7 + 1) + 2 * 8);
}

#[test]
fn the_parts_have_the_promised_names_types_and_shapes() {
    let of = |scheme: &str, granularity: &str, shape: &[usize]| {
        let (scheme, granularity) = (scheme.parse().unwrap(), granularity.parse().unwrap());
        let (shape, dtype) = (shape.to_vec(), Dtype::F32);
        let source = Source { scheme, granularity, saturate: false, shape, dtype, digest: None };
        let parts = parts("t", &source).unwrap();
        let texts: Vec<_> = parts.iter().map(|part| format!("{} {} {:?}", part.name, part.dtype, part.shape)).collect();
        texts.join(", ")
    };
    for (scheme, granularity, shape, expected) in [
        ("int8-absmax", "tensor", &[2, 5][..], "t I8 [2, 5], t.scale F32 []"),
        ("int16-minmax", "channel=-1", &[2, 5], "t I16 [2, 5], t.scale F32 [5]"),
        ("int4-absmax", "group=2", &[2, 5], "t U8 [2, 3], t.scale F32 [2, 3]"),
        ("int4-affine", "group=2", &[3, 2, 5], "t U8 [3, 2, 3], t.scale F32 [3, 2, 3], t.zero_point I8 [3, 2, 3]"),
        ("uint4-affine", "channel=1", &[2, 4], "t U8 [2, 2], t.scale F32 [4], t.zero_point U8 [4]"),
        ("uint4-affine", "tensor", &[], "t U8 [1], t.scale F32 [], t.zero_point U8 []"),
        ("int8-affine", "tensor", &[], "t I8 [], t.scale F32 [], t.zero_point I8 []"),
        ("onnx-dynamic-uint8", "tensor", &[3], "t U8 [3], t.scale F32 [], t.zero_point U8 []"),
        ("int16-affine", "group=8", &[3], "t I16 [3], t.scale F32 [1], t.zero_point I16 [1]"),
        ("uint16-affine", "channel=0", &[3, 0], "t U16 [3, 0], t.scale F32 [3], t.zero_point U16 [3]"),
        ("f16", "tensor", &[2, 5], "t F16 [2, 5]"),
        ("bf16", "tensor", &[], "t BF16 []"),
    ] {
        assert_eq!(of(scheme, granularity, shape), expected);
    }
}

#[test]
fn four_bit_codes_fill_bytes_from_below_and_zero_points_have_their_own() {
    let quantize = |scheme: Scheme, x: &[f32], shape: &[usize]| {
        let q = cpu::quantize(Tensor::new(x, shape).unwrap(), &Spec::new(scheme).per(Granularity::Group(2))).unwrap();
        let input = open("x.safetensors", &stored(&q.tensor)).unwrap();
        let stored = Sources::expect(&input).unwrap().stored(&input, "w").unwrap();
        (stored.codes.to_vec(), stored.zero_points.to_vec())
    };
    // Every scale is 1, and an odd row ends with the zero point of its last unit: 15 and 7, then the least code.
    let x = [0.0, 15.0, -15.0, 0.0, 15.0, 0.0];
    assert_eq!(quantize(Scheme::UINT4_AFFINE, &x, &[2, 3]), (vec![0xf0, 0xf0, 0xf0, 0x00], vec![0, 15, 0, 0]));
    assert_eq!(
        quantize(Scheme::INT4_AFFINE, &x, &[2, 3]),
        (vec![0x78, 0x78, 0x78, 0x88], vec![(-8i8) as u8, 7, (-8i8) as u8, (-8i8) as u8])
    );
    assert_eq!(quantize(Scheme::INT4_ABSMAX, &[7.0, -7.0, -3.0], &[3]), (vec![0x97, 0x09], vec![]));
}

/// An affine file of one range unit, with another tensor in the zero point's place.
fn with_zero_point(scheme: Scheme, dtype: &str, shape: &str, zero_point: &[u8]) -> wgpu_quant::Result<Input> {
    let codes = parts("w", &source(scheme)).unwrap().remove(0);
    let text = Sources { tensors: BTreeMap::from([("w".to_owned(), source(scheme))]), digest: None }.to_json().unwrap();
    let code_bytes = codes.shape.iter().product::<usize>() * codes.dtype.bitsize() / 8;
    let (a, b, c) = (4, 4 + code_bytes, 4 + code_bytes + zero_point.len());
    let header = format!(
        r#"{{"__metadata__":{{"{METADATA_KEY}":{text:?}}},"w.scale":{{"dtype":"F32","shape":[],"data_offsets":[0,{a}]}},"w":{{"dtype":"{}","shape":{:?},"data_offsets":[{a},{b}]}},"w.zero_point":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{b},{c}]}}}}"#,
        codes.dtype, codes.shape
    );
    open("x.safetensors", &safetensors(&header, &[&1f32.to_le_bytes()[..], &vec![0; code_bytes], zero_point].concat()))
}

/// Two elements, per tensor.
fn source(scheme: Scheme) -> Source {
    let (granularity, shape, dtype) = (Granularity::Tensor, vec![2], Dtype::F32);
    Source { scheme, granularity, saturate: false, shape, dtype, digest: None }
}

#[test]
fn a_zero_point_of_another_type_or_shape_or_no_code_is_refused() {
    let (uint4, int4, uint16) = (Scheme::UINT4_AFFINE, Scheme::INT4_AFFINE, Scheme::UINT16_AFFINE);
    for (scheme, dtype, shape, bytes, expected) in [
        (uint4, "I8", "[]", &[7][..], "\"w.zero_point\" is I8 [], expected U8 []"),
        (uint4, "U8", "[1]", &[7], "\"w.zero_point\" is U8 [1], expected U8 []"),
        (uint4, "U8", "[2]", &[7, 7], "\"w.zero_point\" is U8 [2], expected U8 []"),
        (uint4, "I32", "[]", &[7, 0, 0, 0], "\"w.zero_point\" is I32 [], expected U8 []"),
        (int4, "U8", "[]", &[7], "\"w.zero_point\" is U8 [], expected I8 []"),
        (uint16, "I16", "[]", &[7, 0], "\"w.zero_point\" is I16 [], expected U16 []"),
        (uint4, "U8", "[]", &[200], "zero point 200 of range unit 0 is not a code of uint4-affine; 0 to 15 are"),
        (uint4, "U8", "[]", &[16], "zero point 16 of range unit 0"),
        (int4, "I8", "[]", &[8], "zero point 8 of range unit 0 is not a code of int4-affine; -8 to 7 are"),
        (int4, "I8", "[]", &[0xf7], "zero point -9 of range unit 0"),
    ] {
        let input = with_zero_point(scheme, dtype, shape, bytes).unwrap();
        let loaded = Sources::expect(&input).and_then(|sources| sources.load(&input, "w"));
        let error = loaded.unwrap_err().to_string();
        assert!(error.contains("x.safetensors: ") && error.contains("tensor \"w\": "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    for (scheme, dtype, bytes, expected) in [
        (uint4, "U8", &[15][..], 15),
        (int4, "I8", &[0xf8], -8),
        (Scheme::INT8_AFFINE, "I8", &[0x80], -128),
        (Scheme::UINT8_AFFINE, "U8", &[200], 200),
        (Scheme::INT16_AFFINE, "I16", &[0, 0x80], -32768),
        (uint16, "U16", &[0xff, 0xff], 65535),
    ] {
        let input = with_zero_point(scheme, dtype, "[]", bytes).unwrap();
        let q = Sources::expect(&input).unwrap().load(&input, "w").unwrap().unwrap();
        assert_eq!(q.zero_points(), [expected], "{scheme}");
    }
}

#[test]
fn a_tensor_cannot_be_the_zero_point_of_another() {
    let tensor = r#"{"scheme":"uint8-affine","granularity":"tensor","shape":[],"dtype":"F32"}"#;
    let text = format!(r#"{{"version":1,"tensors":{{"w":{tensor},"w.zero_point":{tensor}}}}}"#);
    let scalar = |name: &str, dtype: &str, start: usize, end: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":[],"data_offsets":[{start},{end}]}}"#)
    };
    let entries = [
        scalar("w.scale", "F32", 0, 4),
        scalar("w.zero_point.scale", "F32", 4, 8),
        scalar("w", "U8", 8, 9),
        scalar("w.zero_point", "U8", 9, 10),
        scalar("w.zero_point.zero_point", "U8", 10, 11),
    ];
    let header = format!(r#"{{"__metadata__":{{"{METADATA_KEY}":{text:?}}},{}}}"#, entries.join(","));
    let error = Sources::read(&open("x.safetensors", &safetensors(&header, &[1; 11])).unwrap()).unwrap_err();
    assert!(error.to_string().contains("\"w.zero_point\" is a tensor and a part of another"), "{error}");
}

#[test]
fn a_digest_runs_over_codes_scales_and_zero_points_in_this_order() {
    let q = cpu::quantize(Tensor::new(&[-1.0, 2.0], &[2]).unwrap(), &Spec::new(Scheme::INT16_AFFINE)).unwrap().tensor;
    let zero_point = i16::try_from(q.zero_points()[0]).unwrap().to_le_bytes();
    let bytes = [q.codes(), &q.scales()[0].to_le_bytes(), &zero_point].concat();
    assert_eq!(PartBytes::of(&q).digest(), Digest::of_tensor(&[bytes]));
}

#[test]
fn narrowed_values_round_to_nearest_and_overflow_to_infinity() {
    let x = [1.0, -0.0, 65520.0, -65519.0, 2f32.powi(-25), f32::MAX, f32::from_bits(0xff80_0001)];
    let halves = |dtype| narrowed(&x, dtype).as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect::<Vec<_>>();
    assert_eq!(halves(Dtype::F16), [0x3c00, 0x8000, 0x7c00, 0xfbff, 0, 0x7c00, 0xfe00]);
    assert_eq!(halves(Dtype::BF16), [0x3f80, 0x8000, 0x4780, 0xc780, 0x3300, 0x7f80, 0xffc0]);
}

fn names(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_file_is_whole_or_absent_and_overwrites_only_when_told() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out");
    let write = |overwrite, text: &[u8]| {
        let file = NewFile::create(&path, overwrite)?;
        file.set_len(text.len() as u64)?;
        // In any order.
        file.write_at(1, &text[1..])?;
        file.write_at(0, &text[..1])?;
        assert_ne!(fs::read(&path).ok().as_deref(), Some(text), "not there before the commit");
        file.commit()
    };
    write(false, b"first").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert!(write(false, b"second").unwrap_err().to_string().contains("--force"));
    assert_eq!(fs::read(&path).unwrap(), b"first");
    write(true, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");

    drop(NewFile::create(&path, true).unwrap());
    assert_eq!(names(&folder), ["out"]);

    let late = folder.path().join("late");
    let file = NewFile::create(&late, false).unwrap();
    fs::write(&late, "somebody else's").unwrap();
    assert!(file.commit().unwrap_err().to_string().contains("already exists"));
    assert_eq!(fs::read(&late).unwrap(), b"somebody else's");
    assert_eq!(names(&folder), ["late", "out"]);

    for overwrite in [false, true] {
        let error = NewFile::create(folder.path(), overwrite).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let missing = folder.path().join("none").join("out");
        let error = NewFile::create(&missing, overwrite).unwrap_err().to_string();
        assert!(error.starts_with(missing.to_str().unwrap()) && !error.contains(".part"), "{error}");
    }
}
