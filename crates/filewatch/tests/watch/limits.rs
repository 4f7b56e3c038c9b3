//! What happens at the limits: the kernel's queue, the number of watches, rights.

use crate::harness::{PATIENCE, Watched, each, interval, listing};
use picket_filewatch::Privileged;
use picket_protocol::SightLevel;
use picket_protocol::event::{FileAction, GapReason};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::sync_channel;

#[test]
fn a_queue_that_ran_over_is_a_gap_and_what_was_lost_is_found_again() {
    each(|mut watched| {
        // The queues between sink and kernel hold some 64 000 notices, the kernel's 16 384 by default.
        const FILES: usize = 60_000;
        const FOLDERS: usize = 60;
        for folder in 0..FOLDERS {
            fs::create_dir(watched.path(&format!("{folder}"))).unwrap();
        }
        let before = listing(&watched.root);
        let (release, held) = sync_channel::<()>(0);
        let held = std::sync::Mutex::new(held);
        watched.settings.hash_max_size = picket_config::ByteSize(0);
        watched.start_with(move |_| {
            // The first event waits until the sender is gone; later ones find it so.
            let _ = held.lock().unwrap().recv_timeout(PATIENCE);
        });
        watched.wait("the first look", |watched| watched.watcher.as_ref().unwrap().counters().rescans > 0);
        fs::write(watched.path("first"), "x").unwrap();
        for folder in 0..FOLDERS {
            for file in 0..FILES / FOLDERS {
                File::create(watched.path(&format!("{folder}/{file}"))).unwrap();
            }
        }
        fs::remove_dir_all(watched.path("7")).unwrap();
        drop(release);
        watched.wait("the gap", |watched| !watched.gaps.is_empty());
        watched.settle(&before);
        assert!(watched.watcher.as_ref().unwrap().counters().overflows > 0);
        assert!(watched.gaps.iter().all(|gap| gap.reason == GapReason::KernelOverflow && gap.count.is_none()));
    });
}

#[test]
fn folders_beyond_the_watches_are_compared_from_time_to_time_and_the_sight_says_so() {
    let mut watched = Watched::new(Privileged::Never);
    watched.settings.max_watches = 2;
    watched.settings.rescan_interval = interval("1s");
    for name in ["a", "b", "c"] {
        fs::create_dir(watched.path(name)).unwrap();
    }
    watched.start();
    watched.wait("the sight", |watched| watched.watcher.as_ref().unwrap().counters().unwatched_dirs == 2);
    let sight = watched.watcher.as_ref().unwrap().sight();
    assert_eq!(sight.level, SightLevel::Reduced);
    assert!(sight.detail.contains("2 folders") && sight.detail.contains("max_user_watches"), "{sight:?}");
    for name in ["a", "b", "c"] {
        fs::write(watched.path(name).join("f"), "x").unwrap();
    }
    watched.settle(&["a", "b", "c"].map(|name| watched.path(name)).into());
    // A watch that comes free is used.
    for name in ["a", "b", "c"] {
        fs::remove_dir_all(watched.path(name)).unwrap();
    }
    fs::create_dir(watched.path("d")).unwrap();
    watched.wait("the sight", |watched| watched.watcher.as_ref().unwrap().counters().unwatched_dirs == 0);
}

#[test]
fn our_own_state_is_never_watched() {
    each(|mut watched| {
        watched.settings.paths = vec![picket_filewatch::WatchPath::new(watched.home.path()).unwrap()];
        watched.start();
        fs::write(watched.path("a"), "x").unwrap();
        watched.expect(FileAction::Modified, "a");
        watched.barrier();
        watched.stop();
        assert!(watched.events.iter().all(|event| !event.path.contains("state")), "{:#?}", watched.brief());
    });
}

#[test]
fn nothing_is_watched_where_nothing_was_asked_for() {
    let mut watched = Watched::new(Privileged::Auto);
    watched.settings.enabled = false;
    watched.start_with(|_| {});
    assert_eq!(watched.watcher.as_ref().unwrap().sight().level, SightLevel::Off);
    watched.settings.enabled = true;
    watched.settings.paths.clear();
    watched.start_with(|_| {});
    assert_eq!(watched.watcher.as_ref().unwrap().sight().level, SightLevel::Off);
}

#[test]
fn a_folder_that_may_not_be_read_is_said_to_be_so() {
    each(|mut watched| {
        fs::create_dir(watched.path("closed")).unwrap();
        fs::set_permissions(watched.path("closed"), fs::Permissions::from_mode(0o0)).unwrap();
        watched.start();
        let sight = watched.watcher.as_ref().unwrap().sight();
        if rustix::process::geteuid().is_root() {
            println!("only half of this can be shown: root may read every folder");
            assert!(!sight.detail.contains("may not be read"));
        } else {
            assert!(sight.detail.contains("1 folders may not be read"), "{sight:?}");
        }
        fs::write(watched.path("open"), "x").unwrap();
        watched.expect(FileAction::Created, "open");
    });
}

#[test]
fn a_full_disk_under_the_baseline_is_a_gap_and_not_an_end() {
    each(|mut watched| {
        let state = watched.home.path().join("state");
        let run =
            |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).status().is_ok_and(|s| s.success());
        if !run(&["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", state.to_str().unwrap()]) {
            println!("not run: it needs the right to mount a small file system");
            return;
        }
        let before = listing(&watched.root);
        watched.start();
        for file in 0..4_000 {
            File::create(watched.path(&format!("a-file-with-a-rather-long-name-{file}"))).unwrap();
        }
        watched.wait("the gap", |watched| watched.gaps.iter().any(|gap| gap.reason == GapReason::DiskFull));
        let blind = SightLevel::Blind;
        watched.wait("blindness", |watched| watched.watcher.as_ref().unwrap().sight().level == blind);
        fs::write(watched.path("while-blind"), "x").unwrap();
        assert!(run(&["mount", "-o", "remount,size=40m", state.to_str().unwrap()]));
        watched.wait("the sight", |watched| watched.watcher.as_ref().unwrap().sight().level != blind);
        watched.settle(&before);
        watched.stop();
        assert!(watched.gaps.iter().any(|gap| gap.count.is_some()), "{:?}", watched.gaps);
        assert!(run(&["umount", state.to_str().unwrap()]));
    });
}
