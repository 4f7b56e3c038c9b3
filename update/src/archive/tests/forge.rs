//! Archives written byte by byte, with any lie in them.

use super::super::Format;
use std::io::Write;

/// What an entry says it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    File,
    Folder,
    Link,
    HardLink,
    Device,
    Fifo,
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) name: Vec<u8>,
    pub(super) what: What,
    pub(super) content: Vec<u8>,
}

pub(super) fn item(name: impl AsRef<[u8]>, what: What, content: &[u8]) -> Item {
    Item { name: name.as_ref().to_vec(), what, content: content.to_vec() }
}

pub(super) fn file(name: impl AsRef<[u8]>) -> Item {
    item(name, What::File, b"content")
}

pub(super) fn folder(name: &str) -> Item {
    item(name, What::Folder, b"")
}

/// A header of tar, whatever the name is.
pub(super) fn header(name: &[u8], flag: u8, length: u64) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkflag = [flag];
    header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
    header.set_size(length);
    header.set_mode(0o6777);
    header.set_cksum();
    header.as_bytes().to_vec()
}

pub(super) fn block(name: &[u8], flag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, flag, content.len() as u64);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(super) fn tar_of(items: &[Item]) -> Vec<u8> {
    let flag = |what| match what {
        What::File => b'0',
        What::HardLink => b'1',
        What::Link => b'2',
        What::Device => b'3',
        What::Folder => b'5',
        What::Fifo => b'6',
    };
    let mut bytes: Vec<u8> = items.iter().flat_map(|item| block(&item.name, flag(item.what), &item.content)).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

pub(super) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
    xz.write_all(bytes).unwrap();
    xz.finish().unwrap()
}

pub(super) fn packed(tar: &[u8], format: Format) -> Vec<u8> {
    if format == Format::TarXz { xz(tar) } else { ::zstd::encode_all(tar, 1).unwrap() }
}

/// A zip entry, of which every field can be made to lie.
#[derive(Debug, Clone)]
pub(super) struct Zipped {
    pub(super) name: Vec<u8>,
    pub(super) local_name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) crc: u32,
    pub(super) local_crc: u32,
    pub(super) compressed: u32,
    pub(super) length: u32,
    pub(super) attributes: u32,
    pub(super) content: Vec<u8>,
    /// After the content.
    pub(super) more: Vec<u8>,
    /// Where the directory says it is, beside where it is.
    pub(super) shift: i64,
}

pub(super) fn zipped(item: &Item) -> Zipped {
    let kind: u32 = match item.what {
        What::File | What::HardLink => 0o100_644,
        What::Folder => 0o040_755,
        What::Link => 0o120_777,
        What::Device => 0o020_666,
        What::Fifo => 0o010_644,
    };
    let length = u32::try_from(item.content.len()).unwrap();
    let crc = crc32fast::hash(&item.content);
    Zipped {
        name: item.name.clone(),
        local_name: item.name.clone(),
        flags: 0,
        method: 0,
        crc,
        local_crc: crc,
        compressed: length,
        length,
        attributes: kind << 16,
        content: item.content.clone(),
        more: Vec::new(),
        shift: 0,
    }
}

pub(super) fn deflated(item: &Item) -> Zipped {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&item.content).unwrap();
    let content = encoder.finish().unwrap();
    Zipped { method: 8, compressed: u32::try_from(content.len()).unwrap(), content, ..zipped(item) }
}

pub(super) fn put(bytes: &mut Vec<u8>, shorts: &[u16]) {
    shorts.iter().for_each(|short| bytes.extend_from_slice(&short.to_le_bytes()));
}

pub(super) fn put_long(bytes: &mut Vec<u8>, longs: &[u32]) {
    longs.iter().for_each(|long| bytes.extend_from_slice(&long.to_le_bytes()));
}

pub(super) fn zip_from(entries: &[Zipped]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let offset = u32::try_from(i64::try_from(bytes.len()).unwrap() + entry.shift).unwrap();
        put_long(&mut bytes, &[0x0403_4b50]);
        put(&mut bytes, &[20, entry.flags, entry.method, 0, 0]);
        put_long(&mut bytes, &[entry.local_crc, entry.compressed, entry.length]);
        put(&mut bytes, &[u16::try_from(entry.local_name.len()).unwrap(), 0]);
        bytes.extend_from_slice(&entry.local_name);
        bytes.extend_from_slice(&entry.content);
        bytes.extend_from_slice(&entry.more);

        put_long(&mut directory, &[0x0201_4b50]);
        put(&mut directory, &[0x0314, 20, entry.flags, entry.method, 0, 0]);
        put_long(&mut directory, &[entry.crc, entry.compressed, entry.length]);
        put(&mut directory, &[u16::try_from(entry.name.len()).unwrap(), 0, 0, 0, 0]);
        put_long(&mut directory, &[entry.attributes, offset]);
        directory.extend_from_slice(&entry.name);
    }
    let (count, at) = (u16::try_from(entries.len() % 65_536).unwrap(), u32::try_from(bytes.len()).unwrap());
    bytes.extend_from_slice(&directory);
    put_long(&mut bytes, &[0x0605_4b50]);
    put(&mut bytes, &[0, 0, count, count]);
    put_long(&mut bytes, &[u32::try_from(directory.len()).unwrap(), at]);
    put(&mut bytes, &[0]);
    bytes
}

pub(super) fn archive_of(items: &[Item], format: Format) -> Vec<u8> {
    match format {
        Format::Zip => zip_from(&items.iter().map(zipped).collect::<Vec<_>>()),
        _ => packed(&tar_of(items), format),
    }
}

/// A tar archive with the executable, and these blocks before it.
pub(super) fn with_blocks(blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = blocks.concat();
    bytes.extend(tar_of(&[file("picket")]));
    bytes
}

pub(super) fn record(key: &str, value: &str) -> String {
    // The length counts itself.
    let rest = key.len() + value.len() + 3;
    let length = (rest..rest + 10).find(|length| *length == rest + length.to_string().len()).unwrap();
    format!("{length} {key}={value}\n")
}
