//! Temperatures, through sysinfo: the sensors of `/sys/class/hwmon`, or the thermal zones where there are none.
//!
//! sysinfo names a sensor after its chip, its label and its device's model; two sensors of one name are one to it. A
//! virtual machine usually has none, which is an empty list and no error.

use serde::{Deserialize, Serialize};
use sysinfo::Components;

/// The most sensors that are told apart: each is a label value in the metrics.
pub const MAX_SENSORS: usize = 64;
/// What a sensor can mean, in degrees Celsius; drivers report nonsense for sensors that are not there.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = -100.0..=250.0;

/// Each sensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TemperatureSample {
    /// By name.
    pub sensors: Vec<Sensor>,
}

/// One sensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensor {
    /// What it is called.
    pub sensor: String,
    /// Degrees Celsius.
    pub celsius: f64,
    /// From how many degrees on its maker calls it critical.
    pub critical_celsius: Option<f64>,
}

impl TemperatureSample {
    /// The hottest sensor.
    pub fn hottest(&self) -> Option<&Sensor> {
        self.sensors.iter().max_by(|a, b| a.celsius.total_cmp(&b.celsius))
    }
}

/// Measures temperatures.
pub(super) struct TemperatureCollector {
    components: Option<Components>,
}

impl TemperatureCollector {
    pub(super) fn new() -> Self {
        // It fails only on systems that sysinfo does not know.
        Self { components: Components::new().ok() }
    }

    pub(super) fn sample(&mut self) -> TemperatureSample {
        let Some(components) = &mut self.components else { return TemperatureSample::default() };
        components.refresh(true);
        let sensors = components.iter().filter_map(|component| {
            let celsius = f64::from(component.temperature()?);
            PLAUSIBLE.contains(&celsius).then(|| Sensor {
                sensor: super::text::printable(component.label().as_bytes(), 64),
                celsius,
                critical_celsius: component.critical().map(f64::from).filter(|limit| PLAUSIBLE.contains(limit)),
            })
        });
        let mut sensors: Vec<Sensor> = sensors.collect();
        sensors.sort_by(|a, b| a.sensor.cmp(&b.sensor));
        sensors.dedup_by(|a, b| a.sensor == b.sensor);
        sensors.truncate(MAX_SENSORS);
        TemperatureSample { sensors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_sensors_has_an_empty_list_and_one_with_has_each_once() {
        let sample = TemperatureCollector::new().sample();
        let mut names: Vec<&str> = sample.sensors.iter().map(|sensor| sensor.sensor.as_str()).collect();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(sample.hottest().is_some(), count > 0);
        assert!(sample.sensors.iter().all(|sensor| PLAUSIBLE.contains(&sensor.celsius)));
    }
}
