//! What the tests write into an executable after it was built: another version, and how it is broken. Test builds only (feature
//! `faults`). One build is all of them, so that a dozen releases need not be compiled.

use std::hint::black_box;

/// What the tests look for in the executable. It is in it once.
const MARK: &[u8; 24] = b"picket-test-build-stamp:";
/// How much they may write after it, in bytes: `VERSION FAULT`, then zeros.
const ROOM: usize = 72;

#[used]
static STAMP: [u8; MARK.len() + ROOM] = {
    let mut stamp = [0; MARK.len() + ROOM];
    let mut at = 0;
    while at < MARK.len() {
        stamp[at] = MARK[at];
        at += 1;
    }
    stamp
};

/// The words that were written.
fn words() -> impl Iterator<Item = &'static str> {
    // The compiler must not take for granted that they are the zeros that it wrote itself.
    let written = black_box(&STAMP).get(MARK.len()..).unwrap_or_default();
    str::from_utf8(written).unwrap_or_default().trim_end_matches('\0').split(' ').filter(|word| !word.is_empty())
}

/// The version that this executable says it is, if it was told one.
pub fn version() -> Option<&'static str> {
    words().next()
}

/// How it is broken: as it was told, or as `PICKET_BUILD_FAULT` said when it was built.
pub fn fault() -> Option<&'static str> {
    words().nth(1).or(option_env!("PICKET_BUILD_FAULT"))
}
