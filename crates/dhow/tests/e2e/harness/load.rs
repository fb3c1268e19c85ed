//! Requests that must not fail while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Platform, send};

/// Requests one after another until told to stop; says which failed.
pub struct Load {
    stop: Arc<AtomicBool>,
    running: JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    pub fn start(platform: &Platform, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (gateway, host, stopped) = (platform.endpoint("gateway"), platform.host(name), stop.clone());
        let running = tokio::spawn(async move {
            let (mut count, mut failed) = (0, vec![]);
            while !stopped.load(Ordering::Relaxed) {
                let request = Request::get("/").header("host", &host).body(Default::default()).expect("a request");
                match send(&gateway, request).await {
                    Ok(reply) if reply.status == 200 => {}
                    Ok(reply) => failed.push(format!("{}: {}", reply.status, reply.text())),
                    Err(error) => failed.push(error.to_string()),
                }
                count += 1;
                sleep(Duration::from_millis(20)).await;
            }
            (count, failed)
        });
        Self { stop, running }
    }

    pub async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, failed) = self.running.await.expect("the load ends");
        assert!(count > 0 && failed.is_empty(), "{} of {count} requests failed: {failed:?}", failed.len());
        println!("{count} requests, none failed");
    }
}
