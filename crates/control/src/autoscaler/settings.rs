//! What a Revision's annotations say about its scaling, with Knative's constants where they are silent. Pure.

use api::autoscaling::PodAutoscaler;
use api::names::annotation;
use api::serving::scaling::{find, seconds};
use jiff::SignedDuration;

/// The period of decisions.
pub const TICK: SignedDuration = SignedDuration::from_secs(2);
/// How long a Revision may take to become active before it is given up: progress deadline and a margin.
pub const ACTIVATION_TIMEOUT: SignedDuration = SignedDuration::from_secs(600 + 30);
/// How long a network that must first be told to hold requests is given; the gateway needs none.
pub const SCALE_TO_ZERO_GRACE: SignedDuration = SignedDuration::from_secs(30);

const STABLE_WINDOW: SignedDuration = SignedDuration::from_secs(60);
const PANIC_WINDOW_PERCENT: f64 = 10.0;
const PANIC_THRESHOLD_PERCENT: f64 = 200.0;
const CONCURRENCY_TARGET: f64 = 100.0;
const RPS_TARGET: f64 = 200.0;
const TARGET_UTILIZATION_PERCENT: f64 = 70.0;
const TARGET_BURST_CAPACITY: f64 = 211.0;
const MAX_SCALE_UP_RATE: f64 = 1000.0;
const MAX_SCALE_DOWN_RATE: f64 = 2.0;
/// The smallest target: a division by zero is not a plan.
const MIN_TARGET: f64 = 0.01;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Concurrency,
    Rps,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub metric: Metric,
    /// The hard limit of one instance; 0 for none.
    pub container_concurrency: i64,
    /// What one instance can take.
    pub total: f64,
    /// What one instance should take.
    pub target: f64,
    pub burst_capacity: f64,
    pub stable_window: SignedDuration,
    pub panic_window: SignedDuration,
    /// Desired over ready at which panic starts.
    pub panic_threshold: f64,
    pub max_up_rate: f64,
    pub max_down_rate: f64,
    pub min: i32,
    /// 0 for no limit.
    pub max: i32,
    pub initial: i32,
    pub activation: i32,
    pub scale_down_delay: SignedDuration,
    /// How long the last instance stays after it was marked inactive.
    pub retention: SignedDuration,
    pub reachable: bool,
}

impl Settings {
    pub fn of(autoscaler: &PodAutoscaler) -> Self {
        let text = |name: &str| find(autoscaler.metadata.annotations.as_ref()?, name).map(|(_, value)| value);
        let float = |name: &str| text(name).and_then(|v| v.parse::<f64>().ok()).filter(|v| v.is_finite());
        let int = |name: &str| text(name).and_then(|v| v.parse::<i32>().ok()).filter(|v| *v >= 0);
        let span = |name: &str| text(name).and_then(seconds).filter(|s| *s >= 0.0).map(SignedDuration::from_secs_f64);
        let metric = if text(annotation::METRIC) == Some("rps") { Metric::Rps } else { Metric::Concurrency };
        let limit = autoscaler.spec.container_concurrency;
        let total = total(metric, limit, float(annotation::TARGET));
        let utilization = float(annotation::TARGET_UTILIZATION).unwrap_or(TARGET_UTILIZATION_PERCENT) / 100.0;
        let stable_window = span(annotation::WINDOW).unwrap_or(STABLE_WINDOW);
        let panic_percent = float(annotation::PANIC_WINDOW).unwrap_or(PANIC_WINDOW_PERCENT);
        Self {
            metric,
            container_concurrency: limit,
            total,
            target: (total * utilization).max(MIN_TARGET),
            burst_capacity: float(annotation::TARGET_BURST_CAPACITY).unwrap_or(TARGET_BURST_CAPACITY),
            stable_window,
            panic_window: SignedDuration::from_millis((stable_window.as_secs_f64() * panic_percent * 10.0) as i64),
            panic_threshold: float(annotation::PANIC_THRESHOLD).unwrap_or(PANIC_THRESHOLD_PERCENT) / 100.0,
            max_up_rate: MAX_SCALE_UP_RATE,
            max_down_rate: MAX_SCALE_DOWN_RATE,
            min: int(annotation::MIN_SCALE).unwrap_or(0),
            max: int(annotation::MAX_SCALE).unwrap_or(0),
            initial: int(annotation::INITIAL_SCALE).unwrap_or(1),
            activation: int(annotation::ACTIVATION_SCALE).unwrap_or(0),
            scale_down_delay: span(annotation::SCALE_DOWN_DELAY).unwrap_or_default(),
            retention: span(annotation::RETENTION).unwrap_or_default(),
            reachable: autoscaler.spec.reachability != "Unreachable",
        }
    }

    /// The most instances there may be.
    pub fn ceiling(&self) -> i32 {
        if self.max > 0 { self.max } else { i32::MAX }
    }
}

/// What one instance can take; an annotation replaces it, but never beyond the hard limit.
fn total(metric: Metric, limit: i64, annotated: Option<f64>) -> f64 {
    let hard = limit as f64;
    match (metric, annotated) {
        (Metric::Rps, target) => target.unwrap_or(RPS_TARGET),
        (Metric::Concurrency, Some(target)) if limit > 0 => target.min(hard),
        (Metric::Concurrency, Some(target)) => target,
        (Metric::Concurrency, None) if limit > 0 => hard,
        (Metric::Concurrency, None) => CONCURRENCY_TARGET,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals() {
        for (metric, limit, annotated, want) in [
            (Metric::Concurrency, 0, None, 100.0),
            (Metric::Concurrency, 1, None, 1.0),
            (Metric::Concurrency, 10, Some(5.0), 5.0),
            (Metric::Concurrency, 10, Some(50.0), 10.0),
            (Metric::Concurrency, 0, Some(50.0), 50.0),
            (Metric::Rps, 10, None, 200.0),
            (Metric::Rps, 10, Some(7.0), 7.0),
        ] {
            assert_eq!(total(metric, limit, annotated), want);
        }
    }
}
