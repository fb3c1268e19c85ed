//! The only way out of a build: an HTTP proxy that opens tunnels to a few hosts.
//!
//! Owns: which destinations a build may reach, and the bounds of doing so. Must not know builds. The surprise: names
//! are resolved here and the address is checked before it is dialled, so that a name on the list that points into a
//! private network leads nowhere.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Tunnels at once; the next one waits in the listener's backlog.
const CONNECTIONS: usize = 128;
/// How long a caller may take to say where it wants to go, and the other side to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// No tunnel outlives the longest build by much.
const LIFETIME: Duration = Duration::from_secs(900);

pub struct Egress {
    listener: TcpListener,
    hosts: Arc<[String]>,
}

/// What the caller asked for and got: both ends of a tunnel.
type Ends = (hyper::upgrade::OnUpgrade, TcpStream);

impl Egress {
    pub async fn bind(listen: SocketAddr, hosts: &[String]) -> io::Result<Self> {
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { listener: TcpListener::bind(listen).await?, hosts })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until shutdown, then drops every tunnel.
    pub async fn run(self, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut tunnels = JoinSet::new();
        loop {
            let place = tokio::select! {
                () = shutdown.cancelled() => return,
                place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            while tunnels.try_join_next().is_some() {}
            match accepted {
                Ok((connection, _)) => {
                    let hosts = self.hosts.clone();
                    tunnels.spawn(async move {
                        let served = tokio::time::timeout(LIFETIME, serve(connection, hosts)).await;
                        tracing::debug!(?served, "a tunnel ended");
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the build proxy cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(connection: TcpStream, hosts: Arc<[String]>) -> io::Result<()> {
    let (opened, mut tunnel) = oneshot::channel::<Ends>();
    let opened = std::sync::Mutex::new(Some(opened));
    let service = service_fn(|mut request: Request<Incoming>| {
        let opened = opened.lock().ok().and_then(|mut slot| slot.take());
        let hosts = hosts.clone();
        async move {
            let answer = match open(&request, &hosts).await {
                Ok(upstream) => {
                    let ends = (hyper::upgrade::on(&mut request), upstream);
                    match opened.map(|opened| opened.send(ends)) {
                        Some(Ok(())) => Response::new(Full::default()),
                        // The connection is gone, or carries a tunnel already.
                        _ => refuse(StatusCode::BAD_REQUEST, "one tunnel per connection"),
                    }
                }
                Err((status, text)) => refuse(status, &text),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    http.serve_connection(TokioIo::new(connection), service).with_upgrades().await.map_err(io::Error::other)?;
    let Ok((upgrade, mut upstream)) = tunnel.try_recv() else { return Ok(()) };
    let caller = upgrade.await.map_err(io::Error::other)?;
    tokio::io::copy_bidirectional(&mut TokioIo::new(caller), &mut upstream).await.map(|_| ())
}

async fn open(request: &Request<Incoming>, hosts: &[String]) -> Result<TcpStream, (StatusCode, String)> {
    let (host, port) = destination(request.method(), request.uri(), hosts)?;
    let bad_gateway = |what: String| (StatusCode::BAD_GATEWAY, what);
    let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host.as_str(), port))).await;
    let found = found.map_err(|_| bad_gateway(format!("{host} was not resolved in time")))?;
    let found: Vec<SocketAddr> = found.map_err(|error| bad_gateway(format!("{host}: {error}")))?.collect();
    let public: Vec<SocketAddr> = found.into_iter().filter(|address| is_public(address.ip())).collect();
    if public.is_empty() {
        return Err((StatusCode::FORBIDDEN, format!("{host} has no public address")));
    }
    let dialled = tokio::time::timeout(PATIENCE, TcpStream::connect(public.as_slice())).await;
    let dialled = dialled.map_err(|_| bad_gateway(format!("{host} did not answer in time")))?;
    dialled.map_err(|error| bad_gateway(format!("{host}: {error}")))
}

/// Where a request may go, or what it is told.
fn destination(method: &Method, uri: &http::Uri, hosts: &[String]) -> Result<(String, u16), (StatusCode, String)> {
    if method != Method::CONNECT {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only CONNECT is served here: use https".into()));
    }
    let host = uri.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or_default();
    if port != 443 || !hosts.contains(&host) {
        let text = format!("a build may not reach {host}:{port}; it may reach port 443 of {}", hosts.join(", "));
        return Err((StatusCode::FORBIDDEN, text));
    }
    Ok((host, port))
}

fn refuse(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    tracing::debug!(%status, text, "the build proxy refused");
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response
}

/// Whether an address is out in the world: not this machine, its networks, or a cloud's metadata.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped().or_else(|| embedded(v6)) {
            Some(v4) => is_public_v4(v4),
            None => {
                let first = v6.segments()[0];
                // Global unicast only: the loopback, local, link-local and multicast ranges lie outside.
                first & 0xe000 == 0x2000
            }
        },
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b);
    !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || a == 0 || a >= 240 || shared)
}

/// The IPv4 address behind a translated one (NAT64, 6to4).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0x64, 0xff9b, ..] => Some(v4(s[6], s[7])),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn public_addresses() {
        for (address, want) in [
            ("151.101.0.223", true),
            ("2a04:4e42::223", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("ff02::1", false),
            ("::ffff:10.0.0.1", false),
            ("64:ff9b::a00:1", false),
            ("2002:a00:1::", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), want, "{address}");
        }
    }

    /// Sends bytes to a proxy that allows two names and reads its answer up to the end or the blank line.
    async fn ask(request: &str) -> String {
        let hosts = ["pypi.org".to_owned(), "localhost".to_owned()];
        let egress = Egress::bind(([127, 0, 0, 1], 0).into(), &hosts).await.unwrap();
        let address = egress.address().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(egress.run(shutdown.clone()));
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![];
        let mut byte = [0];
        while connection.read(&mut byte).await.unwrap() == 1 {
            answer.push(byte[0]);
            if answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        shutdown.cancel();
        serving.await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn refuses_everything_else() {
        for (request, status, text) in [
            ("GET http://pypi.org/ HTTP/1.1\r\nHost: pypi.org\r\n\r\n", "405", "only CONNECT"),
            ("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", "403", "may not reach example.com:443"),
            ("CONNECT pypi.org:80 HTTP/1.1\r\nHost: pypi.org\r\n\r\n", "403", "may not reach pypi.org:80"),
            ("CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n", "403", "may not reach 10.0.0.1:443"),
            ("CONNECT localhost:443 HTTP/1.1\r\nHost: x\r\n\r\n", "403", "localhost has no public address"),
            ("nonsense\r\n\r\n", "400", ""),
        ] {
            let answer = ask(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
            assert!(answer.contains(text), "{answer}");
        }
    }

    #[tokio::test]
    async fn opens_a_tunnel() {
        let resolved = tokio::net::lookup_host(("pypi.org", 443)).await;
        if !resolved.is_ok_and(|mut found| found.any(|address| is_public(address.ip()))) {
            eprintln!("skipped: pypi.org has no public address here");
            return;
        }
        let answer = ask("CONNECT PyPI.org.:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
