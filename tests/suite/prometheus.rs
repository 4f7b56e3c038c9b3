//! A real Prometheus (Debian's) scrapes the agent and answers queries about it.

use crate::agent::Foreground;
use picket_testkit::{Fault, Prefix, build, wait_until};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A Prometheus on a free port that scrapes one target every second. It ends with the value.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Prometheus {
    fn scraping(target: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join("prometheus.yml");
        // As in the operations guide, but quicker.
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: 'jtnt-agent'\n    static_configs:\n      \
             - targets: ['localhost:{target}']\n"
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus, which `scripts/setup test` installs: {error}"));
        Self { child, port, _dir: dir }
    }

    /// The `data` of an answer of its API; `None` while it does not answer, or refuses.
    fn api(&self, agent: &Foreground, path: &str) -> Option<Value> {
        let (_, body) = agent.prefix.get(self.port, path, "")?;
        // Long answers come in chunks: the JSON is what stands between the first and the last brace.
        let json = &body[body.find('{')?..=body.rfind('}')?];
        let answer: Value = serde_json::from_str(json).ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// The series of an instant query.
    fn query(&self, agent: &Foreground, query: &str) -> Vec<Value> {
        let data = self.api(agent, &format!("/api/v1/query?query={query}"));
        data.and_then(|data| data["result"].as_array().cloned()).unwrap_or_default()
    }

    /// The value of a query that has one series.
    fn value(&self, agent: &Foreground, query: &str) -> Option<f64> {
        self.query(agent, query).first()?["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_the_names_of_the_operations_guide() {
    let agent = Foreground::start(
        &build("1.0.0", Fault::None),
        Prefix::new("http://127.0.0.1:9"),
        &["--set", "metrics.namespace=jtnt_agent", "--set", "collection_interval=1s"],
    );
    let prometheus = Prometheus::scraping(agent.prefix.metrics_port);
    wait_until("Prometheus to have scraped the agent", || prometheus.value(&agent, "up") == Some(1.0));
    wait_until("a sample of every group", || {
        ["cpu_usage_percent", "memory_used_bytes", "disk_used_bytes"]
            .iter()
            .all(|name| !prometheus.query(&agent, &format!("jtnt_agent_system_{name}")).is_empty())
    });
    assert!(prometheus.value(&agent, "jtnt_agent_system_memory_used_bytes").is_some_and(|bytes| bytes > 0.0));
    let up = prometheus.query(&agent, "jtnt_agent_up");
    assert_eq!((&up[0]["metric"]["version"], &up[0]["value"][1]), (&"1.0.0".into(), &"1".into()), "{up:?}");
    // The guide's own alert rules find nothing to complain of.
    assert!(prometheus.query(&agent, "jtnt_agent_up%20%3D%3D%200").is_empty());

    let targets = prometheus.api(&agent, "/api/v1/targets?state=active").unwrap();
    assert_eq!(targets["activeTargets"][0]["lastError"], "", "{targets}");
    // What the agent uses itself is measured a moment after the rest. OpenMetrics names a counter without `_total`.
    wait_until("the type of a counter", || {
        let metadata = prometheus.api(&agent, "/api/v1/metadata?metric=jtnt_agent_process_cpu_seconds");
        metadata.is_some_and(|data| data["jtnt_agent_process_cpu_seconds"][0]["type"] == "counter")
    });
    // No label grows without number: a scrape of one machine stays in the hundreds.
    let samples = prometheus.value(&agent, "scrape_samples_scraped").unwrap();
    assert!((20.0..2_000.0).contains(&samples), "{samples} samples a scrape");
}
