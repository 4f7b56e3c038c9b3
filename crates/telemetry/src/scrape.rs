//! Metrics that are made from what somebody counts, at the moment of a scrape.

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt::Error;

/// The labels of one value.
pub type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes values that are taken at the scrape.
pub struct Scrape<'a>(pub DescriptorEncoder<'a>);

impl Scrape<'_> {
    /// One value for each set of labels.
    ///
    /// # Errors
    /// When it cannot be written, which a text never refuses.
    pub fn family<'l>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            let sample = family.encode_family(&labels)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value).encode(sample)?,
                _ => ConstGauge::new(value as f64).encode(sample)?,
            }
        }
        Ok(())
    }

    /// One measure for each set of labels; the unit becomes the end of the name.
    ///
    /// # Errors
    /// As above.
    pub fn measures<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, Some(unit), kind)?;
        for (labels, value) in values {
            let sample = family.encode_family(&labels)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value).encode(sample)?,
                _ => ConstGauge::new(value).encode(sample)?,
            }
        }
        Ok(())
    }

    /// A value that only grows.
    ///
    /// # Errors
    /// As above.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// A value that comes and goes.
    ///
    /// # Errors
    /// As above.
    pub fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> Result<(), Error> {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    /// Durations that were counted elsewhere: how many fell into each bucket, whose upper bounds are in seconds; the last
    /// count is of what is longer.
    ///
    /// # Errors
    /// As above.
    pub fn durations(&mut self, name: &str, help: &str, bounds: &[f64], counts: &[u64], sum: f64) -> Result<(), Error> {
        let buckets: Vec<(f64, u64)> = bounds.iter().copied().chain([f64::MAX]).zip(counts.iter().copied()).collect();
        let mut family = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        family.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }
}
