//! Many requests at once: none is lost at zero, and simultaneous ones get an instance each.

use std::collections::BTreeSet;

use http::Request;

use crate::function::HELLO;
use crate::harness::{Platform, Reply, able, send};

/// `n` requests at the same moment, each on a connection of its own.
async fn at_once(platform: &Platform, function: &str, n: usize) -> Vec<Reply> {
    let (gateway, host) = (platform.endpoint("gateway"), platform.host(function));
    let calls = (0..n).map(|_| {
        let (gateway, host) = (gateway.clone(), host.clone());
        tokio::spawn(async move {
            let request = Request::get("/").header("host", host).body(Default::default()).expect("a request");
            send(&gateway, request).await.expect("an answer")
        })
    });
    let mut replies = vec![];
    for call in calls.collect::<Vec<_>>() {
        replies.push(call.await.expect("the call ends"));
    }
    replies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_at_zero_all_answer() {
    if !able() {
        return;
    }
    let rounds = if std::env::var("DHOW_LONG").is_ok() { 50 } else { 5 };
    let platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    // A kubelet starts one or two pods a second on a small machine.
    let (rounds, count) = if platform.is_cluster() { (2, 30) } else { (rounds, 100) };
    for round in 0..rounds {
        platform.scale_to_zero("hello");
        let replies = at_once(&platform, "hello", count).await;
        for reply in &replies {
            assert_eq!(reply.status.as_u16(), 200, "round {round}: {}", reply.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_slow_calls_get_twenty_instances() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let seconds = if platform.is_cluster() { 40 } else { 5 };
    let slow = format!(
        "import os, time\n\ndef handle(request):\n    time.sleep({seconds})\n    return os.environ['HOSTNAME']\n"
    );
    platform.deploy("slow", &[("main.py", &slow)]);
    platform.scale_to_zero("slow");
    // Long calls, so that a busy machine starts the last instance before the first is free; how long one-second calls
    // take is measured by the benchmark.
    let replies = at_once(&platform, "slow", 20).await;
    let pods: BTreeSet<String> = replies.iter().map(Reply::text).collect();
    assert_eq!(pods.len(), 20, "every simultaneous event has an instance of its own: {pods:?}");
}
