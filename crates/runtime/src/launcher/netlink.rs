//! The few rtnetlink requests that links of pods need, sent and answered one by one.
//!
//! Owns the bytes of those requests. Must not know sandboxes. The launcher has no async runtime, which is why this
//! is not a netlink library; a request takes a few microseconds, so nothing is gained by batching.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const NEWNEIGH: u16 = 28;
const ERROR: u16 = 2;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

const NESTED: u16 = 0x8000;

/// A socket in the network namespace that was current when it was made.
pub struct Netlink {
    socket: OwnedFd,
}

/// One end of a pair of links.
pub struct End<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Self { socket: socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)? })
    }

    /// A pair of links, `near` here and `far` in the given namespace, or here as well.
    pub fn add_pair(&self, near: &End<'_>, far: &End<'_>, far_namespace: Option<&OwnedFd>) -> io::Result<()> {
        let mut peer = Attributes::default();
        peer.text(3, far.name).bytes(1, &far.mac);
        if let Some(namespace) = far_namespace {
            peer.number(28, namespace.as_raw_fd() as u32);
        }
        let mut data = Attributes::default();
        data.bytes(1 | NESTED, &[&[0u8; 16][..], &peer.0].concat());
        let mut info = Attributes::default();
        info.text(1, "veth").bytes(2 | NESTED, &data.0);
        let mut link = Attributes::default();
        link.text(3, near.name).bytes(1, &near.mac).bytes(18 | NESTED, &info.0);
        self.request(NEWLINK, CREATE | EXCLUSIVE, &[&[0; 16], &link.0])
    }

    pub fn delete_link(&self, index: u32) -> io::Result<()> {
        self.request(DELLINK, 0, &[&link_header(index, 0)])
    }

    pub fn set_up(&self, index: u32) -> io::Result<()> {
        self.request(NEWLINK, 0, &[&link_header(index, libc::IFF_UP as u32)])
    }

    /// Gives the link an address of its own, with no network behind it.
    pub fn add_address(&self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut header = [0u8; 8];
        header[0] = libc::AF_INET as u8;
        header[1] = 32;
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let mut attributes = Attributes::default();
        attributes.bytes(2, &address.octets()).bytes(1, &address.octets());
        self.request(NEWADDR, CREATE | REPLACE, &[&header, &attributes.0])
    }

    /// A route to one host, or with `to` absent to everything, through the link, by a gateway or directly.
    pub fn add_route(
        &self,
        index: u32,
        to: Option<Ipv4Addr>,
        gateway: Option<Ipv4Addr>,
        source: Option<Ipv4Addr>,
    ) -> io::Result<()> {
        const MAIN: u8 = 254;
        const BY_BOOT: u8 = 3;
        const UNICAST: u8 = 1;
        let scope = if gateway.is_some() { 0 } else { libc::RT_SCOPE_LINK };
        let length = if to.is_some() { 32 } else { 0 };
        let header = [libc::AF_INET as u8, length, 0, 0, MAIN, BY_BOOT, scope, UNICAST, 0, 0, 0, 0];
        let mut attributes = Attributes::default();
        attributes.number(4, index);
        for (kind, address) in [(1, to), (5, gateway), (7, source)] {
            if let Some(address) = address {
                attributes.bytes(kind, &address.octets());
            }
        }
        self.request(NEWROUTE, CREATE | REPLACE, &[&header, &attributes.0])
    }

    /// States who has an address, so that nobody has to ask for it and nobody can lie about it.
    pub fn add_neighbour(&self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        const PERMANENT: u16 = 0x80;
        let mut header = [0u8; 12];
        header[0] = libc::AF_INET as u8;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
        let mut attributes = Attributes::default();
        attributes.bytes(1, &address.octets()).bytes(2, &mac);
        self.request(NEWNEIGH, CREATE | REPLACE, &[&header, &attributes.0])
    }

    fn request(&self, kind: u16, flags: u16, parts: &[&[u8]]) -> io::Result<()> {
        let body = parts.concat();
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | ACK | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        send(self.socket.as_fd().as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0u8; 4096];
        let length = recv(self.socket.as_fd().as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "a short answer from netlink");
        if length < 20 || u16::from_ne_bytes([answer[4], answer[5]]) != ERROR {
            return Err(short());
        }
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            negative => Err(io::Error::from_raw_os_error(-negative)),
        }
    }
}

fn link_header(index: u32, up: u32) -> [u8; 16] {
    let mut header = [0u8; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..].copy_from_slice(&up.to_ne_bytes());
    header
}

/// Type, length and value, each padded to four bytes.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }
}
