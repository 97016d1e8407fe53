//! Every composed shader, without a GPU: it parses, it validates, it holds no float in any language that it
//! is translated to, it relies on no more than a closed list of integer operations, each within what every
//! driver must agree on, and its uniform is laid out as Rust's. Writes each text to `target/shaders/`.
#![cfg(feature = "gpu")]

mod floats;
mod integers;
mod intervals;
mod lint;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, TypeInner};
use std::mem::offset_of;
use std::path::Path;
use wgpu_quant::Scheme;
use wgpu_quant::gpu::{Kernel, Params, RECIPE_WORDS, shader_source};

const WORKGROUPS: [u32; 2] = [64, 256];

/// Calls `test` with every composed shader: its label, kernel, text, module and what the validator found.
fn for_each_shader(mut test: impl FnMut(&str, Kernel, &str, &Module, &ModuleInfo)) {
    let mut shaders = 0;
    for &scheme in Scheme::ALL {
        for &kernel in Kernel::ALL {
            for workgroup in WORKGROUPS {
                let label = format!("{}+{scheme}+{workgroup}", kernel.label());
                let text = shader_source(kernel, scheme, workgroup);
                let module = naga::front::wgsl::parse_str(&text)
                    .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&text, &label)));
                let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
                    .validate(&module)
                    .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&text, &label)));
                test(&label, kernel, &text, &module, &info);
                shaders += 1;
            }
        }
    }
    assert_eq!(shaders, Scheme::ALL.len() * Kernel::ALL.len() * WORKGROUPS.len());
}

#[test]
fn every_shader_parses_and_validates_and_is_written_to_target_shaders() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/shaders");
    std::fs::create_dir_all(&folder).unwrap();
    for_each_shader(|label, kernel, text, module, _| {
        std::fs::write(folder.join(format!("{label}.wgsl")), text).unwrap();
        let names: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, [kernel.entry_point()], "{label}");
    });
}

#[test]
fn the_integer_twins_have_the_same_functions() {
    let names = |folder: &str, file: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("mod tests").next().unwrap_or_default().lines();
        let mut names: Vec<String> = code
            .filter_map(|line| line.strip_prefix("pub(crate) ").unwrap_or(line).strip_prefix("fn "))
            .filter_map(|line| line.split('(').next().map(str::to_owned))
            .collect();
        names.sort();
        names
    };
    for stem in ["float", "code", "loss"] {
        let ours = names("shaders/exact", &format!("{stem}.wgsl"));
        assert!(ours.len() >= 3, "{stem}: {ours:?}");
        assert_eq!(ours, names("src/exact", &format!("{stem}.rs")), "{stem}");
    }
}

#[test]
fn the_uniform_and_the_recipe_are_laid_out_as_in_rust() {
    let fields = [
        ("elems", offset_of!(Params, elems)),
        ("first_unit", offset_of!(Params, first_unit)),
        ("first_left", offset_of!(Params, first_left)),
        ("run", offset_of!(Params, run)),
        ("units", offset_of!(Params, units)),
        ("stride", offset_of!(Params, stride)),
        ("counters", offset_of!(Params, counters)),
        ("given", offset_of!(Params, given)),
        ("with_loss", offset_of!(Params, with_loss)),
    ];
    for_each_shader(|label, _, _, module, _| {
        let of = |name: &str| module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name));
        let (_, params) = of("Params").unwrap_or_else(|| panic!("{label} has no Params"));
        let TypeInner::Struct { members, span } = &params.inner else { panic!("{label}: Params is no struct") };
        let laid_out: Vec<_> =
            members.iter().map(|m| (m.name.as_deref().unwrap_or_default(), m.offset as usize)).collect();
        assert_eq!((laid_out.as_slice(), *span as usize), (&fields[..], size_of::<Params>()), "{label}");
        if let Some((_, recipe)) = of("Recipe") {
            assert!(matches!(recipe.inner, TypeInner::Struct { span, .. } if span as usize == 4 * RECIPE_WORDS));
        }
    });
}
