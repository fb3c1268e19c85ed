//! Several gateways before the same instances.

use std::sync::atomic::Ordering::SeqCst;

use http::Request;
use http_body_util::Full;
use tokio::task::JoinSet;

use crate::harness::{Client, HOST, Instance, Setup};

const GATEWAYS: &str = "dhow-gateway-internal";

/// Three gateways that know of each other, and the instances behind them.
async fn three(concurrency: i64, instances: &[Instance]) -> Vec<Setup> {
    let gateways: Vec<Setup> = [1, 2, 3].map(|n| Setup::gateway_at([127, 0, 0, n])).into();
    let names = ["gateway-1", "gateway-2", "gateway-3"];
    let known: Vec<_> = names.into_iter().zip(gateways.iter().map(|g| g.at.internal.unwrap())).collect();
    let pods: Vec<_> = ["a", "b", "c"].into_iter().zip(instances.iter().map(|i| i.at)).collect();
    for gateway in &gateways {
        gateway.instances(GATEWAYS, &known);
        gateway.instances("rev", &pods);
        gateway.route(concurrency);
    }
    gateways
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_concurrency_of_one_is_exact_over_all_of_them() {
    let instances = [Instance::start("a").await, Instance::start("b").await, Instance::start("c").await];
    let gateways = three(1, &instances).await;
    let mut clients = JoinSet::new();
    for number in 0..30 {
        let mut client = gateways[number % 3].client().await;
        clients.spawn(async move {
            for _ in 0..10 {
                assert_eq!(client.get("/slow").await.status, 200);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let served: usize = instances.iter().map(|i| i.seen.requests.load(SeqCst)).sum();
    assert_eq!(served, 300);
    for instance in &instances {
        assert_eq!(instance.seen.most.load(SeqCst), 1, "never two at once");
    }
    let counted = |gateway: &&Setup| gateway.metric("dhow_requests_total", &["revision=\"rev\""]) > 0.0;
    assert_eq!(gateways.iter().filter(counted).count(), 1, "one of them counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_introduced_once() {
    let instances = [Instance::start("a").await];
    for gateway in &three(1, &instances).await {
        assert_eq!(gateway.get("/").await.status, 200);
        let head = instances[0].seen.heads.lock().unwrap().pop().unwrap();
        let values = |name: &str| head.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(values("x-forwarded-for"), ["127.0.0.1"], "nobody between the client and its gateway");
        assert_eq!((values("forwarded").len(), values("x-request-id").len()), (1, 1), "{:?}", head.headers);
        assert!(values("dhow-passed-on").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_gone_is_replaced_before_it_is_known() {
    let instances = [Instance::start("a").await];
    let mut gateways = three(1, &instances).await;
    let counts = |gateway: &Setup| gateway.metric("dhow_requests_total", &["revision=\"rev\""]) > 0.0;
    assert_eq!(gateways[0].get("/").await.status, 200);
    let owner = gateways.iter().position(counts).unwrap();
    drop(gateways.remove(owner));
    for gateway in &gateways {
        assert_eq!(gateway.get("/").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_gateways_are_believed() {
    let instances = [Instance::start("a").await];
    let gateways = three(1, &instances).await;
    // From the outside the header means nothing, whatever it says.
    for gateway in &gateways {
        let mut client = Client::connect(gateway.at.public).await;
        let request = Request::get("/").header("host", HOST).header("dhow-passed-on", "other").body(Full::default());
        assert_eq!(client.send(request.unwrap()).await.status, 200);
    }
}
