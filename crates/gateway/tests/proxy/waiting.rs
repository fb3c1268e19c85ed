//! Slots, the queue, and what is said while requests wait.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use api::wire::{InstanceStarted, RevisionKey, Traffic};
use bytes::Bytes;
use gateway::Limits;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{Client, HOST, Instance, Reply, Setup, soon, tally, until};

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", HOST).body(Full::default()).unwrap()
}

async fn burst(setup: &Setup, count: usize, path: &'static str) -> JoinSet<Reply> {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let mut client = setup.client().await;
        calls.spawn(async move { client.get(path).await });
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_concurrency_of_one_is_exact() {
    let setup = Setup::new();
    let instances = [Instance::start("a").await, Instance::start("b").await, Instance::start("c").await];
    let all: Vec<_> = ["a", "b", "c"].into_iter().zip(instances.iter().map(|i| i.at)).collect();
    setup.instances("rev", &all);
    setup.route(1);
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let mut client = setup.client().await;
        clients.spawn(async move {
            for _ in 0..20 {
                assert_eq!(client.get("/slow").await.status, 200);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let served: usize = instances.iter().map(|i| i.seen.requests.load(SeqCst)).sum();
    assert_eq!(served, 64 * 20);
    for instance in &instances {
        assert_eq!(instance.seen.most.load(SeqCst), 1, "never two at once");
        assert!(instance.seen.requests.load(SeqCst) > 100, "all of them work");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_an_instance_and_the_autoscaler_is_told_at_once() {
    let mut setup = Setup::new();
    setup.route(0);
    let calls = burst(&setup, 50, "/").await;
    let first = setup.poke().await;
    assert_eq!((first.key.namespace.as_str(), first.key.revision.as_str()), ("default", "rev"));
    let mut pokes = 1;
    let mut last = first;
    while last.queued < 50 {
        last = setup.poke().await;
        pokes += 1;
    }
    assert_eq!((last.queued, last.in_flight), (50, 0));
    assert!(pokes < 50, "a burst is not one poke per request");
    assert_eq!(setup.metric("dhow_queue_depth", &["revision=\"rev\""]), 50.0);
    assert_eq!(setup.poke().await.queued, 50, "told again while they wait");
    let instance = Instance::start("rev").await;
    setup.feed.started(&InstanceStarted { key: last.key, sandbox_seconds: 0.25, runtime_seconds: 0.5 });
    setup.instances("rev", &[("rev-1", instance.at)]);
    let replies = soon("all answers", calls.join_all()).await;
    assert_eq!(tally(&replies), [("200 rev".to_owned(), 50)].into());
    assert_eq!(instance.seen.requests.load(SeqCst), 50, "each once");
    let metrics = setup.metrics();
    for (name, labels, want) in [
        ("dhow_requests_total", &["service=\"hello\"", "revision=\"rev\"", "code=\"200\""][..], 50.0),
        ("dhow_request_seconds_count", &["revision=\"rev\""], 50.0),
        ("dhow_queue_depth", &["revision=\"rev\""], 0.0),
        ("dhow_instances", &["revision=\"rev\"", "namespace=\"default\""], 1.0),
        ("dhow_cold_starts_total", &["revision=\"rev\""], 50.0),
        ("dhow_cold_start_seconds_count", &["phase=\"queued\""], 50.0),
        ("dhow_cold_start_seconds_count", &["phase=\"first_byte\""], 50.0),
        ("dhow_cold_start_seconds_count", &["phase=\"scheduled\""], 1.0),
        ("dhow_cold_start_seconds_sum", &["phase=\"sandbox\""], 0.25),
        ("dhow_cold_start_seconds_sum", &["phase=\"runtime\""], 0.5),
    ] {
        assert_eq!(setup.metric(name, labels), want, "{name} {labels:?} in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_first_in_first_out() {
    let mut setup = Setup::new();
    setup.route(1);
    let mut calls = JoinSet::new();
    for number in 0..8 {
        let mut client = setup.client().await;
        calls.spawn(async move { client.send(get(&format!("/{number}"))).await });
        while setup.poke().await.queued <= number {}
    }
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    soon("all answers", calls.join_all()).await;
    let order: Vec<_> = instance.seen.heads.lock().unwrap().iter().map(|head| head.uri.path().to_owned()).collect();
    assert_eq!(order, ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_refused_and_a_gone_client_leaves_it() {
    let setup = Setup::with(Limits { queue: 3, ..Limits::default() }, Duration::from_secs(5));
    setup.route(1);
    let mut calls = burst(&setup, 3, "/").await;
    until("three wait", || setup.metric("dhow_queue_depth", &["revision"]) == 3.0).await;
    let refused = setup.client().await.send(get("/")).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.headers.contains_key("retry-after") && refused.text().contains("queue"), "{}", refused.text());
    calls.shutdown().await;
    until("nobody waits", || setup.metric("dhow_queue_depth", &["revision"]) == 0.0).await;
    until("they are counted", || setup.metric("dhow_requests_total", &["code=\"499\""]) == 3.0).await;
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    assert_eq!(setup.get("/").await.status, 200);
    assert_eq!(instance.seen.requests.load(SeqCst), 1, "the gone clients' requests were not sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_frees_its_slot() {
    let setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(1);
    let mut calls = burst(&setup, 1, "/hold").await;
    until("it is held", || instance.seen.now.load(SeqCst) == 1).await;
    calls.shutdown().await;
    assert_eq!(setup.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_late_is_504() {
    let setup = Setup::new();
    setup.route_with(json!({"timeoutSeconds": 1}));
    let queued = setup.get("/").await;
    assert_eq!(queued.status, 504, "{}", queued.text());
    assert!(queued.text().contains("request timeout"), "{}", queued.text());
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    let request = Request::get("/hold").header("host", HOST).header("accept", "application/json");
    let sent = setup.client().await.send(request.body(Full::default()).unwrap()).await;
    assert_eq!((sent.status, sent.headers["content-type"].to_str().unwrap()), (504, "application/json"));
    let json: serde_json::Value = serde_json::from_slice(&sent.body).unwrap();
    assert_eq!((json["error"].as_str(), json["service"].as_str()), (Some("Timeout"), Some("hello")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_cannot_start_says_so_and_may_recover() {
    let mut setup = Setup::new();
    setup.route(1);
    let condition =
        json!([{"type": "ContainerHealthy", "status": "False", "reason": "ExitCode1", "message": "no module x"}]);
    setup.revision("rev", condition);
    let call = tokio::spawn({
        let mut client = setup.client().await;
        async move { client.send(get("/")).await }
    });
    assert_eq!(setup.poke().await.queued, 1, "it is given another chance");
    let reply = soon("the answer", call).await.unwrap();
    assert_eq!(reply.status, 503);
    for part in ["ExitCode1", "no module x", "dhow logs hello"] {
        assert!(reply.text().contains(part), "{}", reply.text());
    }
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    assert_eq!(setup.get("/").await.status, 200, "a ready instance counts more than a condition");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_say_what_was_going_on_and_end_with_zero() {
    let mut setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    let calls = burst(&setup, 4, "/hold").await;
    let busy = setup.report(|stat| stat.in_flight == 4 && stat.average_concurrency > 3.9).await;
    assert_eq!((busy.instances[0].pod.as_str(), busy.instances[0].in_flight), ("rev-1", 4));
    until("all are there", || instance.seen.now.load(SeqCst) == 4).await;
    instance.seen.release.notify_waiters();
    calls.join_all().await;
    let idle = setup.report(|stat| stat.in_flight == 0 && stat.average_concurrency == 0.0).await;
    assert_eq!((idle.requests_per_second, idle.instances[0].in_flight), (0.0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_may_end_once_its_last_request_is_over() {
    // Whether its slice, or the Ingress that leads to it, goes before the node asks, or never.
    for (slice_goes, route_goes) in [(false, false), (true, false), (false, true)] {
        let setup = Setup::new();
        let (old, new) = (Instance::start("old").await, Instance::start("new").await);
        let key = RevisionKey { namespace: "default".into(), revision: "rev".into() };
        setup.instances("rev", &[("rev-1", old.at)]);
        setup.route(0);
        let calls = burst(&setup, 2, "/hold").await;
        until("both are there", || old.seen.now.load(SeqCst) == 2).await;
        if slice_goes {
            setup.instances("rev", &[("rev-2", new.at)]);
        }
        if route_goes {
            setup.ingress(json!([]));
        }
        let mut over = setup.feed.leaves(&key, "rev-1");
        assert!(futures::poll!(over.as_mut()).is_pending(), "it has requests");
        if !route_goes {
            setup.instances("rev", &[("rev-1", old.at), ("rev-2", new.at)]);
            assert_eq!(setup.get("/").await.text(), "new", "it gets no new ones, whatever its slice says");
        }
        old.seen.release.notify_waiters();
        soon("the last is over", over).await;
        assert!(calls.join_all().await.iter().all(|reply| reply.status == 200));
        soon("nothing is left to wait for", setup.feed.leaves(&key, "rev-1")).await;
        setup.feed.left(&key, "rev-1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_leaves_finishes_what_it_has() {
    let setup = Setup::new();
    let (old, new) = (Instance::start("old").await, Instance::start("new").await);
    setup.instances("rev", &[("old", old.at)]);
    setup.route(0);
    let mut calls = burst(&setup, 3, "/hold").await;
    until("the old one has them", || old.seen.now.load(SeqCst) == 3).await;
    setup.instances("rev", &[("new", new.at)]);
    for _ in 0..10 {
        assert_eq!(setup.get("/").await.text(), "new");
    }
    old.seen.release.notify_waiters();
    while let Some(reply) = calls.join_next().await {
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "old"));
    }
    assert_eq!(old.seen.requests.load(SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_loses_nothing() {
    let mut setup = Setup::new();
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    let mut idle = setup.client().await;
    assert_eq!(idle.get("/").await.status, 200);
    let calls = burst(&setup, 20, "/hold").await;
    until("all are held", || instance.seen.now.load(SeqCst) == 20).await;
    setup.shutdown.cancel();
    until("it no longer listens", || std::net::TcpStream::connect(setup.at.public).is_err()).await;
    assert!(idle.try_send(get("/")).await.is_err(), "idle connections are closed");
    instance.seen.release.notify_waiters();
    let replies = calls.join_all().await;
    assert_eq!(tally(&replies), [("200 rev".to_owned(), 20)].into());
    assert!(replies.iter().all(|reply| reply.headers["connection"] == "close"), "{:?}", replies[0]);
    soon("the gateway to end", setup.served.take().unwrap()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_ends_with_its_grace() {
    let mut setup = Setup::with(Limits::default(), Duration::from_millis(100));
    let instance = Instance::start("rev").await;
    setup.instances("rev", &[("rev-1", instance.at)]);
    setup.route(0);
    let mut client: Client = setup.client().await;
    let call = tokio::spawn(async move { client.try_send(get("/hold")).await.is_err() });
    until("it is held", || instance.seen.now.load(SeqCst) == 1).await;
    setup.shutdown.cancel();
    soon("the gateway to end", setup.served.take().unwrap()).await.unwrap().unwrap();
    assert!(call.await.unwrap(), "what outlasts the grace is cut");
}
