//! An executable as `.tar.xz` that is not compressed: real to whoever unpacks it, and unpacked as fast as it is copied. With
//! compressed ones most of the time of thousands of updates would be xz's.
//!
//! Formats: POSIX `ustar`; "The .xz File Format" 1.2.1 with LZMA2 chunks that are stored, and no check: length, hash and
//! signature of the whole are the updater's own.

use std::fs;
use std::path::Path;

/// The most that a stored chunk may hold, in bytes.
const CHUNK: usize = 1 << 16;

/// Packs `exe` into `to`.
pub fn pack(exe: &Path, to: &Path) {
    fs::write(to, xz(&tar(&fs::read(exe).unwrap()))).unwrap();
}

fn tar(content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "picket");
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [&header[..], content].concat();
    // To the end of the block, and two empty blocks.
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn xz(content: &[u8]) -> Vec<u8> {
    const FLAGS: [u8; 2] = [0, 0];
    let mut out = vec![0xfd, b'7', b'z', b'X', b'Z', 0];
    out.extend(FLAGS);
    out.extend(crc32(&FLAGS).to_le_bytes());
    let block = out.len();
    // Twelve bytes, one filter: LZMA2 with a dictionary of 1 MiB.
    let header = [2, 0, 0x21, 1, 0x10, 0, 0, 0];
    out.extend(header);
    out.extend(crc32(&header).to_le_bytes());
    for (index, chunk) in content.chunks(CHUNK).enumerate() {
        out.push(if index == 0 { 1 } else { 2 });
        out.extend(u16::try_from(chunk.len() - 1).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(chunk);
    }
    out.push(0);
    let unpadded = out.len() - block;
    out.resize(block + unpadded.next_multiple_of(4), 0);
    let mut index = vec![0, 1];
    number(&mut index, unpadded);
    number(&mut index, content.len());
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc32(&index).to_le_bytes());
    let mut footer = u32::try_from(index.len() / 4 - 1).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    footer.extend(FLAGS);
    out.extend(index);
    out.extend(crc32(&footer).to_le_bytes());
    out.extend(footer);
    out.extend(*b"YZ");
    out
}

/// A number in groups of seven bits, the lowest first.
fn number(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

/// IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_is_stored_is_all_there() {
        let content = vec![7; 2 * CHUNK + 3];
        let packed = xz(&tar(&content));
        assert_eq!(packed.len() % 4, 0);
        assert!(packed.len() > content.len() && packed.len() < content.len() + 4096);
    }
}
