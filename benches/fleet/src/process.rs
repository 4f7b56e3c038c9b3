//! What a process uses, as the kernel counts it.

use std::fs;

/// Resident memory in bytes; nothing when the process is gone.
pub fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The same of this process.
pub fn own_resident() -> u64 {
    resident(std::process::id()).unwrap_or_default()
}

/// Clock ticks a second in `/proc/PID/stat` (`sysconf(_SC_CLK_TCK)`): 100 on every Linux that Picket runs on.
const TICKS: f64 = 100.0;

/// Processor time in seconds, user and system, of all threads, those that ended included (proc(5), `/proc/PID/stat`).
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; what follows it is the third field.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / TICKS
}

/// The machine's load, as a word for a report: on a machine that others use, figures say less than ratios.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_threads_that_ended_counts() {
        let before = cpu_seconds(std::process::id());
        let busy = move || {
            let mut sum = 0_u64;
            while cpu_seconds(std::process::id()) < before + 0.05 {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
        };
        std::thread::spawn(busy).join().unwrap();
        assert!(cpu_seconds(std::process::id()) >= before + 0.05);
        assert!(own_resident() > 0 && resident(u32::MAX).is_none());
    }
}
