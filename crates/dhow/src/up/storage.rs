//! The store's totals as metrics, and copies of its file: the store itself counts and copies, and does not know who
//! asks.

use std::path::Path;
use std::sync::Arc;

use apiserver::ObjectStore;
use futures::FutureExt;
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
            ("dhow_store_checkpoints", "Moves of the log into the file", totals.checkpoints),
            ("dhow_store_pauses", "Checkpoints that writes waited for", totals.pauses),
            ("dhow_store_overloaded", "Writes refused because the disk did not keep up", totals.overloaded),
            ("dhow_store_watches_overflowed", "Watches ended because they were read too slowly", totals.overflowed),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        Ok(())
    }
}

/// A copy for a client, made on a thread of its own beside the file itself, where there is room for files of that size.
/// It has no name any more when it is handed out, so nobody has to remove it.
pub fn backups(data_dir: &Path) -> platform::Backup {
    let file = crate::data::file(data_dir);
    let copy = data_dir.join("backup.tmp");
    Arc::new(move || {
        let (file, copy) = (file.clone(), copy.clone());
        let made = tokio::task::spawn_blocking(move || {
            // A platform that was killed over its backup leaves half of it.
            daemon::files::remove_if_present(&copy).map_err(std::io::Error::other)?;
            let made = store::backup(&file, &copy).map_err(std::io::Error::other);
            let opened = made.and_then(|()| std::fs::File::open(&copy));
            daemon::files::remove_if_present(&copy).map_err(std::io::Error::other)?;
            opened
        });
        async move { made.await.unwrap_or_else(|error| Err(std::io::Error::other(error))) }.boxed()
    })
}
