//! What happens to folders and all in them.

use crate::harness::{each, listing};
use picket_protocol::event::{Confidence, FileAction, FileMethod};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use FileAction::{Attributes, Created, Deleted, Renamed};

#[test]
fn no_file_is_missed_in_folders_that_are_made_and_filled_at_once() {
    each(|mut watched| {
        watched.start();
        for turn in 0..60 {
            let deep = watched.path(&format!("{turn}/a/b/c/d"));
            fs::create_dir_all(&deep).unwrap();
            for name in 0..5 {
                fs::write(deep.join(format!("{name}")), "x").unwrap();
                fs::write(watched.path(&format!("{turn}/a/{name}")), "x").unwrap();
            }
        }
        watched.settle(&BTreeSet::new());
        let created: Vec<_> = watched.events.iter().filter(|e| e.action == Created).map(|e| e.path.clone()).collect();
        let once: BTreeSet<_> = created.iter().collect();
        assert_eq!(created.len(), once.len(), "something was told twice");
        if watched.is_fanotify() {
            let inferred: Vec<_> = watched.events.iter().filter(|e| e.method == FileMethod::Rescan).collect();
            assert!(inferred.is_empty(), "{inferred:#?}");
        }
    });
}

#[test]
fn a_renamed_folder_is_one_event_and_goes_on_being_watched() {
    each(|mut watched| {
        fs::create_dir_all(watched.path("a/b/c")).unwrap();
        fs::write(watched.path("a/b/c/f"), "x").unwrap();
        let before = listing(&watched.root);
        watched.start();
        fs::rename(watched.path("a/b"), watched.path("n")).unwrap();
        fs::write(watched.path("n/c/g"), "x").unwrap();
        watched.expect(Renamed, "n");
        let created = watched.expect(Created, "n/c/g");
        assert_eq!(created.confidence, Confidence::Observed);
        watched.settle(&before);
        assert_eq!(watched.events.iter().filter(|event| event.action == Renamed).count(), 1);
        assert!(watched.events.iter().all(|event| event.action != Deleted));
    });
}

#[test]
fn a_folder_that_comes_or_goes_by_a_rename_takes_its_files_along_in_words() {
    each(|mut watched| {
        let outside = watched.home.path().join("outside");
        fs::create_dir_all(outside.join("in/deep")).unwrap();
        fs::write(outside.join("in/deep/f"), "x").unwrap();
        fs::create_dir_all(watched.path("out/deep")).unwrap();
        fs::write(watched.path("out/deep/f"), "x").unwrap();
        let before = listing(&watched.root);
        watched.start();
        fs::rename(outside.join("in"), watched.path("in")).unwrap();
        watched.expect(Renamed, "in");
        watched.expect(Created, "in/deep/f");
        fs::rename(watched.path("out"), outside.join("out")).unwrap();
        watched.expect(Deleted, "out/deep/f");
        watched.expect(Deleted, "out");
        fs::write(outside.join("out/deep/g"), "x").unwrap();
        fs::write(watched.path("in/deep/g"), "x").unwrap();
        watched.expect(Created, "in/deep/g");
        watched.settle(&before);
        assert!(watched.events.iter().all(|event| !event.path.contains("outside")));
        assert!(watched.events.iter().all(|event| !event.path.ends_with("out/deep/g")));
    });
}

#[test]
fn trees_of_names_that_swap_end_as_they_are() {
    each(|mut watched| {
        for name in ["x", "y"] {
            fs::create_dir_all(watched.path(&format!("{name}/in-{name}"))).unwrap();
        }
        let before = listing(&watched.root);
        watched.start();
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        let (x, y) = (watched.path("x"), watched.path("y"));
        rustix::fs::renameat_with(rustix::fs::CWD, &x, rustix::fs::CWD, &y, flags).unwrap();
        fs::rename(watched.path("x/in-y"), watched.path("z")).unwrap();
        fs::rename(watched.path("y"), watched.path("z/y")).unwrap();
        fs::write(watched.path("z/y/in-x/f"), "x").unwrap();
        watched.barrier();
        watched.settle(&before);
    });
}

#[test]
fn a_tree_deeper_than_a_path_can_be_is_watched_to_its_ground() {
    each(|mut watched| {
        use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
        watched.start();
        let name = "d".repeat(200);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = openat(CWD, &watched.root, flags, Mode::empty()).unwrap();
        for _ in 0..30 {
            mkdirat(&folder, &name, Mode::RWXU).unwrap();
            folder = openat(&folder, &name, flags, Mode::empty()).unwrap();
        }
        drop(openat(&folder, "ground", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
        watched.wait("the file at the ground", |w| w.events.iter().any(|e| e.path.ends_with("/ground")));
        let event = watched.events.iter().find(|event| event.path.ends_with("/ground")).unwrap();
        assert!(event.path.len() > 6_000);
    });
}

#[test]
fn the_watched_folder_itself_may_go_and_come_again() {
    each(|mut watched| {
        fs::write(watched.path("a"), "x").unwrap();
        let before = listing(&watched.root);
        watched.start();
        fs::remove_dir_all(&watched.root).unwrap();
        watched.expect(Deleted, "a");
        watched.expect(Deleted, "");
        let blind = picket_protocol::SightLevel::Blind;
        watched.wait("the sight", |watched| watched.watcher.as_ref().unwrap().sight().level == blind);
        fs::create_dir(&watched.root).unwrap();
        fs::write(watched.path("b"), "x").unwrap();
        watched.expect(Created, "");
        watched.expect(Created, "b");
        fs::create_dir(watched.path("d")).unwrap();
        fs::write(watched.path("d/c"), "x").unwrap();
        watched.expect(Created, "d/c");
        let is_below = |path: &std::path::PathBuf| path != &watched.root;
        let told = crate::harness::fold(&before, &watched.events).into_iter().filter(is_below).collect::<BTreeSet<_>>();
        assert_eq!(told, listing(&watched.root));
    });
}

#[test]
fn a_path_that_is_not_there_is_taken_up_when_it_appears() {
    each(|mut watched| {
        let later = watched.path("not/yet");
        watched.settings.paths = vec![picket_filewatch::WatchPath::new(&later).unwrap()];
        watched.start();
        let sight = watched.watcher.as_ref().unwrap().sight();
        assert!(sight.detail.contains("not/yet"), "{sight:?}");
        fs::create_dir_all(&later).unwrap();
        fs::write(later.join("f"), "x").unwrap();
        watched.expect(Created, "not/yet/f");
        fs::write(later.join("g"), "x").unwrap();
        watched.expect(Created, "not/yet/g");
        watched.wait("the sight", |watched| !watched.watcher.as_ref().unwrap().sight().detail.contains("not/yet"));
    });
}

#[test]
fn folders_below_are_left_alone_when_only_the_first_is_asked_for() {
    each(|mut watched| {
        watched.settings.recursive = false;
        fs::create_dir(watched.path("d")).unwrap();
        watched.start();
        fs::write(watched.path("d/x"), "x").unwrap();
        fs::create_dir(watched.path("e")).unwrap();
        fs::write(watched.path("e/x"), "x").unwrap();
        watched.expect(Created, "e");
        watched.barrier();
        assert!(watched.events.iter().all(|event| !event.path.ends_with("/x")), "{:#?}", watched.brief());
        assert!(!watched.actions("d").contains(&Attributes));
    });
}

/// Runs a command; whether it succeeded.
fn ran(args: &[&str]) -> bool {
    std::process::Command::new(args[0]).args(&args[1..]).output().is_ok_and(|output| output.status.success())
}

fn mount_tmpfs(path: &Path) -> bool {
    ran(&["mount", "-t", "tmpfs", "tmpfs", path.to_str().unwrap()])
}

fn may_mount(path: &Path) -> bool {
    let may = rustix::process::geteuid().is_root() && mount_tmpfs(path);
    if !may {
        println!("not run: this place lets us mount nothing");
    }
    may
}

#[test]
fn a_file_system_mounted_below_is_entered() {
    each(|mut watched| {
        let mount = watched.path("mnt");
        fs::create_dir(&mount).unwrap();
        if !may_mount(&mount) {
            return;
        }
        watched.start();
        fs::create_dir(watched.path("mnt/d")).unwrap();
        fs::write(watched.path("mnt/d/x"), "x").unwrap();
        watched.expect(Created, "mnt/d/x");
        // Nothing of ours keeps it from being unmounted, once we have been idle.
        watched.wait("unmounting", |_| ran(&["umount", mount.to_str().unwrap()]));
        watched.expect(Deleted, "mnt/d/x");
        assert!(mount_tmpfs(&mount));
        fs::write(watched.path("mnt/y"), "x").unwrap();
        watched.expect(Created, "mnt/y");
        watched.stop();
        assert!(ran(&["umount", mount.to_str().unwrap()]));
    });
}

#[test]
fn what_is_unmounted_and_mounted_again_at_once_is_seen_again() {
    // The same place, device and id of the mount, before anybody looks: below the watched path, and the path itself.
    for place in ["mnt", ""] {
        each(|mut watched| {
            let mount = watched.path(place);
            fs::create_dir_all(&mount).unwrap();
            if !may_mount(&mount) {
                return;
            }
            watched.start();
            let file = |name: &str| Path::new(place).join(name).to_str().unwrap().to_owned();
            fs::write(watched.path(&file("x")), "x").unwrap();
            watched.expect(Created, &file("x"));
            watched.wait("unmounting", |_| ran(&["umount", mount.to_str().unwrap()]));
            assert!(mount_tmpfs(&mount));
            fs::write(watched.path(&file("y")), "x").unwrap();
            watched.expect(Created, &file("y"));
            watched.expect(Deleted, &file("x"));
            // And from then on without being looked for, once the look is over.
            let told = (0..20).any(|turn| {
                let name = file(&format!("z{turn}"));
                fs::write(watched.path(&name), "x").unwrap();
                watched.expect(Created, &name).method != FileMethod::Rescan
            });
            assert!(told, "{:#?}", watched.brief());
            watched.stop();
            assert!(ran(&["umount", mount.to_str().unwrap()]));
        });
    }
}
