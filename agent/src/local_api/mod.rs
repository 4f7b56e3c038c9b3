//! What the agent answers on this machine.
//!
//! | server | route | answer |
//! |---|---|---|
//! | health (127.0.0.1:9091) | `GET /livez` | the process lives: version, pid, uptime; always 200 |
//! | | `GET /readyz` | 200 once it serves, 503 while it drains |
//! | | `GET /health` | every check; 200 healthy, 503 unhealthy |
//! | metrics (127.0.0.1:9090) | `GET /metrics` | Prometheus text; OpenMetrics or JSON by `Accept` |
//! | | `GET /metrics.json` | the JSON form, whatever `Accept` says |
//! | | `GET /system` | facts of the machine, JSON |
//! | | `GET /alerts` | alerts that are open or were lately, and what the channels did |
//! | | `GET /summaries` | every series in short: count, min, max, avg, latest, percentiles |
//! | | `GET /queue` | the event queue, its books and its delivery |
//! | | `GET /health` | as on the health server |
//!
//! Both are servers of [`picket_localapi`].

mod alert_metrics;
mod hub_metrics;
mod ledger_metrics;
mod metrics;
mod records;
mod system_metrics;
mod update_metrics;
mod watch_metrics;

pub(crate) use alert_metrics::AlertCollector;
pub(crate) use hub_metrics::HubCollector;
pub(crate) use ledger_metrics::LedgerCollector;
pub(crate) use metrics::MetricsApi;
pub(crate) use records::RecordsApi;
pub(crate) use system_metrics::SystemCollector;
pub(crate) use update_metrics::UpdateCollector;
pub(crate) use watch_metrics::WatchCollector;
