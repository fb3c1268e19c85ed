//! Requests that must not fail while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{Platform, eventually, send};

/// Enough for every gateway to have had some.
const AT_FIRST: usize = 20;

/// Requests one after another until told to stop; says which failed.
pub struct Load {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Report>,
}

#[derive(Default)]
struct Report {
    count: usize,
    slowest: Duration,
    failed: Vec<String>,
}

impl Load {
    /// Once the first are answered.
    pub async fn start(platform: &Platform, name: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (gateway, host) = (platform.endpoint("gateway"), platform.host(name));
        let running = tokio::spawn(run(gateway, host, stop.clone(), answered.clone()));
        eventually("the load begins", || async {
            let count = answered.load(Ordering::Relaxed);
            if count >= AT_FIRST { Ok(()) } else { Err(count) }
        })
        .await;
        Self { stop, running }
    }

    pub async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let Report { count, slowest, failed } = self.running.await.expect("the load ends");
        assert!(failed.is_empty(), "{} of {count} requests failed: {failed:?}", failed.len());
        println!("{count} requests, none failed, the slowest took {slowest:?}");
    }
}

async fn run(gateway: String, host: String, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let request = Request::get("/").header("host", &host).body(Default::default()).expect("a request");
        match send(&gateway, request).await {
            Ok(reply) if reply.status == 200 => {}
            Ok(reply) => report.failed.push(format!("{}: {}", reply.status, reply.text())),
            Err(error) => report.failed.push(error.to_string()),
        }
        report.slowest = report.slowest.max(begin.elapsed());
        report.count += 1;
        answered.store(report.count, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
    report
}
