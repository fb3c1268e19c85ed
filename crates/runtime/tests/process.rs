//! The process provider against this machine's kernel, as root. The test binary is its own launcher.

#[macro_use]
mod harness;

use std::sync::Arc;
use std::time::Duration;

use harness::*;
use runtime::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() {
    harness::main(&tests![serves_from_inside, python_from_its_zygote]);
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

async fn get(address: &Address, path: &str) -> String {
    let Address::Ip(ip) = address else { panic!("no ip") };
    let mut stream = tokio::net::TcpStream::connect(ip).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    text
}

async fn python_from_its_zygote() {
    let platform = Platform::start().await;
    let code = platform
        .code("code", "import os\ndef handle(request):\n    return f'{os.getuid()} {os.getpid()} {request.path}'\n");
    platform.provider.create(Arc::new(function("f1", &code))).await.expect("created");
    let one = platform.ready("f1").await;
    let answer = get(one.address.as_ref().expect("an address"), "/x").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    println!("{answer}");
    platform.provider.stop("f1", Duration::from_secs(5)).await.expect("stopped");
    platform.provider.shutdown().await;
}
