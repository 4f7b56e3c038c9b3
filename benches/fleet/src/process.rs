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
    let stat = stat(pid);
    (ticks(&stat, 11) + ticks(&stat, 12)) / TICKS
}

/// The same of a process and all its children: those that are there, and those that ended and were waited for.
pub fn family_cpu_seconds(pid: u32) -> f64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = numbers.filter(|number| parent(*number) == Some(pid)).map(cpu_seconds).sum::<f64>();
    cpu_seconds(pid) + ended_children(pid) + children
}

fn stat(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; what follows it is the third field.
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn ticks(stat: &[String], at: usize) -> f64 {
    stat.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default()
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid).get(1)?.parse().ok()
}

fn ended_children(pid: u32) -> f64 {
    let stat = stat(pid);
    (ticks(&stat, 13) + ticks(&stat, 14)) / TICKS
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
    fn the_time_of_threads_and_children_that_ended_counts() {
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
        let mut child = std::process::Command::new("sh");
        let child = child.args(["-c", "while [ \"$(cut -d' ' -f14 /proc/$$/stat)\" -lt 5 ]; do :; done"]);
        let before = family_cpu_seconds(std::process::id());
        assert!(child.status().unwrap().success());
        assert!(family_cpu_seconds(std::process::id()) >= before + 0.05, "that of a child that ended");
    }
}
