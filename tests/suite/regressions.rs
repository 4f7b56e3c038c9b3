//! What a fuzzer once broke, run again over the very functions that it ran.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target);
    fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_a_fuzzer_once_broke_is_not_broken_again() {
    for (name, run) in targets::ALL {
        for path in inputs("regressions", name).into_iter().chain(inputs("seeds", name)) {
            eprintln!("{}", path.display());
            run(&fs::read(path).unwrap());
        }
    }
}

#[test]
fn an_honest_input_gets_to_the_end_of_each_fuzz_target() {
    for (name, run) in targets::ALL {
        let is_honest = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("honest");
        let honest: Vec<PathBuf> = inputs("seeds", name).into_iter().filter(is_honest).collect();
        assert!(!honest.is_empty(), "{name} has no honest seed");
        for path in honest {
            assert!(run(&fs::read(&path).unwrap()), "{} is not understood", path.display());
        }
    }
}

#[test]
fn every_fuzz_target_is_replayed_and_every_folder_belongs_to_one() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |folder: &str| {
        let mut names: Vec<String> = fs::read_dir(fuzz.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|name| !["published", "README"].contains(&name.as_str()))
            .collect();
        names.sort();
        names
    };
    let known: Vec<&str> = targets::ALL.map(|(name, _)| name).to_vec();
    assert_eq!(names("fuzz_targets"), known);
    assert_eq!(names("seeds"), known);
    assert!(names("regressions").iter().all(|name| known.contains(&name.as_str())));
}
