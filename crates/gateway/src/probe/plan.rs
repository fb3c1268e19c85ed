//! Which address of a revision is probed next, and what the outcome means. Pure.
//!
//! Owns: what is known about addresses that are listed but not ready. Must not know: how a probe is made. `now` is
//! microseconds on any axis. The surprise: of an address that was ready once and is not any more somebody has spoken, its
//! kubelet or those who have not heard from its node. It is asked only where a request has nowhere else to go, and again
//! and again while it takes requests.

use std::time::Duration;

use crate::endpoints::Ready;

/// The pause between the first probes of an address.
const FIRST: u64 = 5_000;
/// Later pauses are this part of the time waited so far, so that an answer is never seen later than three percent.
const PART: u64 = 32;
const LONGEST: u64 = 1_000_000;
/// How long the word of an address counts that is no longer ready in its kubelet's eyes: as long as with a kubelet.
const AGAIN: u64 = 1_000_000;
/// A new address is probed for this long although no request waits here: it was asked for a moment ago. Every gateway
/// does so, which is why it is short.
const ALONE: u64 = Duration::from_secs(5).as_micros() as u64;
/// Probes of one revision at the same time.
const AT_ONCE: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Candidates {
    all: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    ready: Ready,
    since: u64,
    next: u64,
    running: bool,
    /// Successes in a row.
    passed: u32,
    /// It passed its probe and takes requests, whatever its slice will say next.
    answered: bool,
    /// It was ready, and its slice took that back.
    fell: bool,
}

/// What a probe's outcome changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// The address takes requests from now on.
    Taken,
    /// It takes none any more.
    Lost,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Probe(Ready),
    /// Nothing before that time.
    At(u64),
    /// Nothing, until a probe ends or something new is known.
    Wait,
    /// Nothing, and no probe is out.
    Rest,
}

impl Candidates {
    /// The slices list these as not ready. `was_ready` tells of one not known here whether it was ready before.
    pub fn list(&mut self, starting: &[Ready], was_ready: impl Fn(&Ready) -> bool, now: u64) {
        self.all.retain(|one| starting.contains(&one.ready));
        for ready in starting {
            if !self.all.iter().any(|one| one.ready == *ready) {
                let (fell, ready) = (was_ready(ready), ready.clone());
                let (running, answered) = (false, false);
                self.all.push(Candidate { ready, since: now, next: now, running, passed: 0, answered, fell });
            }
        }
    }

    /// Those that take requests before their slice says so.
    pub fn answered(&self) -> impl Iterator<Item = &Ready> {
        self.all.iter().filter(|one| one.answered).map(|one| &one.ready)
    }

    /// Whether there is an address to probe now or later.
    pub fn has_work(&self, now: u64, waiting: bool) -> bool {
        self.all.iter().any(|one| one.is_probed(now, waiting))
    }

    /// What to do next; a probe counts as running from then on.
    pub fn next(&mut self, now: u64, waiting: bool) -> Step {
        let running = self.all.iter().filter(|one| one.running).count();
        let due = self.all.iter_mut().filter(|one| !one.running && one.is_probed(now, waiting)).min_by_key(|o| o.next);
        match due {
            Some(one) if one.next > now => Step::At(one.next),
            Some(one) if running < AT_ONCE => {
                one.running = true;
                Step::Probe(one.ready.clone())
            }
            None if running == 0 => Step::Rest,
            _ => Step::Wait,
        }
    }

    /// A probe ended; `needed` successes in a row count.
    pub fn outcome(&mut self, ready: &Ready, passed: bool, needed: u32, now: u64) -> Change {
        let asked = |one: &&mut Candidate| one.ready == *ready && (one.fell || !one.answered);
        let Some(one) = self.all.iter_mut().find(asked) else { return Change::None };
        one.running = false;
        one.passed = if passed { one.passed + 1 } else { 0 };
        let was = std::mem::replace(&mut one.answered, one.passed >= needed);
        if was && !one.answered {
            one.since = now;
        }
        one.next = now
            + match (one.answered, passed) {
                (true, _) => AGAIN,
                (false, true) => FIRST,
                (false, false) => pause(now.saturating_sub(one.since)),
            };
        match (was, one.answered) {
            (false, true) => Change::Taken,
            (true, false) => Change::Lost,
            _ => Change::None,
        }
    }

    /// An address that takes requests only by our own word refused one: its word is asked for again, from the start.
    pub fn doubt(&mut self, ready: &Ready, now: u64) -> bool {
        let answered = |one: &&mut Candidate| one.ready == *ready && one.answered;
        let Some(one) = self.all.iter_mut().find(answered) else { return false };
        (one.since, one.next) = (now, now + FIRST);
        (one.passed, one.answered) = (0, false);
        true
    }
}

impl Candidate {
    fn is_probed(&self, now: u64, waiting: bool) -> bool {
        if self.answered { self.fell } else { waiting || (!self.fell && now.saturating_sub(self.since) < ALONE) }
    }
}

fn pause(waited: u64) -> u64 {
    (waited / PART).clamp(FIRST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::Address;

    fn at(pod: &str) -> Ready {
        Ready { pod: pod.into(), address: Address::Tcp("10.0.0.1:80".parse().unwrap()), h2c: false }
    }

    enum Do {
        /// These are listed as not ready; of the unknown ones, those after the bar were ready before.
        List(&'static [&'static str], &'static [&'static str]),
        Next(u64, bool),
        Pass(&'static str, u64),
        Fail(&'static str, u64),
        Doubt(&'static str, u64),
    }

    fn check(case: &str, needed: u32, steps: &[Do], want: &[&str]) {
        let mut candidates = Candidates::default();
        let mut out = vec![];
        for step in steps {
            out.push(match step {
                Do::List(starting, were) => {
                    let starting: Vec<Ready> = starting.iter().map(|pod| at(pod)).collect();
                    candidates.list(&starting, |r| were.contains(&r.pod.as_str()), 0);
                    continue;
                }
                Do::Next(now, waiting) => match candidates.next(*now, *waiting) {
                    Step::Probe(ready) => ready.pod,
                    Step::At(at) => at.to_string(),
                    other => format!("{other:?}"),
                },
                Do::Pass(pod, now) => format!("{pod} {:?}", candidates.outcome(&at(pod), true, needed, *now)),
                Do::Fail(pod, now) => format!("{pod} {:?}", candidates.outcome(&at(pod), false, needed, *now)),
                Do::Doubt(pod, now) => format!("doubt {}", candidates.doubt(&at(pod), *now)),
            });
        }
        assert_eq!(out, want, "{case}");
        let answered: Vec<&str> = candidates.answered().map(|r| r.pod.as_str()).collect();
        let told: Vec<&str> = want.iter().filter_map(|w| w.strip_suffix(" Taken")).collect();
        assert!(answered.iter().all(|a| told.contains(a)), "{case}: {answered:?} of {told:?}");
    }

    #[test]
    fn what_is_probed_and_when() {
        use Do::*;
        const S: u64 = 1_000_000;
        check("nothing", 1, &[Next(0, true)], &["Rest"]);
        check("at once", 1, &[List(&["a"], &[]), Next(0, false), Next(1, false)], &["a", "Wait"]);
        check(
            "five milliseconds after the first failure, and no more than one at a time",
            1,
            &[
                List(&["a"], &[]),
                Next(0, false),
                Fail("a", 200),
                Next(300, false),
                Next(5200, false),
                Next(5201, false),
            ],
            &["a", "a None", "5200", "a", "Wait"],
        );
        check(
            "a second in, a thirty-second of it; a minute in, a second",
            1,
            &[List(&["a"], &[]), Next(0, true), Fail("a", S), Next(S, true), Fail("a", 60 * S), Next(60 * S, true)],
            &["a", "a None", "1031250", "a None", "61000000"],
        );
        check(
            "five seconds alone, longer only for those who wait",
            1,
            &[List(&["a"], &[]), Next(5 * S - 1, false), Fail("a", 5 * S), Next(6 * S, false), Next(6 * S, true)],
            &["a", "a None", "Rest", "a"],
        );
        check(
            "a success",
            1,
            &[List(&["a"], &[]), Next(0, true), Pass("a", 9), Next(9, true)],
            &["a", "a Taken", "Rest"],
        );
        check(
            "as many successes in a row as its owner asks for",
            2,
            &[List(&["a"], &[]), Next(0, true), Pass("a", 1), Fail("a", 2), Pass("a", 3), Next(4, true), Pass("a", 9)],
            &["a", "a None", "a None", "a None", "5003", "a Taken"],
        );
        check(
            "gone while it was probed",
            1,
            &[List(&["a"], &[]), Next(0, true), List(&[], &[]), Pass("a", 9), Next(9, true)],
            &["a", "a None", "Rest"],
        );
        check("its kubelet took it back", 1, &[List(&["a"], &["a"]), Next(0, false)], &["Rest"]);
        check(
            "and has nobody else to turn to: asked at once, and as long as it answers",
            1,
            &[
                List(&["a"], &["a"]),
                Next(0, true),
                Pass("a", 9),
                Next(9, false),
                Next(S + 9, false),
                Pass("a", S + 20),
                Next(2 * S + 20, false),
                Fail("a", 3 * S),
                Next(3 * S, false),
                Next(3 * S + 5_000, true),
            ],
            &["a", "a Taken", "1000009", "a", "a None", "a", "a Lost", "Rest", "a"],
        );
        check(
            "listed again as it was",
            1,
            &[List(&["a"], &[]), Next(0, true), Pass("a", 9), List(&["a", "b"], &["a"]), Next(9, true), Next(9, true)],
            &["a", "a Taken", "b", "Wait"],
        );
        check(
            "one that refuses is asked again, from the start",
            1,
            &[List(&["a"], &[]), Doubt("a", 0), Next(0, true), Pass("a", 9), Doubt("a", 50 * S), Next(50 * S, false)],
            &["doubt false", "a", "a Taken", "doubt true", "50005000"],
        );
    }

    #[test]
    fn the_number_at_once_is_bounded() {
        let mut candidates = Candidates::default();
        let many: Vec<Ready> = (0..AT_ONCE + 5).map(|i| at(&format!("p{i}"))).collect();
        candidates.list(&many, |_| false, 0);
        let mut probes = 0;
        while let Step::Probe(_) = candidates.next(0, true) {
            probes += 1;
        }
        assert_eq!(probes, AT_ONCE);
        candidates.outcome(&many[0], true, 1, 1);
        assert!(matches!(candidates.next(1, true), Step::Probe(_)));
    }
}
