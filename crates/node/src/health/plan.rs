//! When a container is asked, and what its answers mean: Kubernetes' three probes. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use probe::{Check, How};

use crate::translate::Refusal;
use crate::translate::reason::NO_PROVIDER;

/// What Kubernetes takes where a probe is silent.
const PERIOD: Duration = Duration::from_secs(10);
const FAILURES: u32 = 3;
/// Before its first success a container is asked sooner than its period says: somebody may wait for it.
const EAGER: Duration = Duration::from_millis(20);

/// The probes of one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes {
    pub startup: Option<Rule>,
    pub liveness: Option<Rule>,
    pub readiness: Option<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub check: Check,
    pub delay: Duration,
    period: Duration,
    /// In a row, until it counts.
    failures: u32,
}

impl Probes {
    pub fn of(container: &Container) -> Result<Self, Refusal> {
        let rule = |field: &str, probe: &Option<Probe>| match probe {
            None => Ok(None),
            Some(probe) => Rule::of(probe, container).map(Some).ok_or_else(|| Refusal {
                reason: NO_PROVIDER,
                message: format!(
                    "container {}: this {field} cannot be made here: it must be plain HTTP, TCP or gRPC to the \
                     container itself, or a command in it",
                    container.name
                ),
            }),
        };
        Ok(Self {
            startup: rule("startupProbe", &container.startup_probe)?,
            liveness: rule("livenessProbe", &container.liveness_probe)?,
            readiness: rule("readinessProbe", &container.readiness_probe)?,
        })
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it takes more than running to be ready.
    pub fn hold_back(&self) -> bool {
        self.startup.is_some() || self.readiness.is_some()
    }
}

impl Rule {
    fn of(probe: &Probe, container: &Container) -> Option<Self> {
        let positive = |number: Option<i32>| number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let seconds = |number: Option<i32>| positive(number).map(|n| Duration::from_secs(n.into()));
        let check = Check::of(probe, container.ports.as_deref().unwrap_or_default())?;
        if matches!(&check.how, How::Exec(argv) if argv.is_empty()) {
            return None;
        }
        Some(Self {
            check,
            delay: seconds(probe.initial_delay_seconds).unwrap_or_default(),
            period: seconds(probe.period_seconds).unwrap_or(PERIOD),
            failures: positive(probe.failure_threshold).unwrap_or(FAILURES),
        })
    }
}

/// The answers to one probe so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    rule: Rule,
    passed: u32,
    failed: u32,
    /// When the last failure was that counts: one in a period, however often it was asked.
    failed_at: Option<Duration>,
    /// What they come to, once they come to something.
    well: Option<bool>,
    pause: Duration,
}

impl Answers {
    pub fn new(rule: Rule) -> Self {
        Self { rule, passed: 0, failed: 0, failed_at: None, well: None, pause: EAGER }
    }

    /// As [`Answers::new`], for a question whose answer nobody waits for.
    pub fn patient(rule: Rule) -> Self {
        Self { pause: rule.period, ..Self::new(rule) }
    }

    pub fn check(&self) -> &Check {
        &self.rule.check
    }

    /// Takes an answer of this time; says what they come to if that is news.
    pub fn hear(&mut self, passed: bool, now: Duration) -> Option<bool> {
        let counts = if passed {
            (self.passed, self.failed, self.failed_at) = (self.passed.saturating_add(1), 0, None);
            self.passed >= self.rule.check.successes
        } else {
            self.passed = 0;
            if self.failed_at.is_none_or(|at| now.saturating_sub(at) >= self.rule.period) {
                (self.failed, self.failed_at) = (self.failed.saturating_add(1), Some(now));
            }
            self.failed >= self.rule.failures
        };
        let news = counts && self.well != Some(passed);
        self.well = if counts { Some(passed) } else { self.well };
        news.then_some(passed)
    }

    /// How long to the next question.
    pub fn pause(&mut self) -> Duration {
        if self.well == Some(true) {
            return self.rule.period;
        }
        let pause = self.pause.min(self.rule.period);
        self.pause = self.pause.saturating_mul(2);
        pause
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn probes(container: Value) -> Result<Probes, String> {
        let mut container = container;
        container["name"] = "c".into();
        Probes::of(&serde_json::from_value(container).unwrap()).map_err(|refusal| refusal.message)
    }

    #[test]
    fn what_a_container_asks_for() {
        assert!(probes(json!({})).unwrap().is_empty());
        let all = probes(json!({
            "startupProbe": {"tcpSocket": {"port": 1}, "failureThreshold": 30, "periodSeconds": 1},
            "livenessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 5},
            "readinessProbe": {"httpGet": {"path": "/ready"}, "periodSeconds": 0},
        }));
        let all = all.unwrap();
        let (startup, liveness, readiness) = (all.startup.unwrap(), all.liveness.unwrap(), all.readiness.unwrap());
        assert_eq!((startup.failures, startup.period), (30, Duration::from_secs(1)));
        assert_eq!((liveness.delay, liveness.period, liveness.failures), (Duration::from_secs(5), PERIOD, FAILURES));
        assert_eq!(readiness.period, PERIOD);
        for refused in [json!({"exec": {}}), json!({"httpGet": {"scheme": "HTTPS", "port": 1}})] {
            let message = probes(json!({"livenessProbe": refused})).unwrap_err();
            assert!(message.starts_with("container c: this livenessProbe cannot be made here"), "{message}");
        }
    }

    #[test]
    fn answers_come_to_something() {
        let all = probes(json!({"readinessProbe": {
            "tcpSocket": {"port": 1}, "successThreshold": 2, "failureThreshold": 2, "periodSeconds": 1}}));
        let mut answers = Answers::new(all.unwrap().readiness.unwrap());
        let given = [true, false, true, true, true, false, true, false, false, false, true, true];
        let at = |second: usize| Duration::from_secs(second as u64);
        let heard: Vec<_> = given.into_iter().enumerate().map(|(i, passed)| answers.hear(passed, at(i))).collect();
        let want = [None, None, None, Some(true), None, None, None, None, Some(false), None, None, Some(true)];
        assert_eq!(heard, want);
    }

    #[test]
    fn who_is_not_well_yet_is_asked_sooner() {
        let all = probes(json!({"readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1}}));
        let mut answers = Answers::new(all.unwrap().readiness.unwrap());
        let pauses: Vec<u128> = (0..8).map(|_| answers.pause().as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        // But a failure counts once in a period.
        let heard: Vec<_> = (0..25).map(|i| answers.hear(false, Duration::from_millis(i * 100))).collect();
        assert_eq!(heard.iter().position(|news| *news == Some(false)), Some(20));
        answers.hear(true, Duration::from_secs(9));
        assert_eq!(answers.pause(), Duration::from_secs(1));
    }
}
