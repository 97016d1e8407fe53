//! What shaders rely on of a driver's integer compiler, and that the lint sees what breaks its rules: in snippets,
//! and planted in the shaders themselves.

use crate::for_each_shader;
use crate::lint::{RELIED_ON, Report, lint};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::collections::BTreeSet;
use wgpu_quant::gpu::{Kernel, Program, shader_source};
use wgpu_quant::{ElemType, Scheme};

#[test]
fn every_shader_relies_on_the_closed_list_alone_and_within_its_rules() {
    for_each_shader(|label, _, text, module, info| {
        let findings = lint(label, text, module, info).findings;
        assert!(findings.is_empty(), "{findings:#?}");
    });
}

#[test]
fn every_entry_of_the_closed_list_is_used_by_a_shader() {
    let mut used = BTreeSet::new();
    for_each_shader(|label, _, text, module, info| used.extend(lint(label, text, module, info).uses.into_keys()));
    let listed: BTreeSet<_> = RELIED_ON.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(used, listed);
}

#[test]
fn every_function_is_reached_in_a_shader() {
    let (mut reached, mut written) = (BTreeSet::new(), BTreeSet::new());
    for_each_shader(|label, _, text, module, info| {
        reached.extend(lint(label, text, module, info).reached);
        written.extend(module.functions.iter().filter_map(|(_, function)| function.name.clone()));
        written.extend(module.entry_points.iter().map(|entry| entry.name.clone()));
    });
    assert_eq!(reached, written);
}

fn report(text: &str) -> Report {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(text)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(text)));
    lint("snippet", text, &module, &info)
}

/// The findings in a shader of this body; `items` stand before it.
fn findings(items: &str, body: &str) -> Vec<String> {
    let text = format!(
        "struct Recipe {{ s: u32, es: i32 }}
        struct Given {{ n: u32 }}
        @group(0) @binding(0) var<uniform> given: Given;
        @group(0) @binding(1) var<storage, read_write> words: array<u32>;
        @group(0) @binding(2) var<storage, read_write> ints: array<i32>;
        @group(0) @binding(3) var<storage, read_write> recipes: array<Recipe>;
        var<private> kept: u32;
        var<workgroup> unset: u32;
        fn keep(x: u32) {{ kept = x; }}
        fn shifted(x: u32, n: u32) -> u32 {{ return x << n; }}
        fn places(x: u32) -> u32 {{ if (x > 40u) {{ return 3u; }} return min(x, 31u); }}
        {items}
        @compute @workgroup_size(1) fn main() {{ let w = words[0]; let v = words[1]; let i = ints[0]; {body} }}"
    );
    report(&text).findings
}

#[track_caller]
fn assert_found(what: &str, bodies: &[&str]) {
    for body in bodies {
        let found = findings("", body);
        assert!(found.iter().any(|finding| finding.contains(what)), "{body}: {found:#?}");
    }
}

#[track_caller]
fn assert_accepted(bodies: &[&str]) {
    for body in bodies {
        assert_eq!(findings("", body), [""; 0], "{body}");
    }
}

#[test]
fn a_shift_by_what_may_exceed_31_is_found() {
    assert_found(
        "shift by",
        &[
            "words[0] = 1u << w;",
            "words[0] = w >> (v & 63u);",
            "words[0] = w >> min(v, 32u);",
            "ints[0] = i >> w;",
            "words[0] = w << (32u - countLeadingZeros(v | 1u));",
            "words[0] = w << bitcast<u32>(clamp(i, -1, 31));",
            "words[0] = w << select(3u, 32u, v == 0u);",
            "if (v < 32u) { words[1] = v; } words[0] = w << v;",
            "if (v > 31u) { words[0] = w << v; }",
            "if (v > 31u && w > 5u) { return; } words[0] = w << v;",
            // Of two loads one was checked.
            "if (words[2] > 31u) { return; } words[0] = w << words[2];",
            "words[0] = shifted(w, 5u); words[1] = shifted(w, v);",
            "words[0] = shifted(w, places(v) + 1u);",
            "for (var n = 0u; n < 40u; n++) { words[n] = w << n; }",
            "loop { if (v < 32u) { break; } } words[0] = w << (v + 1u);",
            "var n = vec2<u32>(1u, 40u); words[0] = w << n[v & 1u];",
            "var n = array<u32, 2>(1u, 40u); words[0] = w << n[0];",
            "words[0] = (vec2<u32>(w) << vec2<u32>(1u, v)).x;",
            "keep(v); words[0] = w << kept;",
            "words[0] = w << unset;",
        ],
    );
}

#[test]
fn a_shift_by_what_shows_to_be_0_to_31_is_accepted() {
    assert_accepted(&[
        "words[0] = w << 31u;",
        "words[0] = w << (v & 31u);",
        "words[0] = w >> min(v, 31u);",
        "ints[0] = i >> (8u * (w % 4u));",
        "words[0] = w << (24u - 8u * (v % 4u));",
        "words[0] = w >> (31u - countLeadingZeros(v | 1u));",
        "words[0] = w << bitcast<u32>(clamp(i, 0, 31));",
        "words[0] = w << select(7u, 8u, v == 0u);",
        "if (v > 31u) { return; } words[0] = w << v;",
        "if (v < 32u) { words[0] = w << v; }",
        "if (!(v < 32u)) { words[0] = 0u; } else { words[0] = w << v; }",
        "words[0] = shifted(w, 5u); words[1] = shifted(w, 31u);",
        "words[0] = shifted(w, places(v));",
        "loop { if (v > 31u) { break; } words[0] = w << v; }",
        "var n = vec2<u32>(1u, 30u); words[0] = w << n[v & 1u];",
        "keep(v & 7u); words[0] = w << kept;",
    ]);
}

#[test]
fn a_division_by_what_may_be_zero_is_found() {
    assert_found(
        "division by",
        &[
            "words[0] = w / given.n;",
            "words[0] = w % given.n;",
            "words[0] = w / (v & 31u);",
            "words[0] = w / (v + 1u);",
            "if (w != 0u) { words[0] = w / v; }",
            "if (v == 0u) { words[0] = w % v; }",
            "if (given.n == 0u) { return; } words[0] = w % given.n;",
            "words[0] = w / min(v, 1u);",
        ],
    );
}

#[test]
fn a_division_by_what_shows_not_to_be_zero_is_accepted() {
    assert_accepted(&[
        "words[0] = w / 3u + w % 4u;",
        "words[0] = w / max(given.n, 1u);",
        "words[0] = w % (v | 1u);",
        "let n = given.n; if (n == 0u) { return; } words[0] = w / n;",
        "if (v != 0u) { words[0] = w % v; }",
        "if (w < v) { words[0] = w % v; }",
    ]);
}

#[test]
fn i32_arithmetic_that_may_overflow_is_found() {
    assert_found(
        "i32 overflow",
        &[
            "ints[0] = i + ints[1];",
            "ints[0] = i - ints[1];",
            "ints[0] = i + 1;",
            "ints[0] = -i;",
            "ints[0] = -bitcast<i32>(w);",
            "ints[0] = select(i, -i, i < 0);",
            "ints[0] = bitcast<i32>(8u - countLeadingZeros(w | 1u)) + 149;",
            "if (i >= 0) { ints[0] = i + 1; }",
            "var sum = 0; for (var k = 0u; k < 9u; k++) { sum = sum + 1; } ints[0] = sum;",
            "let r = recipes[0]; ints[0] = r.es + bitcast<i32>(r.s);",
            "ints[0] = (vec2<i32>(i) + vec2<i32>(1)).x;",
        ],
    );
}

#[test]
fn i32_arithmetic_that_shows_to_stay_in_range_is_accepted() {
    assert_accepted(&[
        "ints[0] = bitcast<i32>(w >> 23u) - 150;",
        "ints[0] = -clamp(i, -5, 25) + 7;",
        "ints[0] = -max(i, -2147483647);",
        "if (i < 0) { ints[0] = i + 1; } else { ints[0] = -i; }",
        "ints[0] = bitcast<i32>(8u - countLeadingZeros(w | 0x00800000u)) + 149;",
        "words[0] = select(w, 0u - w, i < 0);",
        "let k = bitcast<u32>(i); words[0] = select(k, 0u - k, i < 0);",
    ]);
}

#[test]
fn counting_leading_zeros_of_what_may_be_zero_is_found() {
    assert_found(
        "countLeadingZeros of",
        &[
            "words[0] = countLeadingZeros(w);",
            "words[0] = countLeadingZeros(w & 255u);",
            "if (v == 0u) { return; } words[0] = countLeadingZeros(w);",
            "if (w != 0u) { return; } words[0] = countLeadingZeros(w);",
            "if (w == 1u) { return; } words[0] = countLeadingZeros(w);",
            "if (w == 0u) { words[1] = 1u; } words[0] = countLeadingZeros(w);",
            "if (w == 0u || v == 0u) { return; } if (v > 9u) { words[0] = countLeadingZeros(v - 10u); }",
        ],
    );
}

#[test]
fn counting_leading_zeros_of_what_shows_not_to_be_zero_is_accepted() {
    assert_accepted(&[
        "words[0] = countLeadingZeros(w | 1u);",
        "words[0] = countLeadingZeros(max(w, 1u));",
        "if (w == 0u) { return; } words[0] = countLeadingZeros(w);",
        "if (w > v) { words[0] = countLeadingZeros(w); }",
        "if (w >= 10u) { words[0] = countLeadingZeros(w - 9u); }",
    ]);
}

#[test]
fn what_is_not_on_the_closed_list_is_refused_by_name() {
    for (name, items, body) in [
        ("f32", "", "let a = f32(w);"),
        ("f32", "", "let a = bitcast<f32>(w);"),
        ("f32", "var<private> a: vec2<f32>;", ""),
        ("u64", "", "let a = u64(w);"),
        ("i64", "var<private> a: i64;", ""),
        ("atomic<i32>", "var<workgroup> a: atomic<i32>;", ""),
        ("Pointer", "fn f(p: ptr<function, u32>) { *p = 1u; }", ""),
        ("override", "override n: u32 = 1u;", ""),
        ("i32 *", "", "ints[0] = i * 3;"),
        ("i32 /", "", "ints[0] = i / 3;"),
        ("i32 %", "", "ints[0] = i % 3;"),
        ("i32 <<", "", "ints[0] = i << 3u;"),
        ("i32 abs", "", "ints[0] = abs(i);"),
        ("u32 countTrailingZeros", "", "words[0] = countTrailingZeros(w);"),
        ("u32 firstLeadingBit", "", "words[0] = firstLeadingBit(w);"),
        ("u32 firstTrailingBit", "", "words[0] = firstTrailingBit(w);"),
        ("u32 countOneBits", "", "words[0] = countOneBits(w);"),
        ("u32 extractBits", "", "words[0] = extractBits(w, 3u, 4u);"),
        ("u32 dot", "", "words[0] = dot(vec2<u32>(w), vec2<u32>(v));"),
        ("u32 dot4U8Packed", "", "words[0] = dot4U8Packed(w, v);"),
        ("u32 pack4xU8", "", "words[0] = pack4xU8(vec4<u32>(w));"),
        ("u32 unpack4xU8", "", "words[0] = unpack4xU8(w).x;"),
        ("conversion of i32", "", "words[0] = u32(i);"),
        ("atomicExchange", "var<workgroup> a: atomic<u32>;", "words[0] = atomicExchange(&a, w);"),
        ("atomicExchange", "var<workgroup> a: atomic<u32>;", "atomicCompareExchangeWeak(&a, w, v);"),
        ("atomicSubtract", "var<workgroup> a: atomic<u32>;", "atomicSub(&a, w);"),
        ("ArrayLength", "", "words[0] = arrayLength(&words);"),
        ("ControlBarrier", "", "storageBarrier();"),
        ("Switch", "", "switch w { case 1u: { words[0] = 1u; } default: {} }"),
        ("Continue", "", "loop { if (w == 1u) { continue; } break; }"),
        ("SubgroupCollectiveOperation", "", "words[0] = subgroupAdd(w);"),
    ] {
        let found = findings(items, body);
        let refusal = format!("`{name}` is not on the list");
        assert!(found.iter().any(|finding| finding.contains(&refusal)), "{items} {body}: {found:#?}");
    }
}

#[test]
fn a_finding_names_shader_function_and_line() {
    let text = "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
fn f(n: u32) {
    words[0] = 1u << n;
}
@compute @workgroup_size(1) fn main() { f(words[1]); }";
    assert_eq!(report(text).findings, ["snippet, f, line 3: shift by 0..=4294967295: words[0] = 1u << n;"]);
}

#[test]
fn violations_planted_in_the_shaders_are_found() {
    for (kernel, line, planted, what) in [
        (Kernel::Quantize, "(c >> 23u) & 31u", "c >> 22u", "shift by"),
        (Kernel::Quantize, "(16u - sh) & 31u", "16u - sh", "shift by"),
        (Kernel::Quantize, "(((ct - c) >> 23u) & 31u)", "((ct - c) >> 23u)", "shift by"),
        (Kernel::Loss, "clamp(-up, 1, 25)", "max(-up, 1)", "shift by"),
        (Kernel::Loss, "clamp(-up, 1, 25)", "clamp(-up, 0, 25)", "shift by"),
        (Kernel::Dequantize, "shift_of(4u * v) & 31u", "4u * v", "shift by"),
        (Kernel::Scale, "(24u - j) & 31u", "24u + j", "shift by"),
        (Kernel::Scale, "min(ex - ey, 27u)", "ex - ey", "shift by"),
        (Kernel::Scale, "bitcast<u32>(-shift) & 31u", "bitcast<u32>(-shift)", "shift by"),
        (Kernel::Loss, "bitcast<u32>(up) & 31u", "bitcast<u32>(up)", "shift by"),
        (Kernel::Loss, "(shift_of(i) & 31u)", "i", "shift by"),
        (Kernel::MinMax, "max(params.run, 1u)", "params.run", "division by"),
        (Kernel::MinMax, "max(params.stride, 1u)", "params.stride", "division by"),
        (Kernel::MinMax, "max(params.units, 1u)", "params.units", "division by"),
        (Kernel::Quantize, "bitcast<i32>(select(k, 0u - k, (b >> 31u) == 1u))", "-bitcast<i32>(k)", "i32 overflow"),
        (Kernel::Loss, "bitcast<i32>(so - sx)", "bitcast<i32>(so) - bitcast<i32>(sx)", "i32 overflow"),
        (Kernel::QuantizeLoss, "unsigned_abs(d)", "bitcast<u32>(abs(d))", "`i32 abs`"),
        (Kernel::Dequantize, "p | vec4<u32>(HIDDEN)", "p", "countLeadingZeros of"),
        (Kernel::Dequantize, "p | vec4<u32>(HIDDEN)", "p | vec4<u32>(1u)", "shift by"),
        (Kernel::Scale, "fraction | 1u", "fraction", "countLeadingZeros of"),
        (Kernel::Scale, "    if (m == 0u) { return sign; }", "", "countLeadingZeros of"),
        (Kernel::Dequantize, "if (hi == 0u)", "if (lo == 0u)", "countLeadingZeros of"),
        (Kernel::MinMax, "atomicMax(&ranges[at], hi)", "atomicMin(&ranges[at], hi)", "`atomicMin`"),
    ] {
        let text = shader_source(Program::new(kernel, Scheme::INT8_ABSMAX, ElemType::F32), 64);
        assert!(text.contains(line), "{} has no {line}", kernel.label());
        let found = report(&text.replace(line, planted)).findings;
        assert!(found.iter().any(|finding| finding.contains(what)), "{line} -> {planted}: {found:#?}");
    }
}
