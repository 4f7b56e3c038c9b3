//! The agent as a process: what it answers, what it survives, how it ends.

use picket_testkit::{Build, Fault, Prefix, Vendor, build, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An agent in the foreground, without a service manager.
pub(crate) struct Foreground {
    pub(crate) prefix: Prefix,
    child: Child,
}

impl Foreground {
    pub(crate) fn start(build: &Build, prefix: Prefix, arguments: &[&str]) -> Self {
        fs::create_dir_all(prefix.path("var/lib/picket")).unwrap();
        let child = Command::new(&build.exe)
            .args(["agent", "run"])
            .args(arguments)
            .env("PICKET_PREFIX", prefix.path(""))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let agent = Self { prefix, child };
        let prefix = &agent.prefix;
        wait_until("the agent to answer", || prefix.health("/livez").is_some());
        agent
    }

    fn quick() -> Self {
        Self::start(
            &build("1.0.0", Fault::None),
            Prefix::new("http://127.0.0.1:9"),
            &["--set", "collection_interval=1s"],
        )
    }

    /// Tells it to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// [`Foreground::stop`], and what it logged.
    pub(crate) fn stopped_log(&mut self) -> String {
        self.stop();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut text).unwrap();
        text
    }

    fn metrics(&self, headers: &str) -> String {
        // `/livez` may answer a moment before this port is open.
        let mut answer = None;
        wait_until("the metrics to be served", || {
            answer = self.prefix.get(self.prefix.metrics_port, "/metrics", headers);
            answer.is_some()
        });
        answer.unwrap().1
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_answers_who_it_is_that_it_serves_and_how_it_is() {
    let agent = Foreground::quick();
    let (status, livez) = agent.prefix.health("/livez").unwrap();
    assert_eq!((status, &livez["version"], &livez["pid"]), (200, &"1.0.0".into(), &agent.child.id().into()));
    assert_eq!(agent.prefix.health("/readyz").unwrap(), (200, serde_json::json!({ "status": "ready" })));
    wait_until("the first sample", || agent.prefix.health("/health").unwrap().1["checks"]["disk_space"].is_object());
    let (status, health) = agent.prefix.health("/health").unwrap();
    assert_eq!((status, &health["status"]), (200, &"healthy".into()));
    assert!(health["agent_id"].as_str().is_some_and(|id| id.len() == 32));
    for check in ["config", "event_loop", "collector", "disk_space"] {
        assert!(
            health["checks"][check]["message"].as_str().is_some_and(|message| !message.is_empty()),
            "{check}: {health}"
        );
    }
    let (status, _) = agent.prefix.get(agent.prefix.health_port, "/nothing", "").unwrap();
    assert_eq!(status, 404);
}

#[test]
fn its_metrics_are_clean_by_promtools_own_word() {
    let agent = Foreground::quick();
    // Every group has been measured when the slowest have: processor time is a difference, disks are asked.
    wait_until("the first samples", || {
        let text = agent.metrics("");
        ["system_cpu_usage_percent ", "system_disk_used_bytes{", "system_processes{"]
            .iter()
            .all(|name| text.contains(name))
    });
    let text = agent.metrics("");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool is installed (package prometheus)");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}");
    for name in [
        "up{version=\"1.0.0\"} 1",
        "system_cpu_usage_percent ",
        "system_disk_used_bytes{mount=",
        "received_bytes_total{",
        "system_cpu_seconds_total{mode=\"steal\"} ",
        "system_swap_in_bytes_total ",
        "system_processes{state=\"running\"} ",
        "system_info{architecture=",
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
        "degradation_step 0",
        "update_attempts_total{status=\"success\"} 0",
        "update_attempts_total{status=\"error\"} 0",
        "file_watch_folders{state=\"watched\"} ",
        "network_watch_dumps_total ",
        "alert_notifications_total{channel=\"0\",outcome=\"sent\",type=\"log\"} ",
        "alerts_open{level=\"critical\"} ",
    ] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    assert!(agent.metrics("accept: application/openmetrics-text\r\n").ends_with("# EOF\n"));
    let json: serde_json::Value = serde_json::from_str(&agent.metrics("accept: application/json\r\n")).unwrap();
    assert!(json["memory"].as_f64().is_some_and(|percent| percent > 0.0), "{json}");
    assert!(json["cpu"].as_f64().is_some_and(|percent| (0.0..=100.0).contains(&percent)), "{json}");
    assert!(json["samples"]["memory"]["total_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{json}");
    let (status, plain) = agent.prefix.get(agent.prefix.metrics_port, "/metrics.json", "").unwrap();
    assert!(status == 200 && plain.contains("\"samples\""), "{plain}");
    // Command lines hold secrets: this one's argument must be nowhere in what is told.
    assert!(!plain.contains("collection_interval=1s"), "{plain}");
    let system = agent.prefix.get(agent.prefix.metrics_port, "/system", "").unwrap().1;
    let system: serde_json::Value = serde_json::from_str(&system).unwrap();
    assert_eq!((&system["platform"], &system["agent_version"]), (&"Linux".into(), &"1.0.0".into()));
}

#[test]
fn the_namespace_of_the_operations_guide_gives_its_names() {
    let agent = Foreground::start(
        &build("1.0.0", Fault::None),
        Prefix::new("http://127.0.0.1:9"),
        &["--set", "metrics.namespace=jtnt_agent", "--set", "collection_interval=1s"],
    );
    wait_until("the first sample", || agent.metrics("").contains("jtnt_agent_system_memory_used_bytes"));
    assert!(agent.metrics("").contains("jtnt_agent_up{version=\"1.0.0\"} 1"));
}

#[test]
fn a_browser_under_another_name_learns_nothing() {
    let agent = Foreground::quick();
    for port in [agent.prefix.health_port, agent.prefix.metrics_port] {
        let (status, body) = agent.prefix.get(port, "/health", "host: rebound.example\r\n").unwrap();
        assert_eq!(status, 403);
        assert!(!body.contains("agent_id"));
    }
}

#[test]
fn health_answers_while_everything_else_stands_still() {
    let agent = Foreground::start(&build("2.0.0", Fault::Stuck), Prefix::new("http://127.0.0.1:9"), &[]);
    wait_until("the event loop to be missed", || {
        agent.prefix.health("/health").is_some_and(|(status, _)| status == 503)
    });
    let (_, health) = agent.prefix.health("/health").unwrap();
    assert_eq!(health["checks"]["event_loop"]["status"], "fail", "{health}");
    assert_eq!(agent.prefix.health("/livez").unwrap().0, 200);
}

#[test]
fn it_drains_on_sigterm_within_its_limit_and_ends_well() {
    let mut agent = Foreground::quick();
    // A client that holds its connection open must not hold the agent up.
    let mut idle = std::net::TcpStream::connect(("127.0.0.1", agent.prefix.health_port)).unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    let told = Instant::now();
    agent.signal(Signal::TERM);
    let status = agent.child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(told.elapsed() < Duration::from_secs(15), "it took {:?}", told.elapsed());
}

#[test]
fn a_request_for_metrics_that_has_begun_is_answered_though_the_agent_is_told_to_stop() {
    let agent = Foreground::quick();
    let address = ("127.0.0.1", agent.prefix.metrics_port);
    let mut begun = std::net::TcpStream::connect(address).unwrap();
    begun.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n").unwrap();
    agent.prefix.get(agent.prefix.metrics_port, "/metrics", "").unwrap();
    agent.signal(Signal::TERM);
    wait_until("no more connections to be taken", || std::net::TcpStream::connect(address).is_err());
    begun.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut begun, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("start_time_seconds"), "{answer}");
}

#[test]
fn a_port_in_use_is_told_with_its_holder_and_is_no_reason_to_end() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let holder = TcpListener::bind(("127.0.0.1", prefix.metrics_port)).unwrap();
    let agent = Foreground::start(&build("1.0.0", Fault::None), prefix, &[]);
    let message = || {
        let health = agent.prefix.health("/health").unwrap().1;
        health["checks"]["metrics_server"]["message"].as_str().unwrap_or_default().to_owned()
    };
    wait_until("the failure to be told", || message().contains("the port is held by"));
    let own = format!("process {}", std::process::id());
    assert!(message().contains(&own), "{}", message());
    assert!(message().contains("metrics.listen"), "no way out: {}", message());
    drop(holder);
    wait_until("the port to be taken once it is free", || message() == "serving");
}

#[test]
fn a_second_agent_of_one_installation_does_not_start() {
    let agent = Foreground::quick();
    let second = agent.prefix.run_with(&build("1.0.0", Fault::None).exe, &["agent", "run"]).expect(5);
    assert!(second.stderr.contains("another agent of this installation is running"), "{}", second.stderr);
    assert!(second.stderr.contains(&format!("process {}", agent.child.id())), "{}", second.stderr);
}

#[test]
fn its_log_is_json_when_asked_and_as_loud_as_each_component_was_told() {
    let mut agent = Foreground::start(
        &build("1.0.0", Fault::None),
        Prefix::new("http://127.0.0.1:9"),
        &["--set", "log_format=json", "--set", "log_levels=agent=debug"],
    );
    let text = agent.stopped_log();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().any(|line| line["message"] == "the agent serves" && line["metadata"]["version"] == "1.0.0"),
        "{text}"
    );
}

#[test]
fn a_crashed_agent_is_started_again_by_its_supervisor() {
    let vendor = Vendor::new();
    let first = build("1.0.0", Fault::None);
    vendor.release(&first);
    let prefix = Prefix::new("http://127.0.0.1:9");
    prefix.install(&first, &vendor.root_file());
    let pid = prefix.health("/livez").unwrap().1["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    wait_until("another process to answer", || {
        prefix.health("/livez").is_some_and(|(_, l)| l["pid"].as_i64() != Some(pid))
    });
    let status = prefix.picket(&["service", "status", "--json"]).expect(0).json();
    assert_eq!((&status["restarts"], &status["state"]), (&1.into(), &"running".into()));
}
