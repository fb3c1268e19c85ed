//! Who leads, and what to write about it: a function of the Lease, what was seen of it before, and now.
//!
//! The surprise: a holder counts as gone when its Lease has not *changed* for its duration as measured here, never by
//! comparing its times with our clock, since clocks of two machines differ.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// How leadership is timed. A leader stops at [`Self::give_up`] after its last renewal, well before anyone else may
/// begin, at [`Self::duration`].
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub duration: SignedDuration,
    pub give_up: SignedDuration,
    pub renew_every: SignedDuration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: SignedDuration::from_secs(15),
            give_up: SignedDuration::from_secs(10),
            renew_every: SignedDuration::from_secs(2),
        }
    }
}

/// What this candidate last saw of the Lease, and when it saw that for the first time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    version: Option<String>,
    since: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The Lease as it must become for us to lead; the version in it guards against others.
    Write(Box<Lease>),
    /// Somebody else leads; look again then.
    Wait { until: Timestamp },
}

impl Seen {
    /// Another look at the Lease.
    pub fn look(&mut self, lease: Option<&Lease>, now: Timestamp) {
        let version = lease.and_then(|l| l.metadata.resource_version.clone());
        if version != self.version || self.since.is_none() {
            *self = Self { version, since: Some(now) };
        }
    }
}

/// What a candidate does now. `empty` is the Lease where there is none yet.
pub fn step(lease: Option<&Lease>, seen: &Seen, empty: &Lease, me: &str, timing: Timing, now: Timestamp) -> Step {
    let spec = lease.and_then(|l| l.spec.as_ref());
    let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or_default();
    let expires = seen.since.unwrap_or(now) + SignedDuration::from_secs(i64::from(seconds));
    if !holder.is_empty() && holder != me && now < expires {
        return Step::Wait { until: expires.min(now + timing.renew_every) };
    }
    Step::Write(Box::new(held(lease.unwrap_or(empty), me, timing, now)))
}

fn held(lease: &Lease, me: &str, timing: Timing, now: Timestamp) -> Lease {
    let before = lease.spec.clone().unwrap_or_default();
    let taken = before.holder_identity.as_deref() != Some(me);
    let transitions = before.lease_transitions.unwrap_or_default();
    let spec = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(timing.duration.as_secs()).ok(),
        acquire_time: if taken { Some(MicroTime(now)) } else { before.acquire_time.clone() },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions + i32::from(taken)),
        ..before
    };
    Lease { metadata: lease.metadata.clone(), spec: Some(spec) }
}

/// The Lease as its holder leaves it: anyone may take it at once.
pub fn released(lease: &Lease, now: Timestamp) -> Lease {
    let before = lease.spec.clone().unwrap_or_default();
    let spec = LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(now)),
        ..before
    };
    Lease { metadata: lease.metadata.clone(), spec: Some(spec) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn lease(version: &str, holder: &str, seconds: i32) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.resource_version = Some(version.to_owned());
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(holder.to_owned());
        spec.lease_duration_seconds = Some(seconds);
        spec.lease_transitions = Some(3);
        lease
    }

    /// Looks at each version at its time, and says what comes of the last look.
    fn check(looks: &[(i64, Option<Lease>)]) -> String {
        let mut seen = Seen::default();
        for (second, lease) in looks {
            seen.look(lease.as_ref(), at(*second));
        }
        let (second, last) = looks.last().unwrap();
        match step(last.as_ref(), &seen, &Lease::default(), "me", Timing::default(), at(*second)) {
            Step::Write(lease) => {
                let spec = lease.spec.unwrap();
                assert_eq!(spec.holder_identity.as_deref(), Some("me"));
                format!("write, transitions {}", spec.lease_transitions.unwrap())
            }
            Step::Wait { until } => format!("wait {}", until.duration_since(at(*second)).as_secs()),
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_nobody_holds_it() {
        let theirs = |version| Some(lease(version, "they", 15));
        let rows = [
            ("none yet", vec![(0, None)], "write, transitions 1"),
            ("free", vec![(0, Some(lease("1", "", 1)))], "write, transitions 4"),
            ("ours: renewed", vec![(0, Some(lease("1", "me", 15)))], "write, transitions 3"),
            ("theirs, first seen", vec![(0, theirs("1"))], "wait 2"),
            ("theirs, renewed since", vec![(0, theirs("1")), (14, theirs("2")), (16, theirs("2"))], "wait 2"),
            ("theirs, about to end", vec![(0, theirs("1")), (14, theirs("1"))], "wait 1"),
            ("theirs, silent", vec![(0, theirs("1")), (15, theirs("1"))], "write, transitions 4"),
        ];
        for (name, looks, want) in rows {
            assert_eq!(check(&looks), want, "{name}");
        }
    }

    #[test]
    fn a_released_lease_is_free_at_once() {
        let free = released(&lease("1", "me", 15), at(5));
        assert_eq!(check(&[(5, Some(free))]), "write, transitions 4");
    }
}
