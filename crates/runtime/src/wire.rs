//! What the process provider and its launcher say to each other, and how it travels.
//!
//! Owns the messages and the socket between the two. Must not know what either does with them. One message is one
//! packet of JSON, and descriptors travel beside it. Both ends are the same binary, so nothing is versioned.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::launcher::{Cidr, adopt};
use crate::provider::{Address, ContainerSpec, SandboxSpec};

/// The longest message; it fits the default buffer of a socket.
pub const MESSAGE_BYTES: usize = 160 << 10;
/// The most descriptors beside one message, well below the kernel's 253.
pub const MESSAGE_FDS: usize = 128;

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first message.
    Start(Box<Start>),
    /// Beside it, the file system of each volume; then, for each container: standard output, standard error, and for [`Serve::Socket`] the pipe that says
    /// it is ready.
    Create(Box<SandboxSpec>),
    Stop {
        uid: String,
        grace_ms: u64,
    },
    /// Lets pods reach one TCP address of the platform.
    Permit {
        address: SocketAddrV4,
    },
    /// Starts a program beside a container's own. Beside it: standard input if it has one, standard output and
    /// standard error; or a terminal and nothing else.
    Visit(Box<Visit>),
    /// Kills the program of a visit, if it still runs.
    Leave {
        visit: u64,
    },
    /// Wants sockets made in a sandbox's network.
    Sockets {
        visit: u64,
        uid: String,
    },
    Shutdown,
}

/// A program to start beside a container's own. `visit` is a number that the provider never uses twice.
#[derive(Debug, Serialize, Deserialize)]
pub struct Visit {
    pub visit: u64,
    pub uid: String,
    /// Its place among the sandbox's containers, and what it was made of.
    pub place: usize,
    pub container: ContainerSpec,
    pub argv: Vec<String>,
    pub input: bool,
    pub terminal: bool,
}

/// Sockets made for one connection: a failed attempt uses one up, and there are two addresses to try.
pub const SOCKETS: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    pub data_dir: PathBuf,
    /// The runtimes' files, or nothing to mount.
    pub assets: PathBuf,
    pub python: PathBuf,
    pub pod_cidr: Option<Cidr>,
    pub uid_base: Option<u32>,
    pub allow: Vec<SocketAddrV4>,
    pub dns: Vec<Ipv4Addr>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The answer to [`Request::Start`].
    Hello(Hello),
    /// The other answer to [`Request::Start`]; the launcher ends after it.
    Failed {
        reason: String,
    },
    /// Its containers run, up to the first that others wait for.
    Created {
        uid: String,
        address: Option<Address>,
    },
    /// A container that had waited runs.
    Started {
        uid: String,
        container: usize,
    },
    Refused {
        uid: String,
        refusal: Refusal,
    },
    Exited {
        uid: String,
        container: usize,
        status: Status,
        out_of_memory: bool,
    },
    /// Nothing of it is left.
    Stopped {
        uid: String,
    },
    Permitted {
        address: SocketAddrV4,
    },
    /// The visit has begun. Beside it are [`SOCKETS`] of them, if sockets were wanted.
    Entered {
        visit: u64,
    },
    NotEntered {
        visit: u64,
        refusal: Refusal,
    },
    /// The program of a visit has ended.
    Left {
        visit: u64,
        status: Status,
    },
    /// For an operator's eyes.
    Notice {
        text: String,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Hello {
    pub slot: Option<u32>,
    /// The host's address as pods see it; absent where pods have no network.
    pub host_address: Option<Ipv4Addr>,
    pub missing_isolation: Vec<String>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Code(i32),
    Signal(i32),
}

/// Why a sandbox was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    Unsupported {
        reason: String,
    },
    Invalid {
        reason: String,
    },
    /// It has not entered its sandbox yet, or has ended.
    NotRunning,
    Exhausted {
        what: Resource,
    },
    Failed {
        action: String,
        errno: Option<i32>,
        text: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    Sandboxes,
    Descriptors,
}

/// A connected pair of sockets that keep message boundaries.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message; waits while the socket has no room.
pub fn send(socket: impl AsFd, message: &impl Serialize) -> io::Result<()> {
    send_with(socket, message, &[])
}

/// The same with descriptors beside it.
pub fn send_with(socket: impl AsFd, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
    send_bytes(socket, &encode(message, fds.len())?, fds, MsgFlags::empty())
}

/// Sends an encoded message with descriptors. [`io::ErrorKind::WouldBlock`] means that nothing was sent.
pub fn send_now(socket: impl AsFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    send_bytes(socket, bytes, fds, MsgFlags::MSG_DONTWAIT)
}

/// The message as it travels, if it is not too long.
pub fn encode(message: &impl Serialize, fds: usize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES || fds > MESSAGE_FDS {
        let text = format!("{} bytes with {fds} descriptors are too much for one sandbox", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(bytes)
}

fn send_bytes(socket: impl AsFd, bytes: &[u8], fds: &[RawFd], flags: MsgFlags) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None)?;
    Ok(())
}

/// Receives one message with its descriptors, or `None` when the other end is gone.
pub fn receive<M: DeserializeOwned>(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut space = nix::cmsg_space!([RawFd; MESSAGE_FDS]);
    let (length, fds) = {
        let mut iov = [IoSliceMut::new(buffer)];
        let got = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                fds.extend(adopt(&raw));
            }
        }
        (got.bytes, fds)
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..length])?, fds)))
}
