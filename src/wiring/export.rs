//! The log of the agent, and the export of its spans in builds that have it.

use crate::error::CommandError;
use crate::settings::Settings;
use picket_telemetry::{Listeners, LogControl, LogOptions, logs};

/// Sends spans until it is ended; nothing in builds without the feature `otel`, and where none is configured.
pub(crate) struct Export {
    #[cfg(feature = "otel")]
    exporter: Option<picket_telemetry::otel::Exporter>,
}

/// Sets up the log of the agent, and sends its spans where `otlp.endpoint` says so.
#[cfg(feature = "otel")]
pub(crate) fn log_and_export(
    settings: &Settings,
    options: &LogOptions,
    listeners: Listeners,
) -> Result<(LogControl, Export), CommandError> {
    use picket_telemetry::otel::{Exporter, OtlpOptions};
    let failed = |error| CommandError::system("cannot set up the export of spans", std::io::Error::other(error));
    let device_id = if settings.device_id.is_empty() {
        picket_agent::agent_id(std::path::Path::new("/etc/machine-id"))
    } else {
        settings.device_id.clone()
    };
    let version = crate::build::info().version.to_string();
    let network = crate::settings::network(settings);
    let asked = OtlpOptions::of(&settings.otlp, &options.identifier, &version, &device_id, network).map_err(failed)?;
    let Some(asked) = asked else {
        return Ok((logs::init_with(options, listeners)?, Export { exporter: None }));
    };
    let exporter = Exporter::new(&asked).map_err(failed)?;
    let control = logs::init_exporting(options, listeners, &exporter)?;
    tracing::info!(collector = %asked.endpoint, "spans are sent");
    Ok((control, Export { exporter: Some(exporter) }))
}

/// Sets up the log of the agent. A configuration that asks for an export was refused before.
#[cfg(not(feature = "otel"))]
pub(crate) fn log_and_export(
    _: &Settings,
    options: &LogOptions,
    listeners: Listeners,
) -> Result<(LogControl, Export), CommandError> {
    Ok((logs::init_with(options, listeners)?, Export {}))
}

impl Export {
    /// Sends what waits, for a short while.
    #[cfg(feature = "otel")]
    pub(crate) fn end(self) {
        let limit = std::time::Duration::from_secs(2);
        if self.exporter.is_some_and(|exporter| !exporter.stop(limit)) {
            tracing::warn!(?limit, "the last spans could not be sent");
        }
    }

    /// Nothing waits.
    #[cfg(not(feature = "otel"))]
    pub(crate) fn end(self) {}
}
