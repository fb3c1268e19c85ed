//! The store's totals as metrics: the store itself counts, and does not know who asks.

use apiserver::ObjectStore;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

pub struct Counting(pub ObjectStore);

impl std::fmt::Debug for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counting").finish_non_exhaustive()
    }
}

impl Collector for Counting {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let totals = self.0.counters();
        for (name, help, value) in [
            ("dhow_store_writes", "Objects written or deleted", totals.writes),
            ("dhow_store_commits", "Transactions, each one fsync", totals.commits),
            ("dhow_store_overloaded", "Writes refused because the disk did not keep up", totals.overloaded),
            ("dhow_store_watches_overflowed", "Watches ended because they were read too slowly", totals.overflowed),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        Ok(())
    }
}
