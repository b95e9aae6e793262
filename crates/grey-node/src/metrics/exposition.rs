//! The text that a scrape gets.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeGaugeValue;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

/// What stands before the name of every metric.
const PREFIX: &str = "grey";

/// Labels of one value of a family, by name.
pub(super) type Labels = Vec<(&'static str, String)>;

/// One scrape under way.
pub(super) struct Exposition(Registry);

impl Exposition {
    pub(super) fn new() -> Exposition {
        Exposition(Registry::with_prefix(PREFIX))
    }

    /// A metric that is kept elsewhere.
    pub(super) fn metric(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.register(name, help, metric);
    }

    /// The version that runs.
    pub(super) fn info(&mut self, version: &'static str) {
        self.metric("build", "The version that runs", Info::new([("version", version)]));
    }

    /// A number that may go up and down.
    pub(super) fn gauge<N>(&mut self, name: &str, help: &str, value: N)
    where
        N: EncodeGaugeValue + core::fmt::Debug + Send + Sync + 'static,
    {
        self.metric(name, help, ConstGauge::new(value));
    }

    /// A number of bytes; its name ends in the unit.
    pub(super) fn bytes(&mut self, name: &str, help: &str, bytes: u64) {
        self.0.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes));
    }

    /// A time; its name ends in the unit.
    pub(super) fn seconds(&mut self, name: &str, help: &str, seconds: f64) {
        self.0.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(seconds));
    }

    /// How long something took, each time; the name ends in the unit.
    pub(super) fn durations(&mut self, name: &str, help: &str, durations: Histogram) {
        self.0.register_with_unit(name, help, Unit::Seconds, durations);
    }

    /// A number that only grows; `_total` is put behind the name.
    pub(super) fn total(&mut self, name: &str, help: &str, count: u64) {
        self.metric(name, help, ConstCounter::new(count));
    }

    /// The same, in seconds.
    pub(super) fn total_seconds(&mut self, name: &str, help: &str, seconds: f64) {
        self.0.register_with_unit(name, help, Unit::Seconds, ConstCounter::new(seconds));
    }

    /// Numbers that may go up and down, by their labels.
    pub(super) fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Gauge<u64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.metric(name, help, family);
    }

    /// Parts of a whole, by their labels; the name ends in the unit.
    pub(super) fn ratios(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register_with_unit(name, help, Unit::Other("ratio".to_owned()), family);
    }

    /// Numbers that only grow, by their labels.
    pub(super) fn totals(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.metric(name, help, family);
    }

    /// All of it as text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string fails only where a metric cannot be written, and none of these is such.
        let _ = encode(&mut text, &self.0);
        text
    }
}

/// The labels of a value with one label.
pub(super) fn label(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}
