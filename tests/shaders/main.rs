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
use wgpu_quant::gpu::{Kernel, Params, Program, RECIPE_WORDS, STORAGE_BUFFERS, shader_source};

const WORKGROUPS: [u32; 2] = [64, 256];

/// Calls `test` with every composed shader: its label, program, text, module and what the validator found.
fn for_each_shader(mut test: impl FnMut(&str, Program, &str, &Module, &ModuleInfo)) {
    let programs = Program::all();
    for kernel in Kernel::ALL {
        assert!(programs.iter().any(|program| program.kernel == *kernel), "{kernel:?}");
    }
    for program in programs {
        for workgroup in WORKGROUPS {
            let label = format!("{}+{workgroup}", program.label());
            let text = shader_source(program, workgroup);
            let module = naga::front::wgsl::parse_str(&text)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&text, &label)));
            let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&text, &label)));
            test(&label, program, &text, &module, &info);
        }
    }
}

#[test]
fn every_shader_parses_and_validates_and_is_written_to_target_shaders() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/shaders");
    std::fs::create_dir_all(&folder).unwrap();
    for_each_shader(|label, program, text, module, _| {
        std::fs::write(folder.join(format!("{label}.wgsl")), text).unwrap();
        let names: Vec<_> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, [program.entry_point()], "{label}");
    });
}

#[test]
fn no_shader_binds_more_storage_buffers_than_an_adapter_is_asked_for() {
    let mut most = 0;
    for_each_shader(|_, _, _, module, _| {
        let is_storage = |space: naga::AddressSpace| matches!(space, naga::AddressSpace::Storage { .. });
        let count = module.global_variables.iter().filter(|(_, variable)| is_storage(variable.space)).count();
        most = most.max(u32::try_from(count).unwrap());
    });
    assert_eq!(most, STORAGE_BUFFERS);
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
            .filter(|name| name != "new" && name != "read")
            .collect();
        names.sort();
        names
    };
    for stem in ["float", "code", "scale", "loss", "narrow", "observe", "widen"] {
        let ours = names("shaders/exact", &format!("{stem}.wgsl"));
        assert!(ours.len() >= 2, "{stem}: {ours:?}");
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
        ("tile_elems", offset_of!(Params, tile_elems)),
        ("tile_units", offset_of!(Params, tile_units)),
        ("run_factor", offset_of!(Params, run_factor)),
        ("run_shift", offset_of!(Params, run_shift)),
        ("first_offset", offset_of!(Params, first_offset)),
        ("counters", offset_of!(Params, counters)),
        ("given", offset_of!(Params, given)),
        ("with_loss", offset_of!(Params, with_loss)),
        ("row_slots", offset_of!(Params, row_slots)),
        ("row_elems", offset_of!(Params, row_elems)),
        ("row_pitch", offset_of!(Params, row_pitch)),
        ("row_units", offset_of!(Params, row_units)),
        ("first_row_slots", offset_of!(Params, first_row_slots)),
        ("first_row_elems", offset_of!(Params, first_row_elems)),
        ("first_row_runs", offset_of!(Params, first_row_runs)),
        ("first_at", offset_of!(Params, first_at)),
        ("second_row_at", offset_of!(Params, second_row_at)),
        ("kind", offset_of!(Params, kind)),
        ("qmin", offset_of!(Params, qmin)),
        ("qmax", offset_of!(Params, qmax)),
        ("divisor", offset_of!(Params, divisor)),
        ("divisor_factor", offset_of!(Params, divisor_factor)),
        ("magnitude_divisor", offset_of!(Params, magnitude_divisor)),
        ("magnitude_factor", offset_of!(Params, magnitude_factor)),
        ("zero_scale", offset_of!(Params, zero_scale)),
        ("sign_bit", offset_of!(Params, sign_bit)),
        ("has_zero_point", offset_of!(Params, has_zero_point)),
        ("saturate", offset_of!(Params, saturate)),
        ("averaging", offset_of!(Params, averaging)),
        ("x_at", offset_of!(Params, x_at)),
        ("codes_at", offset_of!(Params, codes_at)),
        ("out_at", offset_of!(Params, out_at)),
        ("scales_at", offset_of!(Params, scales_at)),
        ("zero_points_at", offset_of!(Params, zero_points_at)),
        ("ranges_at", offset_of!(Params, ranges_at)),
        ("recipes_at", offset_of!(Params, recipes_at)),
        ("losses_at", offset_of!(Params, losses_at)),
        ("errors_at", offset_of!(Params, errors_at)),
        ("rows", offset_of!(Params, rows)),
        ("first_workgroup", offset_of!(Params, first_workgroup)),
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
