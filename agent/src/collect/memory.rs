//! Memory and swap, from `/proc/meminfo` and `/proc/vmstat` (proc(5)).

use super::text::{KeptFile, lines, numbers, per_second, percent, words};
use picket_durable::Error;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Both files have a few kilobytes; a kernel with many memory zones has more.
const LIMIT: usize = 64 << 10;

/// Memory and swap, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    /// Physical memory the kernel can use.
    pub total_bytes: u64,
    /// What a new program could get without swapping.
    pub available_bytes: u64,
    /// The rest: total less available.
    pub used_bytes: u64,
    /// What nobody uses for anything.
    pub free_bytes: u64,
    /// Caches of block devices.
    pub buffers_bytes: u64,
    /// Caches of files, shared memory included.
    pub cached_bytes: u64,
    /// Shared memory and tmpfs.
    pub shared_bytes: u64,
    /// Swap space.
    pub swap_total_bytes: u64,
    /// Swap space in use.
    pub swap_used_bytes: u64,
    /// Read back from swap since the machine started.
    pub swap_in_bytes: u64,
    /// Written to swap since the machine started.
    pub swap_out_bytes: u64,
    /// Read back from swap, bytes a second since the sample before.
    pub swap_in_bytes_per_second: f64,
    /// Written to swap, bytes a second since the sample before.
    pub swap_out_bytes_per_second: f64,
}

impl MemorySample {
    /// Memory in use, percent.
    pub fn used_percent(&self) -> f64 {
        percent(self.used_bytes, self.total_bytes)
    }

    /// Swap in use, percent; 0 where there is none.
    pub fn swap_used_percent(&self) -> f64 {
        percent(self.swap_used_bytes, self.swap_total_bytes)
    }
}

/// Measures memory.
#[derive(Debug)]
pub(super) struct MemoryCollector {
    meminfo: KeptFile,
    vmstat: KeptFile,
    before: Option<(Instant, u64, u64)>,
}

impl MemoryCollector {
    pub(super) fn new() -> Self {
        let (meminfo, vmstat) = (KeptFile::new("/proc/meminfo", LIMIT), KeptFile::new("/proc/vmstat", LIMIT));
        Self { meminfo, vmstat, before: None }
    }

    pub(super) fn sample(&mut self, now: Instant) -> Result<MemorySample, Error> {
        let mut sample = parse(self.meminfo.read()?);
        let (swapped_in, swapped_out) = swapped_pages(self.vmstat.read()?);
        let page = procfs::page_size();
        sample.swap_in_bytes = swapped_in.saturating_mul(page);
        sample.swap_out_bytes = swapped_out.saturating_mul(page);
        if let Some((at, swap_in, swap_out)) = self.before {
            let seconds = now.saturating_duration_since(at).as_secs_f64();
            sample.swap_in_bytes_per_second = per_second(swap_in, sample.swap_in_bytes, seconds);
            sample.swap_out_bytes_per_second = per_second(swap_out, sample.swap_out_bytes, seconds);
        }
        self.before = Some((now, sample.swap_in_bytes, sample.swap_out_bytes));
        Ok(sample)
    }
}

/// Lines such as `MemTotal:       16384 kB`; the unit is KiB in all that are wanted here.
fn parse(text: &[u8]) -> MemorySample {
    let mut sample = MemorySample::default();
    let (mut available, mut swap_free) = (None, 0);
    for line in lines(text) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let Some(bytes) = numbers(&line[colon + 1..]).next().map(|kib| kib.saturating_mul(1024)) else { continue };
        match &line[..colon] {
            b"MemTotal" => sample.total_bytes = bytes,
            b"MemFree" => sample.free_bytes = bytes,
            b"MemAvailable" => available = Some(bytes),
            b"Buffers" => sample.buffers_bytes = bytes,
            b"Cached" => sample.cached_bytes = bytes,
            b"Shmem" => sample.shared_bytes = bytes,
            b"SwapTotal" => sample.swap_total_bytes = bytes,
            b"SwapFree" => swap_free = bytes,
            _ => {}
        }
    }
    // Kernels before 3.14 leave the estimate to the reader.
    let guess = || sample.free_bytes.saturating_add(sample.buffers_bytes).saturating_add(sample.cached_bytes);
    sample.available_bytes = available.unwrap_or_else(guess).min(sample.total_bytes);
    sample.used_bytes = sample.total_bytes - sample.available_bytes;
    sample.swap_used_bytes = sample.swap_total_bytes.saturating_sub(swap_free);
    sample
}

/// Pages read from and written to swap since the machine started.
fn swapped_pages(text: &[u8]) -> (u64, u64) {
    let mut pages = (0, 0);
    for line in lines(text) {
        let Some(name) = words(line).next() else { continue };
        let count = || numbers(&line[name.len()..]).next().unwrap_or(0);
        match name {
            b"pswpin" => pages.0 = count(),
            b"pswpout" => pages.1 = count(),
            _ => {}
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMINFO: &[u8] = b"MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n\
        Buffers:          50 kB\nCached:          200 kB\nSwapCached:        7 kB\nShmem: 3 kB\n\
        SwapTotal:       500 kB\nSwapFree:        125 kB\nHugePages_Total:   0\n";

    #[test]
    fn used_is_what_a_new_program_could_not_get() {
        let sample = parse(MEMINFO);
        assert_eq!((sample.used_bytes, sample.cached_bytes), (600 << 10, 200 << 10));
        assert!((sample.used_percent() - 60.0).abs() < 1e-9);
        assert!((sample.swap_used_percent() - 75.0).abs() < 1e-9);
    }

    #[test]
    fn swapping_is_counted_in_pages_of_the_kernel() {
        assert_eq!(swapped_pages(b"pgpgin 9\npswpin 12\npswpout 34\npswpinx 5\n"), (12, 34));
    }

    #[test]
    fn this_machine_has_memory() {
        let sample = MemoryCollector::new().sample(Instant::now()).unwrap();
        assert!(sample.total_bytes > 0 && sample.used_bytes <= sample.total_bytes, "{sample:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "((Mem|Swap)(Total|Free|Available)?:? ?[0-9]{0,21} ?(kB)?\n?){0,9}", noise in any::<Vec<u8>>()) {
            let sample = parse(text.as_bytes());
            prop_assert!(sample.used_bytes <= sample.total_bytes);
            parse(&noise);
            swapped_pages(&noise);
        }
    }
}
