//! The benchmark's report. What it measures is not tested: that is the machine's.

use super::Folder;

#[test]
fn cases_are_measured_beside_a_copy_of_their_own_kind() {
    let folder = Folder::new();
    let command =
        "bench --device cpu --sizes 1 --rounds 3 --seconds 1 --only host --only file --case int8-absmax --json -";
    let report = folder.run(command).expect(0).json();
    assert!(report["device"].is_null() && report["wrong"].as_array().unwrap().is_empty());
    let [size] = &report["sizes"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&size["elems"], &size["shape"][1]), (&(1 << 20).into(), &4096.into()));
    let regions = size["regions"].as_array().unwrap();
    let names: Vec<_> = regions.iter().map(|region| region["region"].as_str().unwrap()).collect();
    assert_eq!(names, ["host", "file"]);
    for region in regions {
        let cases = region["cases"].as_array().unwrap();
        let yardstick = cases.iter().find(|case| case["by"] == "yardstick").unwrap();
        assert_eq!((&yardstick["case"], &yardstick["by_yardstick"]), (&region["yardstick"], &1.0.into()));
        for case in cases {
            assert_eq!(case["seconds"].as_array().unwrap().len(), 3, "{case}");
            assert!(case["median_seconds"].as_f64() >= case["best_seconds"].as_f64(), "{case}");
        }
    }
    let cases = regions[0]["cases"].as_array().unwrap().iter().filter(|case| case["by"] == "cpu");
    assert!(cases.clone().count() > 2);
    assert!(cases.clone().all(|case| case["case"].as_str().unwrap().contains("int8-absmax")));
}

#[test]
fn kernels_are_measured_beside_floats_and_by_two_clocks() {
    let folder = Folder::new();
    if !super::selftest::has_adapter(&folder) {
        return;
    }
    let command =
        "bench --device 0 --sizes 1 --rounds 3 --seconds 1 --only kernels --case dequantize --json report.json";
    let text = folder.run(command).expect(0).stdout;
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path("report.json")).unwrap()).unwrap();
    let is_software = report["software_adapter"].as_bool().unwrap();
    assert_eq!(is_software, report["device"]["type"] == "cpu");
    assert_eq!(is_software, text.contains("no figures of a GPU"));
    let cases = report["sizes"][0]["regions"][0]["cases"].as_array().unwrap();
    let ours =
        |case: &&serde_json::Value| case["by"] == "adapter" && case["case"] == "dequantize int8-absmax per tensor";
    let case = cases.iter().find(ours).unwrap();
    assert!(case["by_float"].as_f64().unwrap() > 0.0 && case["by_yardstick"].as_f64().unwrap() > 0.0);
    // An old report stays, unless it is to go.
    folder.run(command).expect(1);
    folder.run("bench --device 0 --sizes 0").expect(2);
}
