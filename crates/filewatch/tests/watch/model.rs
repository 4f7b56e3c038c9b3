//! Whatever is done to files, the events applied to the first listing give the last.

use crate::harness::{Watched, fold, listing};
use picket_filewatch::Privileged;
use proptest::prelude::*;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

#[derive(Debug, Clone)]
enum Step {
    Write(String),
    MakeFolder(String),
    MakeFolders(String),
    RemoveFile(String),
    RemoveTree(String),
    Rename(String, String),
    Exchange(String, String),
    Link(String, String),
    Mode(String),
    Out(String),
    In(String),
    Stop,
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => path().prop_map(Step::Write),
        2 => path().prop_map(Step::MakeFolder),
        3 => path().prop_map(Step::MakeFolders),
        2 => path().prop_map(Step::RemoveFile),
        1 => path().prop_map(Step::RemoveTree),
        5 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (path(), path()).prop_map(|(from, to)| Step::Exchange(from, to)),
        1 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => path().prop_map(Step::Mode),
        1 => path().prop_map(Step::Out),
        1 => path().prop_map(Step::In),
        1 => Just(Step::Stop),
    ]
}

/// Does a step; one that cannot be done is none.
fn perform(watched: &mut Watched, step: &Step) {
    let outside = watched.home.path().join("outside");
    let at = |path: &String| watched.root.join(path);
    let done = match step {
        Step::Write(path) => {
            OpenOptions::new().create(true).append(true).open(at(path)).and_then(|mut file| file.write_all(b"x"))
        }
        Step::MakeFolder(path) => fs::create_dir(at(path)),
        Step::MakeFolders(path) => fs::create_dir_all(at(path)),
        Step::RemoveFile(path) => fs::remove_file(at(path)),
        Step::RemoveTree(path) => fs::remove_dir_all(at(path)),
        Step::Rename(from, to) => fs::rename(at(from), at(to)),
        Step::Exchange(one, other) => {
            let cwd = rustix::fs::CWD;
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(cwd, at(one), cwd, at(other), flags).map_err(Into::into)
        }
        Step::Link(from, to) => fs::hard_link(at(from), at(to)),
        Step::Mode(path) => {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(at(path), fs::Permissions::from_mode(0o750))
        }
        Step::Out(path) => fs::rename(at(path), outside),
        Step::In(path) => fs::rename(outside, at(path)),
        Step::Stop => {
            watched.stop();
            watched.start();
            Ok(())
        }
    };
    drop(done);
}

fn run(home: &Path, privileged: Privileged, first: &[Step], then: &[Step]) {
    let mut watched = Watched::on(tempfile::tempdir_in(home).unwrap(), privileged);
    for step in first.iter().filter(|step| !matches!(step, Step::Stop)) {
        perform(&mut watched, step);
    }
    let before = listing(&watched.root);
    watched.start();
    for step in then {
        perform(&mut watched, step);
    }
    // All that was done is applied once this is told, and looked at again once it settled.
    watched.barrier();
    watched.settle(&before);
    // What was still on its way must not undo it.
    watched.stop();
    assert_eq!(fold(&before, &watched.events), listing(&watched.root), "{:#?}", watched.brief());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_events_by_inotify_lead_from_the_first_listing_to_the_last(
        first in prop::collection::vec(step(), 0..15), then in prop::collection::vec(step(), 1..40)
    ) {
        run(Path::new("/tmp"), Privileged::Never, &first, &then);
    }

    #[test]
    fn the_events_by_fanotify_lead_from_the_first_listing_to_the_last(
        first in prop::collection::vec(step(), 0..15), then in prop::collection::vec(step(), 1..40)
    ) {
        run(Path::new("/tmp"), Privileged::Auto, &first, &then);
    }

    #[test]
    fn so_they_do_on_a_file_system_in_memory(
        first in prop::collection::vec(step(), 0..15), then in prop::collection::vec(step(), 1..40)
    ) {
        if Path::new("/dev/shm").is_dir() {
            run(Path::new("/dev/shm"), Privileged::Auto, &first, &then);
        } else {
            println!("not run: there is no /dev/shm");
        }
    }
}
