//! Visits to pods as metrics: the API server counts them, and does not know who asks.

use apiserver::ApiServer;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

pub struct Visits(pub ApiServer);

impl std::fmt::Debug for Visits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Visits").finish_non_exhaustive()
    }
}

impl Collector for Visits {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (open, begun) = self.0.visits();
        let mut counters = encoder.encode_descriptor(
            "dhow_visits",
            "Visits to pods: exec, attach, port-forward",
            None,
            MetricType::Counter,
        )?;
        for (kind, count) in begun {
            ConstCounter::new(count).encode(counters.encode_family(&[("kind", kind)])?)?;
        }
        let gauge = encoder.encode_descriptor("dhow_visits_open", "Visits that go on", None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(open).unwrap_or(i64::MAX)).encode(gauge)
    }
}
