//! What happens to one file, told.

use crate::harness::{Watched, each, patterns};
use picket_protocol::event::{Confidence, FileAction, FileKind, FileMethod};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use FileAction::{Attributes, Created, Deleted, Modified, Renamed};

#[test]
fn a_file_is_told_when_it_comes_when_it_was_written_and_when_it_goes() {
    each(|mut watched| {
        watched.start();
        fs::write(watched.path("a"), "abc").unwrap();
        let created = watched.expect(Created, "a");
        assert_eq!((created.kind, created.confidence), (FileKind::File, Confidence::Observed));
        let modified = watched.expect(Modified, "a");
        let stat = fs::metadata(watched.path("a")).unwrap();
        let meta = modified.meta.unwrap();
        assert_eq!((meta.size, meta.inode, meta.uid, meta.mode), (3, stat.ino(), stat.uid(), stat.mode()));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(modified.sha256.as_deref(), Some(abc));
        fs::remove_file(watched.path("a")).unwrap();
        let deleted = watched.expect(Deleted, "a");
        assert_eq!((deleted.kind, deleted.meta), (FileKind::File, None));
        watched.barrier();
        assert_eq!(watched.actions("a"), [Created, Modified, Deleted]);
        let method = if watched.is_fanotify() { FileMethod::Fanotify } else { FileMethod::Inotify };
        assert!(watched.events.iter().all(|event| event.method == method), "{:#?}", watched.brief());
    });
}

#[test]
fn who_did_it_is_told_where_the_kernel_tells() {
    each(|mut watched| {
        watched.start();
        fs::write(watched.path("a"), "abc").unwrap();
        let created = watched.expect(Created, "a");
        let modified = watched.expect(Modified, "a");
        if watched.is_fanotify() {
            let actor = created.actor.unwrap();
            assert_eq!(actor.pid, std::process::id());
            assert!(actor.exe.unwrap().contains("watch"));
            assert_eq!(actor.uid, Some(rustix::process::geteuid().as_raw()));
            assert_eq!(actor.user.as_deref(), Some("root"));
            assert_eq!(modified.actor.unwrap().pid, std::process::id());
        } else {
            assert_eq!(created.actor, None);
        }
    });
}

#[test]
fn many_writes_are_one_change_and_a_writer_that_keeps_the_file_open_does_not_hide_it() {
    each(|mut watched| {
        watched.start();
        for turn in 0..20 {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(watched.path("log"))
                .unwrap()
                .write_all(&[turn; 10])
                .unwrap();
        }
        watched.expect(Modified, "log");
        watched.barrier();
        assert!(watched.actions("log").len() <= 3, "{:?}", watched.brief());
        let mut open = File::create(watched.path("open")).unwrap();
        open.write_all(b"still open").unwrap();
        let event = watched.expect(Modified, "open");
        assert_eq!(event.meta.unwrap().size, 10);
        drop(open);
    });
}

#[test]
fn a_rename_has_both_names_and_one_from_outside_has_none_before() {
    each(|mut watched| {
        let outside = watched.home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(watched.path("a"), "a").unwrap();
        fs::write(outside.join("x"), "x").unwrap();
        watched.start();
        fs::rename(watched.path("a"), watched.path("b")).unwrap();
        let renamed = watched.expect(Renamed, "b");
        assert_eq!(renamed.path_from.as_deref(), watched.path("a").to_str());
        fs::rename(outside.join("x"), watched.path("x")).unwrap();
        let came = watched.expect(Renamed, "x");
        assert_eq!(came.path_from, None);
        assert!(came.sha256.is_some());
        fs::rename(watched.path("b"), outside.join("b")).unwrap();
        watched.expect(Deleted, "b");
        watched.barrier();
        assert_eq!((watched.actions("a"), watched.actions("b")), (vec![], vec![Renamed, Deleted]));
        assert_eq!(watched.actions("x"), [Renamed]);
    });
}

#[test]
fn a_change_of_mode_owner_or_extended_attributes_is_told_as_such() {
    each(|mut watched| {
        fs::write(watched.path("a"), "a").unwrap();
        fs::create_dir(watched.path("d")).unwrap();
        watched.start();
        fs::set_permissions(watched.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
        let event = watched.expect(Attributes, "a");
        assert_eq!(event.meta.unwrap().mode & 0o777, 0o600);
        fs::set_permissions(watched.path("d"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(watched.expect(Attributes, "d").kind, FileKind::Directory);
        watched.barrier();
        watched.events.clear();
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(watched.path("a"), "user.test", b"1", flags).is_ok() {
            watched.expect(Attributes, "a");
        } else {
            println!("no extended attributes on this file system");
        }
        watched.barrier();
        watched.events.clear();
        if rustix::process::geteuid().is_root() {
            chown(watched.path("a"), Some(12_345), None).unwrap();
            assert_eq!(watched.expect(Attributes, "a").meta.unwrap().uid, 12_345);
        } else {
            println!("owners are not changed: that needs root");
        }
        assert!(!watched.actions("a").contains(&Modified));
    });
}

#[test]
fn reading_a_file_or_opening_it_for_writing_without_a_write_tells_nothing() {
    each(|mut watched| {
        fs::write(watched.path("a"), "a").unwrap();
        watched.start();
        fs::read(watched.path("a")).unwrap();
        fs::read_dir(&watched.root).unwrap().count();
        drop(OpenOptions::new().write(true).open(watched.path("a")).unwrap());
        watched.barrier();
        watched.barrier();
        assert_eq!(watched.actions("a"), []);
    });
}

#[test]
fn an_editor_that_replaces_a_file_by_a_rename_is_told_with_the_new_content() {
    each(|mut watched| {
        fs::write(watched.path("conf"), "old").unwrap();
        watched.start();
        fs::write(watched.path("conf.tmp"), "abc").unwrap();
        fs::rename(watched.path("conf.tmp"), watched.path("conf")).unwrap();
        let renamed = watched.expect(Renamed, "conf");
        assert_eq!(renamed.path_from.as_deref(), watched.path("conf.tmp").to_str());
        let modified = watched.expect(Modified, "conf");
        assert!(modified.sha256.unwrap().starts_with("ba7816bf"));
        watched.barrier();
        assert_eq!(watched.actions("conf"), [Renamed, Modified]);
    });
}

#[test]
fn links_pipes_and_names_that_are_no_text_are_files_too_and_nothing_is_followed() {
    each(|mut watched| {
        let outside = watched.home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        watched.start();
        symlink(&outside, watched.path("link")).unwrap();
        assert_eq!(watched.expect(Created, "link").kind, FileKind::Symlink);
        fs::write(outside.join("secret"), "x").unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, watched.path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(watched.expect(Created, "pipe").kind, FileKind::Other);
        let name = OsStr::from_bytes(b"na\xffme");
        fs::write(watched.root.join(name), "x").unwrap();
        let whole = watched.root.join(name);
        watched.wait("the name that is no text", |watched| watched.events.iter().any(|e| e.path_base64.is_some()));
        let event = watched.events.iter().find(|event| event.path_base64.is_some()).unwrap();
        let expected = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, whole.as_os_str().as_bytes());
        assert_eq!(event.path_base64.as_deref(), Some(&*expected));
        assert!(event.path.ends_with("na\u{fffd}me"));
        fs::write(watched.path("one"), "x").unwrap();
        fs::hard_link(watched.path("one"), watched.path("two")).unwrap();
        watched.expect(Created, "two");
        watched.barrier();
        assert!(watched.events.iter().all(|event| !event.path.contains("secret")));
        assert!(!watched.actions("two").contains(&Renamed));
    });
}

#[test]
fn what_is_left_out_is_not_told_and_not_entered() {
    each(|mut watched| {
        watched.settings.exclude = patterns(&["*.tmp", "**/cache"]);
        fs::create_dir(watched.path("cache")).unwrap();
        watched.start();
        fs::write(watched.path("a.tmp"), "x").unwrap();
        fs::write(watched.path("cache/x"), "x").unwrap();
        fs::create_dir_all(watched.path("d/cache/deep")).unwrap();
        fs::write(watched.path("d/cache/deep/x"), "x").unwrap();
        fs::rename(watched.path("a.tmp"), watched.path("a")).unwrap();
        let came = watched.expect(Renamed, "a");
        assert_eq!(came.path_from.as_deref(), watched.path("a.tmp").to_str());
        fs::rename(watched.path("a"), watched.path("b.tmp")).unwrap();
        watched.expect(Deleted, "a");
        watched.barrier();
        let told = |part: &str| watched.events.iter().any(|event| event.path.contains(part));
        assert!(!told("w/a.tmp") && !told("b.tmp") && !told("cache"), "{:#?}", watched.brief());
    });
}

#[test]
fn only_what_is_asked_for_is_told_though_it_lies_deep() {
    each(|mut watched| {
        watched.settings.include = patterns(&["*.conf"]);
        watched.start();
        fs::create_dir_all(watched.path("d/e")).unwrap();
        fs::write(watched.path("d/e/a.txt"), "x").unwrap();
        fs::write(watched.path("d/e/a.conf"), "x").unwrap();
        watched.expect(Created, "d/e/a.conf");
        watched.barrier_named("last.conf");
        assert!(watched.events.iter().all(|event| event.path.contains(".conf")), "{:#?}", watched.brief());
    });
}

#[test]
fn a_single_file_is_watched_though_it_is_replaced() {
    each(|mut watched| {
        let file = watched.path("passwd");
        fs::write(&file, "old").unwrap();
        watched.settings.paths = vec![picket_filewatch::WatchPath::new(&file).unwrap()];
        watched.start();
        fs::write(&file, "new").unwrap();
        watched.expect(Modified, "passwd");
        watched.events.clear();
        fs::write(watched.path("other"), "newer").unwrap();
        fs::rename(watched.path("other"), &file).unwrap();
        watched.expect(Modified, "passwd");
        fs::write(&file, "newest").unwrap();
        let is_last = |watched: &Watched| {
            watched.events.iter().any(|event| event.meta.as_ref().is_some_and(|meta| meta.size == 6))
        };
        watched.wait("the file that took its place", is_last);
        fs::remove_file(&file).unwrap();
        watched.expect(Deleted, "passwd");
        assert!(watched.events.iter().all(|event| event.path.ends_with("passwd")));
    });
}
