//! The process provider against this machine's kernel, as root. The test binary is its own launcher.

mod harness;

use std::sync::Arc;
use std::time::Duration;

use harness::*;
use runtime::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() {
    harness::main(&[("serves_from_inside", || Box::pin(serves_from_inside()))]);
}

async fn ask(address: &Address) -> std::io::Result<String> {
    let mut text = String::new();
    match address {
        Address::Ip(ip) => {
            let mut stream = tokio::net::TcpStream::connect(ip).await?;
            stream.write_all(b"x").await?;
            stream.read_to_string(&mut text).await?;
        }
        Address::Unix(path) => {
            let mut stream = tokio::net::UnixStream::connect(path).await?;
            stream.write_all(b"x").await?;
            stream.read_to_string(&mut text).await?;
        }
    }
    Ok(text)
}

async fn serves_from_inside() {
    let platform = Platform::start().await;
    println!("{:?} {:?}", platform.provider.capabilities(), platform.provider.host_address());
    platform.provider.create(Arc::new(server("a"))).await.expect("created");
    let sandbox = platform.ready("a").await;
    let address = sandbox.address.expect("an address");
    let answer = ask(&address).await.expect("an answer");
    assert!(answer.starts_with("hello from 20"), "{answer}");
    platform.provider.stop("a", Duration::from_millis(100)).await.expect("stopped");
    assert!(platform.provider.list().await.expect("a list").is_empty());
    platform.provider.shutdown().await;
}
