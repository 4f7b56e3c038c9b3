//! The updater's configuration keys.

use picket_config::{ByteSize, Interval, Node, Problems, Setting, Value};
use picket_protocol::Window;
use serde_json::json;

/// A window in which this machine may restart for an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaintenanceWindow(pub Window);

impl Setting for MaintenanceWindow {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Text(text) => text.parse().ok().map(Self),
            _ => None,
        };
        if value.is_none() {
            problems.expected(
                node,
                key,
                "a window such as 02:00-04:00, \"sat,sun 00:00-24:00\" or mon-fri 22:00-06:00",
            );
        }
        value
    }

    fn show(&self) -> serde_json::Value {
        self.0.to_string().into()
    }

    fn schema() -> serde_json::Value {
        json!({ "type": "string", "examples": ["02:00-04:00", "sat,sun 00:00-24:00", "mon-fri 22:00-06:00"] })
    }

    fn type_name() -> String {
        "window".to_owned()
    }
}

picket_config::choice! {
    /// In which time windows are meant.
    pub enum WindowClock {
        /// The machine's time zone.
        Local = "local",
        /// UTC.
        Utc = "utc",
    }
}

picket_config::choice! {
    /// Which releases the machine takes by itself.
    pub enum AutoUpdate {
        /// None: a person or a package manager decides.
        Off = "off",
        /// Those that the vendor calls critical.
        Critical = "critical",
        /// Every release of the channel.
        All = "all",
    }
}

picket_config::settings! {
    /// Becoming the next version.
    pub struct UpdateSettings {
        /// Where releases are: the address of a release tree (`https://…`, or `http://127.0.0.1…`), or of a GitHub
        /// repository.
        pub releases: String = env!("CARGO_PKG_REPOSITORY").to_owned(),
        /// The address of the API of a GitHub repository's server, which only `update check --releases` asks; empty is
        /// `https://api.github.com` for github.com, and `/api/v3` of the repository's host for any other.
        pub releases_api: String = String::new(),
        /// Which of the vendor's channels this machine follows.
        pub channel: String = "stable".to_owned(),
        /// Which releases the daily check applies by itself; the others it only reports.
        pub auto: AutoUpdate = AutoUpdate::Critical,
        /// How long a new version may take to become ready before it is rolled back.
        pub start_deadline: Interval = Interval::seconds(30),
        /// How long a new version is watched, once it is ready, before it is kept.
        pub soak: Interval = Interval::seconds(60),
        /// How much longer to wait when the release server cannot be reached by anyone, so that the new version cannot
        /// prove that it will be able to take the next update.
        pub network_patience: Interval = Interval::seconds(600),
        /// How long a replaced version is kept on disk.
        pub keep_previous: Interval = Interval::days(7),
        /// How much space an update must leave free.
        pub disk_reserve: ByteSize = ByteSize(200 << 20),
        /// How long a version that failed its trial is not tried again.
        pub hold_for: Interval = Interval::days(7),
        /// After how many failed trials a version is not tried again unless it is asked for by name.
        pub retry_budget: u32 = 3,
        /// When this machine may restart for an update that it takes by itself; none is at any time. With some, the
        /// vendor's windows do not count.
        pub windows: Vec<MaintenanceWindow> = Vec::new(),
        /// In which time the windows are meant.
        pub window_time: WindowClock = WindowClock::Local,
        /// How long windows and hooks that call the machine busy may put off an update together, from when it is this
        /// machine's turn.
        pub defer_at_most: Interval = Interval::days(7),
        /// The same for a release that the vendor calls critical, and for leaving one that the vendor took back.
        pub defer_critical_at_most: Interval = Interval::seconds(3600),
        /// How long one hook may run.
        pub hook_limit: Interval = Interval::seconds(10),
        /// The user that hooks run as, with that user's groups; none is the updater's own (root, in a system installation).
        pub hook_user: Option<String> = None,
        /// How long a release server may be silent, before it answers or in the middle of a download, until the attempt is
        /// broken off, to be resumed later.
        pub stall_limit: Interval = Interval::seconds(30),
    }
}
