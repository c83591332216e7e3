//! The PTX in the repository belongs to the sources beside it: no compiler needed.

use std::path::Path;

use sha2::{Digest, Sha256};

#[test]
fn every_source_and_ptx_file_has_the_hash_of_the_manifest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = include_str!("../ptx/MANIFEST");
    let listed: Vec<(&str, &str)> = manifest
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_once(' '))
        .collect();
    for (want, file) in &listed {
        let digest = Sha256::digest(std::fs::read(root.join(file)).unwrap());
        let found: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            found, *want,
            "{file} changed: run 'cargo xtask kernels' and commit the result"
        );
    }
    for folder in ["cuda", "ptx"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = listed.iter().any(|(_, f)| *f == format!("{folder}/{name}"));
            assert!(
                known || ["MANIFEST", "RESOURCES"].contains(&name.as_str()),
                "{folder}/{name} is not in the manifest"
            );
        }
    }
}

#[test]
fn no_kernel_spills_and_none_outgrows_its_launch() {
    for line in include_str!("../ptx/RESOURCES")
        .lines()
        .filter(|l| !l.starts_with('#'))
    {
        let words: Vec<&str> = line.split(' ').collect();
        let (registers, spills): (u32, u32) =
            (words[2].parse().unwrap(), words[4].parse().unwrap());
        assert_eq!(spills, 0, "{line}");
        // 65,536 registers a multiprocessor, for the threads that are resident at once.
        let resident = match words[1] {
            wgmma if wgmma.ends_with("_wgmma") => 384,
            gqa if gqa.starts_with("parplan_gqa_") => 2 * 128,
            mla if mla.starts_with("parplan_mla_") => 256,
            grouped if grouped.starts_with("parplan_grouped_") => 4 * 128,
            // 512 threads a block, two blocks resident.
            _ => 2 * 512,
        };
        assert!(registers * resident <= 65536, "{line}");
    }
}
