//! What updates cost a machine and a release server: run by `scripts/bench update-cost`.
//!
//! Arguments: the folder that `scripts/bench` filled with builds, their target. One run measures: the daily check when
//! nothing changed, in bytes on the wire and requests; a whole update, in peak resident memory and processor time of the
//! updater and of its unprivileged half; and the same for a release that is eight times as large.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads clocks and files directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use picket_testkit::{Build, Prefix, ReleaseServer, Vendor};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the processes of an update are looked at. The kernel keeps their peaks, so only what a process does in its
/// last moment is missed.
const LOOK: Duration = Duration::from_millis(2);
/// How many clock ticks a second has in `/proc` (`sysconf(_SC_CLK_TCK)`; 100 on every Linux platform that Rust knows).
const TICKS: f64 = 100.0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [builds, target] = &arguments[..] else {
        println!("run `scripts/bench update-cost`, which builds what is measured");
        return;
    };
    let build = |version: &str| Build::of(version, &Path::new(builds).join(version).join("picket"), target);
    let (first, second, third) = (build("1.0.0"), build("2.0.0"), build("3.0.0"));
    let vendor = Vendor::new();
    vendor.release(&first);
    let server = ReleaseServer::start(&vendor.tree());
    let wire = Wire::start(server.url().trim_start_matches("http://").parse().unwrap());
    let prefix = Prefix::with_config(&format!("update:\n  releases: http://{}\n  auto: all\n", wire.address));
    prefix.install(&first, &vendor.root_file());

    check(&prefix, &wire, &server, "the first check");
    check(&prefix, &wire, &server, "a check when nothing changed");
    vendor.publish();
    check(&prefix, &wire, &server, "a check after the vendor renewed the timestamp");

    vendor.release(&second);
    update(&prefix, &second, "an update");
    let large = enlarged(&third, Path::new(builds), target);
    vendor.release(&large);
    update(&prefix, &large, "an update to a release eight times as large");
}

/// One daily check: requests and bytes on the wire, both ways, headers included.
fn check(prefix: &Prefix, wire: &Wire, server: &ReleaseServer, what: &str) {
    wire.bytes.store(0, Ordering::Relaxed);
    server.forget();
    prefix.picket(&["update", "check"]).expect(0);
    println!("{what}: {} requests, {} bytes", server.requests().len(), wire.bytes.load(Ordering::Relaxed));
}

/// One update, by the process that a timer would start.
fn update(prefix: &Prefix, build: &Build, what: &str) {
    let length = |path: &Path| fs::metadata(path).unwrap().len();
    let mut updater = Command::new(prefix.path("usr/local/bin/picket"))
        .args(["update", "run"])
        .env("PICKET_PREFIX", prefix.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
    while updater.try_wait().unwrap().is_none() {
        for process in processes_of(prefix) {
            if let Some(now) = Seen::of(process) {
                seen.insert(process, now);
            }
        }
        std::thread::sleep(LOOK);
    }
    assert_eq!(prefix.current(), build.version, "the update did not come about:\n{}", prefix.log());
    let (packed, size) = (length(&build.archive), length(&build.exe));
    println!("{what}: {packed} bytes packed, {size} unpacked");
    for (words, who) in [("update run", "updater"), ("fetcher", "fetcher"), ("self-test", "self-test")] {
        let those = seen.values().filter(|process| process.command.contains(words));
        let (peak, own, seconds) = those.fold((0, 0, 0.0_f64), |(peak, own, seconds), process| {
            (process.peak.max(peak), process.own.max(own), seconds + process.seconds)
        });
        println!("  {who}: peak {peak} KiB resident ({own} KiB of it its own), {seconds:.2} s of processor time");
    }
}

fn processes_of(prefix: &Prefix) -> Vec<u32> {
    prefix.processes().into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect()
}

/// What `/proc` says of a process.
struct Seen {
    command: String,
    peak: u64,
    own: u64,
    seconds: f64,
}

impl Seen {
    fn of(process: u32) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).ok();
        let status = read("status")?;
        let field = |name: &str| -> Option<u64> {
            status.lines().find(|line| line.starts_with(name))?.split_whitespace().nth(1)?.parse().ok()
        };
        // proc(5): utime and stime are fields 14 and 15; the name before them may hold spaces and ends with a bracket.
        let stat = read("stat")?;
        let ticks = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
        Some(Self {
            command: read("cmdline")?.replace('\0', " "),
            peak: field("VmHWM:")?,
            own: field("RssAnon:")?,
            seconds: ticks.sum::<f64>() / TICKS,
        })
    }
}

/// The same program with bytes at its end that do not compress: as large as eight of it.
fn enlarged(build: &Build, builds: &Path, target: &str) -> Build {
    let dir = builds.join("large");
    fs::create_dir_all(&dir).unwrap();
    let exe = dir.join("picket");
    let program = fs::read(&build.exe).unwrap();
    let mut random = fs::File::open("/dev/urandom").unwrap().take(7 * program.len() as u64);
    let mut file = fs::File::create(&exe).unwrap();
    file.write_all(&program).unwrap();
    std::io::copy(&mut random, &mut file).unwrap();
    fs::set_permissions(&exe, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    drop(file);
    Build::of(&build.version, &exe, target)
}

/// Passes connections on and counts the bytes of both directions.
struct Wire {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Wire {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&bytes);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(to).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let counted = Arc::clone(&counted);
                    std::thread::spawn(move || {
                        let mut buffer = [0; 16 << 10];
                        while let Ok(read) = from.read(&mut buffer) {
                            counted.fetch_add(read as u64, Ordering::Relaxed);
                            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Self { address, bytes }
    }
}
