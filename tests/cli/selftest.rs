//! The self-test of an adapter. That it finds faults is tested where faults can be planted, in the library.

use super::Folder;
use wgpu_quant::Scheme;
use wgpu_quant::gpu::Kernel;

/// Whether there is an adapter; under `CI=true` there must be one.
pub(crate) fn has_adapter(folder: &Folder) -> bool {
    let listed = folder.run("devices --json").expect(0).json();
    let found = !listed["devices"].as_array().unwrap().is_empty();
    let must_be = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(found || !must_be, "no adapter");
    found
}

#[test]
fn an_adapter_is_tested_with_every_kernel_and_counted_per_scheme() {
    let folder = Folder::new();
    if !has_adapter(&folder) {
        assert!(folder.run("selftest").expect(1).stderr.contains("no adapter"));
        return;
    }
    let report = folder.run("selftest --device 0 --scheme int8-absmax --json").expect(0).json();
    let [device] = &report["devices"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&device["exact"], &device["index"]), (&true.into(), &0.into()));
    assert!(device["seconds"].as_f64().unwrap() > 0.0 && device["error"].is_null());
    assert_eq!(device["differences"].as_array().unwrap().len(), 0);
    let kernels = device["kernels"].as_array().unwrap();
    assert_eq!(kernels.len(), Kernel::ALL.len());
    for row in kernels {
        assert_eq!((&row["scheme"], &row["differing_words"]), (&Scheme::INT8_ABSMAX.name().into(), &0.into()));
        // Of clearing only counts tell.
        let least = if row["kernel"] == "clear" { 6 } else { 2000 };
        assert!(row["words"].as_u64().unwrap() >= least && row["words"].as_u64() >= row["cases"].as_u64(), "{row}");
    }
    let sum = kernels.iter().map(|row| row["words"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(device["words"], sum);
}

#[test]
fn only_adapters_can_be_tested() {
    let folder = Folder::new();
    folder.run("selftest --device cpu").expect_error(&["CPU path", "adapters are compared with"]);
    // Looking for adapters, a driver may say something too.
    let error = folder.run("selftest --device 1000").expect(1).stderr;
    assert!(error.contains("error: no adapter is number 1000"), "{error}");
    folder.run("selftest --scheme int9").expect(2);
}
