//! What changed while nobody watched.

use crate::harness::{each, listing};
use picket_protocol::event::{Confidence, FileAction, FileMethod, GapReason};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use FileAction::{Attributes, Created, Deleted, Modified, Renamed};

#[test]
fn the_first_look_tells_nothing_and_the_next_start_tells_what_changed_in_between() {
    each(|mut watched| {
        for name in ["kept", "written", "gone", "old", "mode"] {
            fs::write(watched.path(name), name).unwrap();
        }
        fs::create_dir_all(watched.path("d/e")).unwrap();
        fs::write(watched.path("d/e/f"), "x").unwrap();
        let before = listing(&watched.root);
        watched.start();
        watched.barrier();
        assert!(watched.events.iter().all(|event| event.path.contains("barrier")), "{:#?}", watched.brief());
        watched.stop();
        assert_eq!(watched.gaps, [], "there was nobody to watch before the first");
        watched.events.clear();
        let before: std::collections::BTreeSet<_> = before.into_iter().chain([watched.path("barrier-0")]).collect();

        fs::write(watched.path("written"), "something else").unwrap();
        fs::remove_file(watched.path("gone")).unwrap();
        fs::rename(watched.path("old"), watched.path("new")).unwrap();
        fs::set_permissions(watched.path("mode"), fs::Permissions::from_mode(0o611)).unwrap();
        fs::rename(watched.path("d/e"), watched.path("e")).unwrap();
        fs::write(watched.path("e/added"), "x").unwrap();
        watched.start();
        watched.settle(&before);
        let renamed = watched.expect(Renamed, "new");
        assert_eq!(renamed.path_from.as_deref(), watched.path("old").to_str());
        assert_eq!(watched.expect(Renamed, "e").path_from.as_deref(), watched.path("d/e").to_str());
        assert!(watched.expect(Modified, "written").sha256.is_some());
        watched.expect(Deleted, "gone");
        watched.expect(Attributes, "mode");
        watched.expect(Created, "e/added");
        assert_eq!(watched.events.len(), 6, "{:#?}", watched.brief());
        let inferred = |event: &picket_protocol::event::FileEvent| {
            (event.confidence, event.method) == (Confidence::Inferred, FileMethod::Rescan)
        };
        assert!(watched.events.iter().all(inferred));
        watched.stop();
        watched.events.clear();
        watched.start();
        watched.stop();
        assert_eq!(watched.brief(), Vec::<String>::new());
        // What came and went in between cannot be known: each start says so, once.
        let gaps: Vec<_> = watched.gaps.iter().map(|gap| (gap.reason, gap.source.as_str(), gap.count)).collect();
        assert_eq!(gaps, [(GapReason::Unwatched, "files", None); 2]);
    });
}

#[test]
fn a_change_whose_time_was_set_back_is_noticed_all_the_same() {
    each(|mut watched| {
        fs::write(watched.path("a"), "good").unwrap();
        watched.start();
        watched.stop();
        let modified = fs::metadata(watched.path("a")).unwrap().modified().unwrap();
        fs::write(watched.path("a"), "evil").unwrap();
        let file = fs::OpenOptions::new().write(true).open(watched.path("a")).unwrap();
        file.set_modified(modified).unwrap();
        drop(file);
        watched.start();
        let event = watched.expect(Attributes, "a");
        assert!(event.sha256.is_some());
    });
}

#[test]
fn what_is_not_asked_for_any_more_goes_without_a_word() {
    each(|mut watched| {
        fs::create_dir_all(watched.path("a")).unwrap();
        fs::create_dir_all(watched.path("b")).unwrap();
        fs::write(watched.path("a/x"), "x").unwrap();
        let path = |watched: &crate::harness::Watched, name: &str| {
            vec![picket_filewatch::WatchPath::new(&watched.path(name)).unwrap()]
        };
        watched.settings.paths = path(&watched, "a");
        watched.start();
        watched.stop();
        watched.settings.paths = path(&watched, "b");
        watched.start();
        watched.stop();
        assert_eq!(watched.brief(), Vec::<String>::new());
        watched.settings.paths = path(&watched, "a");
        watched.start();
        watched.stop();
        assert_eq!(watched.brief(), Vec::<String>::new());
    });
}

#[test]
fn a_damaged_baseline_is_a_gap_and_not_an_end() {
    each(|mut watched| {
        fs::write(watched.path("a"), "x").unwrap();
        watched.start();
        watched.stop();
        fs::write(watched.home.path().join("state/files.db"), vec![0x55; 20_000]).unwrap();
        watched.start();
        fs::write(watched.path("b"), "x").unwrap();
        watched.expect(Created, "b");
        watched.stop();
        assert_eq!(watched.gaps.len(), 1);
        assert_eq!(watched.gaps[0].reason, GapReason::Corruption);
    });
}
