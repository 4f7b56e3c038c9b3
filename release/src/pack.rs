//! Packing a bare executable into the archive that machines unpack: the same executable always gives the same bytes.

use crate::error::ReleaseError;
use lzma_rust2::{XzOptions, XzWriter};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Packs the executable at `exe` as `picket` into a new `.tar.xz` at `to`, compressed at `level` (0 to 9).
///
/// # Errors
/// When either file cannot be read or written.
pub fn pack_executable(exe: &Path, to: &Path, level: u32) -> Result<(), ReleaseError> {
    let doing = |operation, path: &Path, source| picket_durable::Error::new(operation, path, source);
    let mut source = File::open(exe).map_err(|e| doing("read", exe, e))?;
    let length = source.metadata().map_err(|e| doing("inspect", exe, e))?.len();
    let target = picket_durable::create_new(to, 0o644)?;
    let write = || -> io::Result<()> {
        let xz = XzWriter::new(io::BufWriter::new(target), XzOptions::with_preset(level.min(9)))?;
        let mut tar = tar::Builder::new(xz);
        // Nothing of the machine that packs goes into the archive: no owner, no time.
        let mut header = tar::Header::new_ustar();
        header.set_size(length);
        header.set_mode(0o755);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        tar.append_data(&mut header, picket_protocol::PRODUCT, &mut source)?;
        let mut buffered = tar.into_inner()?.finish()?;
        buffered.flush()?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(|e| doing("write", to, e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_executable_gives_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("exe");
        picket_durable::write_atomic(&exe, &[7; 10_000], 0o700).unwrap();
        let pack = |name: &str| {
            let path = dir.path().join(name);
            pack_executable(&exe, &path, 6).unwrap();
            picket_durable::read_bounded(&path, 1 << 20).unwrap()
        };
        assert_eq!(pack("a.tar.xz"), pack("b.tar.xz"));
    }
}
