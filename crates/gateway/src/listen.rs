//! Listening sockets, one per thread on each address.
//!
//! Owns: binding. Must not know: what is served. The surprise: SO_REUSEPORT would let a second gateway of the same user
//! share the port in silence, so the address is first bound without it, and only then once per thread with it.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::GatewayError;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// One listener per thread, all on the same address; port 0 picks a free one.
pub(crate) fn bind(address: SocketAddr, threads: usize) -> Result<(SocketAddr, Vec<TcpListener>), GatewayError> {
    let failed = |source| GatewayError::Bind { address, source };
    let probe = socket(address, false).map_err(failed)?;
    let bound: SocketAddr = TcpListener::from(probe).local_addr().map_err(failed)?;
    let all: std::io::Result<Vec<TcpListener>> = (0..threads).map(|_| Ok(socket(bound, true)?.into())).collect();
    Ok((bound, all.map_err(failed)?))
}

fn socket(address: SocketAddr, share: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_that_names_it_even_among_gateways() {
        let (address, _first) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let error = bind(address, 2).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    }
}
