//! No shader holds a float, in naga's IR or in any language that it is translated to.

use crate::for_each_shader;
use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::BoundsCheckPolicies;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Expression, Literal, Module, ScalarKind, TypeInner};

/// What is float in a module's types, expressions and casts.
fn floats(module: &Module, info: &ModuleInfo) -> Vec<String> {
    let mut found = Vec::new();
    let mut check_type = |what: String, inner: &TypeInner| {
        if inner.scalar_kind().is_some_and(|kind| matches!(kind, ScalarKind::Float | ScalarKind::AbstractFloat)) {
            found.push(format!("{what} of type {inner:?}"));
        }
    };
    for (_, ty) in module.types.iter() {
        check_type(format!("type {:?}", ty.name), &ty.inner);
    }
    for (handle, _) in module.global_expressions.iter() {
        check_type(format!("constant {handle:?}"), info[handle].inner_with(&module.types));
    }
    let mut literals = Vec::new();
    let mut functions: Vec<_> = module.functions.iter().map(|(handle, f)| (f, &info[handle])).collect();
    functions.extend(module.entry_points.iter().enumerate().map(|(i, e)| (&e.function, info.get_entry_point(i))));
    for (function, info) in functions {
        for (handle, expression) in function.expressions.iter() {
            let what = format!("{expression:?} in {:?}", function.name);
            check_type(what.clone(), info[handle].ty.inner_with(&module.types));
            let float = match expression {
                Expression::Literal(literal) => {
                    matches!(literal, Literal::F16(_) | Literal::F32(_) | Literal::F64(_) | Literal::AbstractFloat(_))
                }
                Expression::As { kind, .. } => matches!(kind, ScalarKind::Float | ScalarKind::AbstractFloat),
                Expression::Derivative { .. } | Expression::ImageSample { .. } => true,
                _ => false,
            };
            if float {
                literals.push(what);
            }
        }
    }
    found.extend(literals);
    found
}

#[test]
fn no_shader_holds_a_float_type_literal_or_operation() {
    for_each_shader(|label, _, _, module, info| assert_eq!(floats(module, info), [""; 0], "{label}"));
}

#[test]
fn the_search_for_floats_finds_planted_ones() {
    for body in [
        "let a = 1.5;",
        "let a = f32(x);",
        "let a = bitcast<f32>(x);",
        "var a: vec2<f32>;",
        "let a = pack2x16float(vec2(0.5));",
    ] {
        let text = format!("@compute @workgroup_size(1) fn main() {{ let x = 1u + u32(true); {body} }}");
        let module = naga::front::wgsl::parse_str(&text).unwrap();
        let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).unwrap();
        assert!(!floats(&module, &info).is_empty(), "{body}");
    }
}

/// Words of a translated text, comments aside, that mean a float.
fn float_words(text: &str) -> Vec<String> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let is_float = |word: &str| {
        let vector = |prefix: &str| word.strip_prefix(prefix).is_some_and(|n| ["2", "3", "4"].contains(&n));
        ["float", "half", "double", "bfloat"].iter().any(|name| word.starts_with(name))
            || vector("vec")
            || vector("mat")
            || word.starts_with("asfloat")
    };
    let literal = |word: &str| {
        word.split_once('.').is_some_and(|(whole, _)| !whole.is_empty() && whole.bytes().all(|b| b.is_ascii_digit()))
    };
    code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
        .filter(|word| is_float(word) || literal(word) || word.split('.').any(is_float))
        .map(str::to_owned)
        .collect()
}

#[test]
fn spirv_declares_no_float() {
    const TYPE_FLOAT: u32 = 22;
    const CAPABILITIES_OF_FLOATS: [u32; 2] = [9, 10]; // Float16, Float64
    for_each_shader(|label, _, _, module, info| {
        let words = spv::write_vec(module, info, &spv::Options::default(), None).unwrap();
        let mut at = 5;
        let mut instructions = 0;
        while at < words.len() {
            let (opcode, length) = (words[at] & 0xffff, words[at] >> 16);
            assert_ne!(opcode, TYPE_FLOAT, "{label}: OpTypeFloat");
            assert!(opcode != 17 || !CAPABILITIES_OF_FLOATS.contains(&words[at + 1]), "{label}: float capability");
            at += length as usize;
            instructions += 1;
        }
        assert!(instructions > 100, "{label}: only {instructions} instructions");
    });
}

#[test]
fn metal_text_holds_no_float() {
    for_each_shader(|label, _, _, module, info| {
        let options = msl::Options { fake_missing_bindings: true, ..Default::default() };
        let (text, _) = msl::write_string(module, info, &options, &msl::PipelineOptions::default()).unwrap();
        assert!(text.contains("kernel void"), "{label}");
        assert_eq!(float_words(&text), [""; 0], "{label}");
    });
}

#[test]
fn hlsl_text_holds_no_float() {
    for_each_shader(|label, _, _, module, info| {
        let mut text = String::new();
        let options = hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default()).write(module, info, None).unwrap();
        assert!(text.contains("numthreads"), "{label}");
        assert_eq!(float_words(&text), [""; 0], "{label}");
    });
}

#[test]
fn glsl_text_holds_no_float_but_for_the_fixed_precision_line() {
    for version in [glsl::Version::Desktop(430), glsl::Version::new_gles(310)] {
        for_each_shader(|label, program, _, module, info| {
            let mut text = String::new();
            let options = glsl::Options { version, ..Default::default() };
            let pipeline = glsl::PipelineOptions {
                shader_stage: naga::ShaderStage::Compute,
                entry_point: program.entry_point().to_owned(),
                multiview: None,
            };
            glsl::Writer::new(&mut text, module, info, &options, &pipeline, BoundsCheckPolicies::default())
                .unwrap()
                .write()
                .unwrap();
            assert!(text.contains("local_size_x"), "{label}");
            let text = text.replace("precision highp float;", "");
            assert_eq!(float_words(&text), [""; 0], "{label}");
        });
    }
}

#[test]
fn the_search_for_float_words_finds_planted_ones() {
    for planted in ["float x;", "metal::float2 v", "half h", "vec3 v", "uint a = uint(1.5)", "asfloat(x)", "double d"] {
        assert!(!float_words(planted).is_empty(), "{planted}");
    }
    assert_eq!(float_words("uvec4 v = uvec4(1u); // a float\nint x = a.float_free;"), ["a.float_free"]);
    assert_eq!(float_words("metal::uint4 v = x.inner[1u].xy;"), [""; 0]);
}
