//! Archives as an attacker would write them: byte by byte, in every format.

mod forge;

use super::*;
use forge::*;
use proptest::prelude::*;
use std::path::PathBuf;
use tempfile::TempDir;

const FORMATS: [Format; 3] = [Format::TarXz, Format::TarZst, Format::Zip];
const ROOM: u64 = 100_000;

/// Unpacks into a new folder; what is there afterwards, or what is said. Nothing is ever written beside the folder, and no
/// more than allowed into it.
fn unpacked(bytes: &[u8], format: Format) -> Result<Vec<String>, String> {
    let dir = TempDir::new().unwrap();
    let (path, into) = (dir.path().join("archive"), dir.path().join("into"));
    picket_durable::write_atomic(&path, bytes, 0o600).unwrap();
    std::fs::create_dir(&into).unwrap();
    let result = unpack(&path, format, &into, ROOM);
    let mut beside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["archive", "into"], "something was written beside the folder");
    let found = found(&into);
    let written: u64 = found.iter().filter(|path| path.is_file()).map(|path| path.metadata().unwrap().len()).sum();
    assert!(written <= ROOM, "{written} bytes were written");
    let names = found.iter().map(|path| path.strip_prefix(&into).unwrap().display().to_string());
    result.map(|()| names.collect()).map_err(|error| told(&error))
}

/// The error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", told(source)))
}

fn found(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let inner: Vec<PathBuf> = paths.iter().filter(|path| path.is_dir()).flat_map(|path| found(path)).collect();
    assert!(paths.iter().all(|path| !path.is_symlink()), "there is a link");
    paths.extend(inner);
    paths.sort();
    paths
}

fn assert_refused(bytes: &[u8], format: Format, word: &str, what: &str) {
    let error = unpacked(bytes, format).expect_err(what);
    assert!(error.contains(word), "{what} in {format:?}: {error}");
}

#[test]
fn an_archive_of_cargo_dist_is_unpacked_without_its_folder() {
    for format in FORMATS {
        let whole = [folder("picket-x/"), file("picket-x/picket"), file("picket-x/doc/README.md")];
        assert_eq!(unpacked(&archive_of(&whole, format), format).unwrap(), ["doc", "doc/README.md", "picket"]);
        assert_eq!(unpacked(&archive_of(&[file("picket")], format), format).unwrap(), ["picket"]);
        let dotted = [folder("./"), file("./picket"), folder("./doc/"), folder("doc/")];
        assert_eq!(unpacked(&archive_of(&dotted, format), format).unwrap(), ["doc", "picket"]);
        let listed = list(std::io::Cursor::new(archive_of(&whole, format)), format, ROOM).unwrap();
        assert_eq!(listed, [("picket".to_owned(), 7), ("doc/README.md".to_owned(), 7)]);
    }
}

#[test]
fn archives_that_other_programs_made_are_unpacked() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let long = format!("picket-x/{}/{}.txt", "d".repeat(90), "n".repeat(90));
    for name in ["picket-x/picket", long.as_str()] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(7);
        builder.append_data(&mut header, name, &b"content"[..]).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    for format in [Format::TarXz, Format::TarZst] {
        assert_eq!(unpacked(&packed(&tar, format), format).unwrap().last().unwrap(), "picket");
    }
    let mut writer = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for method in [::zip::CompressionMethod::Stored, ::zip::CompressionMethod::Deflated] {
        let options = ::zip::write::SimpleFileOptions::default().compression_method(method).unix_permissions(0o755);
        writer.add_directory(format!("picket-x/{method:?}"), options).unwrap();
        let name = if method == ::zip::CompressionMethod::Stored { "picket-x/picket" } else { "picket-x/LICENSE" };
        writer.start_file(name, options).unwrap();
        writer.write_all(&[7; 5000]).unwrap();
    }
    let zip = writer.finish().unwrap().into_inner();
    assert_eq!(unpacked(&zip, Format::Zip).unwrap(), ["Deflated", "LICENSE", "Stored", "picket"]);
}

#[test]
fn only_the_executable_is_executable_whatever_the_archive_says() {
    use std::os::unix::fs::PermissionsExt;
    for format in FORMATS {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("archive");
        let bytes = archive_of(&[file("picket"), file("README.md")], format);
        picket_durable::write_atomic(&path, &bytes, 0o600).unwrap();
        unpack(&path, format, dir.path(), ROOM).unwrap();
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("picket"), mode("README.md")), (0o755, 0o644));
    }
}

#[test]
fn what_has_no_place_in_a_release_is_refused_in_every_format() {
    let away = "leaves its folder";
    let foreign = "not every system can have";
    let long = "too long";
    let clash = "a file where a folder is";
    let twice = "two files of one name";
    let other = "neither a file nor a folder";
    let deep = "d/".repeat(20) + "f";
    let attacks: Vec<(&str, Vec<Item>, &str)> = vec![
        ("a path above", vec![file("../evil")], away),
        ("a path above and down again", vec![file("a/../../evil")], away),
        ("a path above inside", vec![file("a/../b")], away),
        ("a folder above", vec![folder("../evil/")], away),
        ("an absolute path", vec![file("/etc/evil")], away),
        ("two slashes first", vec![file("//evil")], away),
        ("a path of Windows", vec![file("..\\evil")], foreign),
        ("a drive", vec![file("C:/evil")], foreign),
        ("a stream of NTFS", vec![file("picket:evil")], foreign),
        ("a name with a line break", vec![file("a\nb")], foreign),
        ("a name with an escape", vec![file("a\u{1b}[2J")], foreign),
        ("a name beyond ASCII", vec![file("pi\u{441}ket")], foreign),
        ("a name that is not UTF-8", vec![file([b'a', 0xff])], "not UTF-8"),
        ("a name that Windows shortens", vec![file("picket.")], foreign),
        ("a deep path", vec![file(deep)], long),
        ("a file without a name", vec![file("")], "a file without a name"),
        ("a file of dots", vec![file("./.")], "a file without a name"),
        ("a link", vec![item("l", What::Link, b"")], "a link"),
        ("a link in place of the executable", vec![item("x/picket", What::Link, b"/bin/sh")], "a link"),
        ("a device", vec![item("d", What::Device, b"")], other),
        ("a pipe", vec![item("p", What::Fifo, b"")], other),
        ("a folder with content", vec![item("f/", What::Folder, b"content")], "a folder with content"),
        ("one name twice", vec![file("a"), file("a")], twice),
        ("one name twice, by case", vec![file("a/README"), file("A/readme")], twice),
        ("one name twice, by dots", vec![file("a/b"), file("a/./b")], twice),
        ("one name twice, by slashes", vec![file("a/b"), file("a//b")], twice),
        ("the executable twice", vec![file("picket")], twice),
        ("a file in a file", vec![file("a"), file("a/b")], clash),
        ("a file in a file, by case", vec![file("A"), file("a/b")], clash),
        ("a file over a folder", vec![file("a/b"), file("a")], clash),
        ("a file over an empty folder", vec![folder("a/"), file("a")], clash),
        ("a folder over a file", vec![file("a"), folder("a/")], clash),
        ("more than was declared", vec![item("a", What::File, &[0; 100_000])], "more than the 100000 bytes"),
    ];
    for format in FORMATS {
        for (what, items, word) in &attacks {
            let whole: Vec<Item> = std::iter::once(file("picket")).chain(items.iter().cloned()).collect();
            // The length of a name in a header of tar.
            if !(format != Format::Zip && whole.iter().any(|item| item.name.len() > 100)) {
                assert_refused(&archive_of(&whole, format), format, word, what);
            }
        }
        assert_refused(&archive_of(&[file("README.md")], format), format, "no executable", "without an executable");
        assert_refused(&archive_of(&[folder("picket/")], format), format, "no executable", "a folder as executable");
        assert_refused(&archive_of(&[], format), format, "no executable", "nothing in it");
    }
    for format in [Format::TarXz, Format::TarZst] {
        let items = [file("picket"), item("h", What::HardLink, b"")];
        assert_refused(&archive_of(&items, format), format, "a link", "a hard link");
    }
}

#[test]
fn a_million_entries_are_left_after_the_first_thousand() {
    let headers =
        |count: u32| -> Vec<u8> { (0..count).flat_map(|at| header(format!("{at}").as_bytes(), b'0', 0)).collect() };
    // The names of the first thousand and one are different; nobody looks at the others.
    let mut million = headers(1_001);
    million.extend(headers(1_000).repeat(999));
    for (format, tar) in [(Format::TarXz, headers(5_000)), (Format::TarZst, million)] {
        assert_refused(&packed(&tar, format), format, "more than 1000 entries", "very many files");
        let tar = block(b"x", b'g', b"9 a=bcde\n").repeat(5_000);
        assert_refused(&packed(&tar, format), format, "more than 1000 entries", "headers of nothing");
    }
    let entries: Vec<Zipped> = (0..1_000_000).map(|at| zipped(&item(format!("{at}"), What::File, b""))).collect();
    assert_refused(&zip_from(&entries), Format::Zip, "more than 1000 entries", "a million files");
    // A directory of a million that says it is of one.
    let mut zip = zip_from(&entries);
    let end = zip.len() - 22;
    zip[end + 8..end + 12].copy_from_slice(&[1, 0, 1, 0]);
    assert_refused(&zip, Format::Zip, "not where it says", "a million that say one");
}

#[test]
fn a_bomb_is_broken_off_at_the_declared_size() {
    let zeros = vec![0; 32 << 20];
    let bomb = item("picket", What::File, &zeros);
    let too_large = "more than the 100000 bytes";
    let hidden = [tar_of(&[file("picket")]), zeros.clone()].concat();
    let extension = [block(b"x", b'x', &zeros), tar_of(&[file("picket")])].concat();
    for format in [Format::TarXz, Format::TarZst] {
        assert_refused(&packed(&tar_of(std::slice::from_ref(&bomb)), format), format, too_large, "a large file");
        assert_refused(&packed(&hidden, format), format, too_large, "a bomb after the end");
        assert_refused(&packed(&extension, format), format, "a header that is too long", "a bomb in a header");
    }
    // A gigabyte in some 40 KB, and a header that says so.
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&header(b"picket", b'0', 1 << 30)).unwrap();
    (0..32).for_each(|_| encoder.write_all(&zeros).unwrap());
    assert_refused(&encoder.finish().unwrap(), Format::TarZst, too_large, "a gigabyte");
    let honest = deflated(&bomb);
    assert_refused(&zip_from(std::slice::from_ref(&honest)), Format::Zip, too_large, "a large file");
    let lying = Zipped { length: 10, ..honest };
    assert_refused(&zip_from(&[lying]), Format::Zip, "longer than it says", "a large file that says it is small");
}

#[test]
fn a_stream_that_asks_for_too_much_memory_is_refused() {
    let tar = tar_of(&[file("picket")]);
    // The dictionary is said in the block's header (§3.1.5 of the format, §5.3.1 for its coding): 256 MiB is 32.
    let mut xz = xz(&tar);
    let at = xz.windows(2).position(|pair| pair == [0x21, 0x01]).unwrap() + 2;
    xz[at] = 32;
    let header = 12..12 + (usize::from(xz[12]) + 1) * 4 - 4;
    let crc = crc32fast::hash(&xz[header.clone()]).to_le_bytes();
    xz[header.end..header.end + 4].copy_from_slice(&crc);
    assert_refused(&xz, Format::TarXz, "memory", "a dictionary of 256 MiB");

    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(&tar).unwrap();
    assert_refused(&encoder.finish().unwrap(), Format::TarZst, "memory", "a window of 128 MiB");
}

#[test]
fn an_archive_that_is_cut_at_any_byte_is_refused() {
    for format in FORMATS {
        let bytes = archive_of(&[folder("x/"), file("x/picket"), file("x/README.md")], format);
        unpacked(&bytes, format).unwrap();
        for cut in 0..bytes.len() {
            assert!(unpacked(&bytes[..cut], format).is_err(), "{format:?} cut at {cut} of {}", bytes.len());
        }
    }
}

#[test]
fn long_names_of_both_kinds_are_read_and_what_would_change_a_file_is_refused() {
    let long = format!("picket-x/{}.txt", "n".repeat(200));
    let pax = block(b"PaxHeader/x", b'x', (record("mtime", "1.5") + &record("path", &long)).as_bytes());
    let gnu = block(b"././@LongLink", b'L', format!("{long}\0").as_bytes());
    for extension in [pax.clone(), gnu.clone()] {
        let tar = [extension, block(b"short", b'0', b"content"), tar_of(&[file("picket-x/picket")])].concat();
        let names = unpacked(&packed(&tar, Format::TarZst), Format::TarZst).unwrap();
        assert_eq!(names, [long.strip_prefix("picket-x/").unwrap(), "picket"]);
    }
    let pax_of = |key: &str, value: &str| block(b"PaxHeader/x", b'x', record(key, value).as_bytes());
    let attacks: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("a long name above", vec![block(b"L", b'L', b"../../evil\0"), block(b"a", b'0', b"")], "leaves its folder"),
        ("a pax name above", vec![pax_of("path", "../evil"), block(b"a", b'0', b"")], "leaves its folder"),
        ("two long names", vec![gnu.clone(), pax, block(b"a", b'0', b"")], "two long names"),
        ("a name for everything", vec![block(b"g", b'g', record("path", "evil").as_bytes())], "one name for all"),
        ("another length", vec![pax_of("size", "0"), block(b"a", b'0', b"content")], "two lengths"),
        ("a link by pax", vec![pax_of("linkpath", "/etc/passwd"), block(b"a", b'0', b"")], "a link"),
        ("a long link", vec![block(b"K", b'K', b"/etc/passwd\0")], "a link"),
        ("a sparse file of GNU", vec![block(b"s", b'S', b"")], "a sparse file"),
        ("a sparse file of pax", vec![pax_of("GNU.sparse.major", "1"), block(b"a", b'0', b"")], "a sparse file"),
        ("a huge name", vec![block(b"L", b'L', &vec![b'n'; 65 << 10])], "a header that is too long"),
        ("a huge record", vec![pax_of("comment", &"c".repeat(65 << 10))], "a header that is too long"),
        ("a record that is none", vec![block(b"x", b'x', b"99 path=x\n"), block(b"a", b'0', b"")], "damaged"),
        ("part of many", vec![block(b"m", b'M', b"")], "neither a file nor a folder"),
        ("a contiguous file", vec![block(b"c", b'7', b"")], "neither a file nor a folder"),
        ("an unknown kind", vec![block(b"z", b'Z', b"")], "neither a file nor a folder"),
    ];
    for format in [Format::TarXz, Format::TarZst] {
        for (what, blocks, word) in &attacks {
            assert_refused(&packed(&with_blocks(blocks), format), format, word, what);
        }
        // Nothing follows that the name would be of.
        let dangling = [tar_of(&[file("picket")])[..1024].to_vec(), gnu.clone(), vec![0; 1024]].concat();
        assert_refused(&packed(&dangling, format), format, "a name without a file", "a name at the end");
        let second = [tar_of(&[file("picket")]), tar_of(&[file("evil")])].concat();
        assert_refused(&packed(&second, format), format, "after its end", "a second archive");
        let mut wrong = with_blocks(&[]);
        wrong[0] ^= 1;
        assert_refused(&packed(&wrong, format), format, "checksum", "a header with a wrong checksum");
    }
}

#[test]
fn a_zip_that_two_programs_would_read_differently_is_refused() {
    let picket = || zipped(&file("picket"));
    let more = |entry: Zipped| zip_from(&[picket(), entry]);
    let other = || zipped(&file("other"));
    let differs = "not what the directory says";
    let mut attacks: Vec<(&str, Vec<u8>, &str)> = vec![
        ("another name", more(Zipped { local_name: b"evils".to_vec(), ..other() }), differs),
        ("another checksum in the header", more(Zipped { local_crc: 1, ..other() }), differs),
        ("a wrong checksum", more(Zipped { crc: 1, local_crc: 1, ..other() }), "another checksum"),
        ("an encrypted file", more(Zipped { flags: 1, ..other() }), "encrypted"),
        ("a masked file", more(Zipped { flags: 1 << 13, ..other() }), "unknown flags"),
        ("another method", more(Zipped { method: 12, ..other() }), "neither stored nor deflated"),
        ("zip64", more(Zipped { length: u32::MAX, compressed: u32::MAX, ..other() }), "zip64"),
        ("two lengths", more(Zipped { length: 3, ..other() }), "two lengths"),
        ("overlapping files", more(Zipped { shift: -37, ..other() }), differs),
        (
            "a file that covers the next",
            zip_from(&[Zipped { compressed: 60, length: 60, ..picket() }, other()]),
            "overlap",
        ),
        ("bytes of nobody", more(Zipped { more: b"hidden".to_vec(), ..other() }), "belong to no file"),
        ("bytes before", [b"#!/bin/sh\n".to_vec(), zip_from(&[picket()])].concat(), "not where it says"),
        ("bytes after", [zip_from(&[picket()]), b"x".to_vec()].concat(), "does not end where it ends"),
        ("a stored link", more(Zipped { attributes: 0o120_777 << 16, ..other() }), "a link"),
        ("a folder by its attributes", more(Zipped { attributes: 0o040_755 << 16, ..other() }), "neither a file nor"),
        ("a file by its attributes", more(Zipped { attributes: 0o100_644 << 16, ..zipped(&folder("f/")) }), "neither"),
        ("deflated garbage", more(Zipped { method: 8, ..other() }), "damaged"),
        ("one file twice", zip_from(&[picket(), Zipped { shift: -43, ..picket() }]), "two files of one name"),
    ];
    let short = deflated(&item("short", What::File, &[7; 1000]));
    attacks.push(("a file longer than it says", more(Zipped { length: 999, ..short.clone() }), "longer than it says"));
    attacks.push(("a file shorter than it says", more(Zipped { length: 1001, ..short }), "shorter than it says"));
    for (what, bytes, word) in &attacks {
        if *what == "one file twice" {
            // Two entries of the directory for the same bytes.
            assert!(unpacked(bytes, Format::Zip).is_err(), "{what}");
        } else {
            assert_refused(bytes, Format::Zip, word, what);
        }
    }
    // The directory's own claims, one after the other.
    let honest = zip_from(&[picket(), other()]);
    let end = honest.len() - 22;
    for (what, at, value) in [
        ("parts", 4, 1_u16),
        ("fewer here", 8, 1),
        ("fewer", 10, 1),
        ("a smaller directory", 12, 10),
        ("a directory elsewhere", 16, 10),
        ("a comment", 20, 1),
        ("zip64", 10, u16::MAX),
    ] {
        let mut bytes = honest.clone();
        bytes[end + at..end + at + 2].copy_from_slice(&value.to_le_bytes());
        assert!(unpacked(&bytes, Format::Zip).is_err(), "{what}");
    }
    unpacked(&honest, Format::Zip).unwrap();
}

#[test]
fn a_zip_whose_lengths_follow_its_files_is_read() {
    let item = file("picket");
    let entry = deflated(&item);
    let mut descriptor = b"PK\x07\x08".to_vec();
    put_long(&mut descriptor, &[entry.crc, entry.compressed, entry.length]);
    let bytes = zip_from(&[Zipped { flags: 8, more: descriptor, ..entry }]);
    assert_eq!(unpacked(&bytes, Format::Zip).unwrap(), ["picket"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A program that believes the directory, and this one, read the same.
    #[test]
    fn a_zip_that_is_taken_is_read_alike_by_another_reader(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), deflate in any::<bool>()
    ) {
        let items = [file("x/picket"), file("x/README.md")];
        let entries: Vec<Zipped> = items.iter().map(|item| if deflate { deflated(item) } else { zipped(item) }).collect();
        let mut bytes = zip_from(&entries);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(listed) = list(std::io::Cursor::new(&bytes), Format::Zip, ROOM)
            && unpacked(&bytes, Format::Zip).is_ok()
        {
            let archive = ::zip::ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
            prop_assert_eq!(archive.len(), listed.len());
        }
    }
}
