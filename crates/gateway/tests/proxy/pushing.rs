//! Messages to an autoscaler of another process, which is found by its Lease.

use std::net::SocketAddr;

use api::wire::{GatewayMessage, MESSAGES_PATH, Poke, RevisionKey};
use futures::SinkExt;
use futures::channel::mpsc as events;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, read_head, scripted, soon, until};
use crate::watching::{api_server, event};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/dhow-system/leases";

fn lease(holder: &str, version: u32) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "autoscaler", "namespace": "dhow-system", "resourceVersion": version.to_string()},
        "spec": {"holderIdentity": holder}})
}

fn poke(queued: u32) -> GatewayMessage {
    let key = RevisionKey { namespace: "default".into(), revision: "rev".into() };
    GatewayMessage::Poke(Poke { key, gateway: "gateway-0".into(), queued, in_flight: 0 })
}

/// Answers each POST with `status`; a status of 0 closes the connection instead. Tells the connection's number and what
/// came on it.
async fn autoscaler(
    status: u16,
    limit: usize,
) -> (SocketAddr, mpsc::Receiver<(usize, Vec<GatewayMessage>)>, JoinSet<()>) {
    let (told, posts) = mpsc::channel(64);
    let number = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (at, tasks) = scripted(move |mut stream: TcpStream| {
        let told = told.clone();
        let number = number.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            for _ in 0..limit {
                let Some(head) = read_head(&mut stream).await else { return };
                assert!(head.starts_with(&format!("POST {MESSAGES_PATH} HTTP/1.1\r\n")), "{head}");
                let length = head.to_lowercase().split("content-length: ").nth(1).unwrap().to_owned();
                let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
                stream.read_exact(&mut body).await.unwrap();
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                told.send((number, serde_json::from_slice(&body).unwrap())).await.unwrap();
            }
        }
    })
    .await;
    (at, posts, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_follow_the_lease() {
    let setup = Setup::on_cluster();
    let (mut leases, lease_events) = events::channel(4);
    let client = api_server(json!({}), vec![(LEASES, lease_events)]);
    let (messages, to_push) = mpsc::channel(64);
    let (feed, shutdown) = (setup.feed.clone(), CancellationToken::new());
    let stop = shutdown.clone();
    let pushing = tokio::spawn(async move {
        gateway::push(&feed, client, "autoscaler", "dhow-system", to_push, stop).await;
    });
    let dropped = || setup.metric("dhow_gateway_messages_dropped_total", &[]);

    messages.send(poke(1)).await.unwrap();
    until("a message without a receiver to be dropped", || dropped() == 1.0).await;

    // Every third message on a connection finds it closed, and goes on a new one.
    let (first, mut posts, _first_tasks) = autoscaler(202, 2).await;
    leases.send(event("ADDED", lease(&format!("autoscaler-1@{first}"), 2))).await.unwrap();
    let mut seen = vec![];
    let mut number = 2;
    while seen.len() < 5 {
        messages.send(poke(number)).await.unwrap();
        // Until the lease was seen a message may still be lost.
        let lost = dropped();
        let next = soon("a post or a loss", async {
            loop {
                if let Ok(post) = posts.try_recv() {
                    return Some(post);
                }
                if dropped() > lost {
                    return None;
                }
                tokio::task::yield_now().await;
            }
        });
        seen.extend(next.await.map(|(connection, post)| {
            assert_eq!(post, [poke(number)]);
            connection
        }));
        number += 1;
    }
    assert_eq!(seen, [0, 0, 1, 1, 2], "a connection is kept, and replaced without loss");

    let (second, mut posts, _second_tasks) = autoscaler(503, usize::MAX).await;
    leases.send(event("MODIFIED", lease(&format!("autoscaler-2@{second}"), 3))).await.unwrap();
    let before = dropped();
    while posts.try_recv().is_err() {
        messages.send(poke(number)).await.unwrap();
        tokio::task::yield_now().await;
    }
    until("a refused message to be counted", || dropped() > before).await;

    shutdown.cancel();
    soon("the end", pushing).await.unwrap();
}
