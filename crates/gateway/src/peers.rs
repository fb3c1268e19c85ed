//! Which of several gateways counts for a revision that limits what its instances do at once. Pure.
//!
//! The surprise: two gateways that count apart would give one instance two events. So each such revision has one gateway
//! that seats its requests, the same in everyone's eyes, and the others pass theirs on to it. Views differ for a moment
//! when gateways come and go, so what was passed on is never passed on again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::wire::RevisionKey;

use crate::endpoints::{Address, Ready};
use crate::slots::Instance;

/// This gateway among those of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub ip: IpAddr,
    /// Where the gateways' Services are.
    pub namespace: String,
}

/// The Service of the gateways' listener on the pods' side: who is behind it is a gateway.
pub(crate) const SERVICE: &str = "dhow-gateway-internal";
/// On a request between gateways: the revision that was chosen for it.
pub(crate) const PASSED_ON: http::HeaderName = http::HeaderName::from_static("dhow-passed-on");

/// Another gateway, as an instance that is spoken to in HTTP/1 and as one in HTTP/2.
pub(crate) fn instances(address: SocketAddr, next_id: impl Fn() -> u64) -> [Arc<Instance>; 2] {
    [false, true].map(|h2c| {
        let ready = Ready { pod: format!("the gateway {address}"), address: Address::Tcp(address), h2c };
        Instance::new(next_id(), ready)
    })
}

impl Own {
    pub(crate) fn is_ours(&self, key: &RevisionKey) -> bool {
        key.namespace == self.namespace && key.revision == SERVICE
    }

    /// The gateway that counts for the revision, when it is another one.
    pub(crate) fn away(&self, gateways: &[SocketAddr], key: &RevisionKey, limit: u32) -> Option<SocketAddr> {
        if limit == 0 {
            return None;
        }
        let chosen = gateways.iter().max_by_key(|gateway| (weight(gateway, key), **gateway))?;
        (chosen.ip() != self.ip).then_some(*chosen)
    }
}

/// Rendezvous hashing: a gateway that comes or goes moves only its own share.
fn weight(gateway: &SocketAddr, key: &RevisionKey) -> u64 {
    let text = format!("{gateway}/{}/{}", key.namespace, key.revision);
    // FNV-1a, mixed once more since its high bits change little with the last bytes. Every version must agree on it.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 8082))
    }

    fn key(number: usize) -> RevisionKey {
        RevisionKey { namespace: "default".into(), revision: format!("hello-{number:05}") }
    }

    fn owner(gateways: &[SocketAddr], key: &RevisionKey) -> IpAddr {
        let none = Own { ip: IpAddr::from([127, 0, 0, 1]), namespace: "dhow-system".into() };
        none.away(gateways, key, 1).expect("there are gateways").ip()
    }

    #[test]
    fn all_agree_and_share() {
        let three = [gateway(1), gateway(2), gateway(3)];
        let reversed = [gateway(3), gateway(2), gateway(1)];
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..300 {
            let chosen = owner(&three, &key(number));
            assert_eq!(chosen, owner(&reversed, &key(number)));
            *counts.entry(chosen).or_insert(0) += 1;
            // One that goes moves only what was its own.
            if chosen != gateway(3).ip() {
                assert_eq!(owner(&three[..2], &key(number)), chosen);
            }
        }
        assert!(counts.values().all(|count| (60..140).contains(count)), "{counts:?}");
    }

    #[test]
    fn one_self_or_nobody_is_not_away() {
        let own = Own { ip: gateway(1).ip(), namespace: "dhow-system".into() };
        assert_eq!(own.away(&[gateway(1)], &key(1), 1), None);
        assert_eq!(own.away(&[], &key(1), 1), None);
        assert_eq!(own.away(&[gateway(2)], &key(1), 0), None, "without a limit everyone may count");
        assert_eq!(own.away(&[gateway(2)], &key(1), 1), Some(gateway(2)));
    }
}
