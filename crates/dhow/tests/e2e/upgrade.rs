//! Another version of Dhow takes over while requests come.

use std::process::Command;

use crate::function::HELLO;
use crate::harness::{Load, Platform, always, on_cluster, said};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "replaces the installation: tests/cluster/run.sh"]
async fn an_upgrade_fails_no_request() {
    let Ok(install) = std::env::var("DHOW_TEST_INSTALL") else {
        return eprintln!("skipped: DHOW_TEST_INSTALL names no command");
    };
    if !on_cluster() {
        return;
    }
    let platform = Platform::start().await;
    platform.apply(&always("steady", 1));
    platform.serves("steady");
    platform.deploy("hello", HELLO);
    let before = platform.object("revision", "steady-00001");
    let loads = [Load::start(&platform, "steady").await, Load::start(&platform, "hello").await];
    let words: Vec<String> = install.split_whitespace().map(str::to_owned).collect();
    let run = move || Command::new(&words[0]).args(&words[1..]).output();
    let output = tokio::task::spawn_blocking(run).await.expect("it ends").expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    // What is new works, too.
    platform.deploy("after", HELLO);
    assert_eq!(platform.get("after", "/").await.status.as_u16(), 200);
    for load in loads {
        load.end().await;
    }
    let after = platform.object("revision", "steady-00001");
    assert_eq!(before["metadata"]["generation"], after["metadata"]["generation"], "an upgrade makes nothing anew");
}
