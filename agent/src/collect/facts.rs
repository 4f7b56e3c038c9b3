//! Facts of the machine: what it is, what runs on it, since when, and who is on it. `GET /system`.

use super::accounts::{Accounts, logged_in};
use super::text::printable;
use procfs::{Current, FromRead};
use serde::{Deserialize, Serialize};
use std::path::Path;
use sysinfo::{Product, System};

/// What the machine is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The operating system's family: `Linux`.
    pub platform: String,
    /// The kernel's version.
    pub version: Option<String>,
    /// The distribution's name and version.
    pub os: Option<String>,
    /// The host's name.
    pub hostname: Option<String>,
    /// The processor's architecture.
    pub architecture: String,
    /// The processor's model.
    pub cpu_model: Option<String>,
    /// Logical processors this process may use.
    pub cpu_count: usize,
    /// Logical processors of the machine.
    pub cpu_count_machine: Option<usize>,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Who made the machine.
    pub vendor: Option<String>,
    /// What they call it.
    pub product: Option<String>,
    /// What this machine is a guest of, `none` on metal, and nothing where that cannot be known.
    pub virtualisation: Option<String>,
    /// When the machine started (seconds since 1970, UTC).
    pub boot_time: Option<u64>,
    /// The kernel's random number for this boot.
    pub boot_id: Option<String>,
    /// Seconds since the machine started.
    pub uptime_seconds: Option<u64>,
    /// How many different users are logged in; nothing where the system does not keep account.
    pub users_logged_in: Option<usize>,
    /// Their names, at most 64.
    pub users: Vec<String>,
    /// How many people have an account here.
    pub accounts: Option<usize>,
}

/// What the firmware and the processor say about being a guest.
#[derive(Debug, Default)]
struct Signs<'a> {
    /// `/run/systemd/container`, where a container's manager wrote its name.
    container: Option<&'a str>,
    /// Whether `/.dockerenv` or `/run/.containerenv` is there.
    container_file: bool,
    /// Vendor and product of the firmware, and what `/sys/hypervisor/type` says, in one text.
    firmware: &'a str,
    /// Whether the processor has the flag `hypervisor`; `None` where processors have no such flag (ARM).
    hypervisor_flag: Option<bool>,
}

/// What firmware calls itself under each hypervisor (systemd-detect-virt(1) goes by the same signs).
const HYPERVISORS: [(&str, &str); 14] = [
    ("Amazon EC2", "amazon"),
    ("Apple Virtualization", "apple"),
    ("BHYVE", "bhyve"),
    ("Bochs", "bochs"),
    ("Google Compute Engine", "google"),
    ("Hyper-V", "microsoft"),
    ("Microsoft Corporation Virtual", "microsoft"),
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("Parallels", "parallels"),
    ("QEMU", "qemu"),
    ("VMware", "vmware"),
    ("VirtualBox", "oracle"),
    ("xen", "xen"),
];

impl Facts {
    /// Asks for what may change while the machine runs; the rest stays.
    pub(super) fn refresh(&mut self) {
        let users = logged_in(Path::new("/run/utmp"));
        self.hostname = System::host_name().ok();
        self.uptime_seconds = procfs::Uptime::from_file("/proc/uptime").ok().map(|up| up.uptime_duration().as_secs());
        self.users_logged_in = users.as_ref().map(Vec::len);
        self.users = users.unwrap_or_default();
        self.accounts = Accounts::new("/etc/passwd").people();
    }

    /// Asks the system for everything. On a machine of many cores the kernel takes milliseconds for its part.
    pub(super) fn gather() -> Self {
        let memory_total = System::new().map_or(0, |mut system| {
            system.refresh_memory();
            system.total_memory()
        });
        let cpuinfo = procfs::CpuInfo::current().ok();
        let cpu = |field: &str| cpuinfo.as_ref().and_then(|info| info.get_field(0, field)).map(str::to_owned);
        let vendor = dmi("sys_vendor");
        let product = Product::name().ok().map(|name| printable(name.trim().as_bytes(), 128)).filter(|n| !n.is_empty());
        let container = text("/run/systemd/container");
        let hypervisor = text("/sys/hypervisor/type").unwrap_or_default();
        let firmware =
            [vendor.as_deref(), product.as_deref(), Some(&hypervisor)].map(Option::unwrap_or_default).join(" ");
        let signs = Signs {
            container: container.as_deref(),
            container_file: ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists()),
            firmware: &firmware,
            hypervisor_flag: cpu("flags").map(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        };
        let mut facts = Self {
            platform: "Linux".to_owned(),
            version: System::kernel_version().ok(),
            os: System::long_os_version().ok(),
            architecture: System::cpu_arch(),
            cpu_model: cpu("model name").or_else(|| cpu("Model")),
            cpu_count: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_count_machine: cpuinfo.as_ref().map(procfs::CpuInfo::num_cores),
            memory_total,
            virtualisation: virtualisation(&signs),
            vendor,
            product,
            boot_time: System::boot_time().ok(),
            boot_id: boot_id(),
            ..Self::default()
        };
        facts.refresh();
        facts
    }
}

/// The kernel's random number for this boot (`random(4)`): the same for every process until the machine starts again.
pub fn boot_id() -> Option<String> {
    text("/proc/sys/kernel/random/boot_id").filter(|id| id.len() == 36)
}

/// One field of the firmware's table that everybody may read (`/sys/class/dmi`).
fn dmi(field: &str) -> Option<String> {
    text(&format!("/sys/class/dmi/id/{field}"))
}

fn text(path: &str) -> Option<String> {
    let text = picket_durable::read_bounded(Path::new(path), 4_096).ok()?;
    Some(printable(text.trim_ascii(), 128)).filter(|text| !text.is_empty())
}

fn virtualisation(signs: &Signs<'_>) -> Option<String> {
    if let Some(container) = signs.container {
        return Some(container.to_owned());
    }
    if signs.container_file {
        return Some("container".to_owned());
    }
    let firmware = signs.firmware.to_ascii_lowercase();
    let known = HYPERVISORS.iter().find(|(sign, _)| firmware.contains(&sign.to_ascii_lowercase()));
    match (known, signs.hypervisor_flag) {
        (Some((_, name)), _) => Some((*name).to_owned()),
        (None, Some(true)) => Some("unknown hypervisor".to_owned()),
        (None, Some(false)) => Some("none".to_owned()),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_from_metal_and_the_unknown_from_both() {
        let judge = |container, firmware, hypervisor_flag| {
            virtualisation(&Signs { container, container_file: false, firmware, hypervisor_flag })
        };
        for (container, firmware, flag, expected) in [
            (None, "Dell Inc. PowerEdge R740", Some(false), Some("none")),
            (None, "QEMU Standard PC (Q35 + ICH9, 2009)", Some(true), Some("qemu")),
            (None, "Amazon EC2 m7g.large", None, Some("amazon")),
            (Some("systemd-nspawn"), "QEMU", Some(true), Some("systemd-nspawn")),
            (None, "", Some(true), Some("unknown hypervisor")),
            (None, "", None, None),
        ] {
            assert_eq!(judge(container, firmware, flag).as_deref(), expected, "{firmware}");
        }
    }

    #[test]
    fn this_machine_says_what_it_is() {
        let facts = Facts::gather();
        assert_eq!(facts.platform, "Linux");
        assert!(facts.memory_total > 0 && facts.cpu_count > 0 && facts.uptime_seconds.is_some_and(|up| up > 0));
        assert_eq!(facts.boot_id.as_deref().map(str::len), Some(36));
        assert_eq!(facts.users_logged_in.unwrap_or(0), facts.users.len());
    }
}
