//! How a build pod ended, or what keeps it, in the words of a Build. Pure.
//!
//! The surprise: the pod says it before its Job does, and more of it; the Job only counts where there is no pod.

use api::build::reason;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use super::ClusterConfig;
use super::children::{self, BUILD, FETCH, PUSH};
use super::report::{Report, reason_named};
use crate::plan::{self, Refusal, StepEnd};
use crate::step::RESULT_BYTES;
use crate::worker::Outcome;

/// Words of the kubelet that climb into a condition.
const WORDS: usize = 300;

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Running,
    /// Something outside the build keeps it.
    Waiting(String),
    Ended(Outcome),
    /// Worth another try.
    Failed(String),
}

pub fn has_ended(job: &Job) -> bool {
    failure(job).is_some() || condition(job, "Complete").is_some()
}

pub fn verdict(job: &Job, pod: Option<&Pod>, config: &ClusterConfig) -> Verdict {
    let phase = pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref());
    match (pod, phase) {
        (Some(pod), Some("Succeeded")) => pushed(pod, config, job),
        (Some(pod), Some("Failed")) => failed(pod, job, config),
        (Some(pod), _) if failure(job).is_none() => waiting(pod).map_or(Verdict::Running, Verdict::Waiting),
        _ => match failure(job) {
            Some((why, _)) if why == "DeadlineExceeded" => {
                Verdict::Failed(format!("the pod of Job {} did not start in time", name(job)))
            }
            Some((why, message)) => Verdict::Failed(format!("Job {} failed: {why}: {message}", name(job))),
            None if condition(job, "Complete").is_some() => {
                Verdict::Failed(format!("the pod of Job {} is gone, and its result with it", name(job)))
            }
            None => Verdict::Running,
        },
    }
}

fn pushed(pod: &Pod, config: &ClusterConfig, job: &Job) -> Verdict {
    let said = ended(pod, PUSH).and_then(|state| state.message.as_deref());
    match said.and_then(Report::parse) {
        Some(Report::Image { digest }) => {
            let image = format!("{}@{digest}", config.image_name(&children::repository_of(job)));
            Verdict::Ended(Outcome { result: Ok(image), runtime: None, log_tail: vec![] })
        }
        _ => Verdict::Failed("the step that pushes the image did not say its digest".into()),
    }
}

fn failed(pod: &Pod, job: &Job, config: &ClusterConfig) -> Verdict {
    let status = pod.status.clone().unwrap_or_default();
    let manifest = children::manifest_of(job);
    let log = || ended(pod, BUILD).map(|state| plan::log_tail(state.message.as_deref().unwrap_or_default()));
    let author = |end: StepEnd, log: Vec<String>| {
        let refusal = plan::step_failure(end, manifest.as_deref(), &log);
        Verdict::Ended(Outcome { result: Err(refusal), runtime: None, log_tail: log })
    };
    let (why, message) = (status.reason.as_deref().unwrap_or_default(), status.message.as_deref().unwrap_or_default());
    if why == "DeadlineExceeded" {
        return author(StepEnd::TimedOut { seconds: config.timeout.as_secs() }, log().unwrap_or_default());
    }
    if why == "Evicted" && ["ephemeral", "EmptyDir"].iter().any(|word| message.contains(word)) {
        return author(StepEnd::TooLarge { limit_bytes: RESULT_BYTES }, vec![]);
    }
    for step in [FETCH, PUSH] {
        if let Some(state) = ended(pod, step).filter(|state| state.exit_code != 0) {
            return trusted(step, state);
        }
    }
    match ended(pod, BUILD).filter(|state| state.exit_code != 0) {
        Some(state) if state.reason.as_deref() == Some("OOMKilled") => {
            author(StepEnd::OutOfMemory { limit_bytes: config.memory_bytes }, log().unwrap_or_default())
        }
        // The runtime could not even start it: no shell in the base image, mostly.
        Some(state) if state.reason.as_deref().is_some_and(|r| r == "StartError" || r == "ContainerCannotRun") => {
            let message = format!("the build cannot run on its base image: {}", words(state.message.as_deref()));
            let refusal = Refusal::new(reason::DEPENDENCIES_FAILED, message);
            Verdict::Ended(Outcome { result: Err(refusal), runtime: None, log_tail: vec![] })
        }
        Some(state) => author(StepEnd::Exited(state.exit_code), log().unwrap_or_default()),
        None => Verdict::Failed(format!("its pod failed: {why} {}", words(Some(message))).trim_end().to_owned()),
    }
}

/// Only steps of our own image are believed.
fn trusted(step: &str, state: &ContainerStateTerminated) -> Verdict {
    match state.message.as_deref().and_then(Report::parse) {
        Some(Report::Refused { reason, message }) => {
            let refusal = Refusal::new(reason_named(&reason), message);
            Verdict::Ended(Outcome { result: Err(refusal), runtime: None, log_tail: vec![] })
        }
        Some(Report::Failed { message }) => Verdict::Failed(message),
        _ if state.reason.as_deref() == Some("OOMKilled") => {
            Verdict::Failed(format!("the step {step} ran out of memory"))
        }
        _ => {
            let said = plan::log_tail(state.message.as_deref().unwrap_or_default());
            let last = said.last().map(String::as_str);
            Verdict::Failed(format!("the step {step} exited with {}: {}", state.exit_code, words(last)))
        }
    }
}

/// What keeps a pod that has not ended, if anything does.
fn waiting(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!("no node takes its pod: {}", words(condition.message.as_deref())));
    }
    let held = containers(pod).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let why = waiting.reason.as_deref()?;
        let harmless = ["PodInitializing", "ContainerCreating"].contains(&why);
        (!harmless).then(|| format!("{why} of {}: {}", container.image, words(waiting.message.as_deref())))
    });
    held.map(|text| text.trim_end_matches([':', ' ']).to_owned())
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
    init.chain(status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten())
}

fn ended<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStateTerminated> {
    let container = containers(pod).find(|container| container.name == name)?;
    match &container.state {
        Some(ContainerState { terminated: Some(terminated), .. }) => Some(terminated),
        _ => None,
    }
}

fn condition<'a>(job: &'a Job, type_: &str) -> Option<&'a k8s_openapi::api::batch::v1::JobCondition> {
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_ && condition.status == "True")
}

fn failure(job: &Job) -> Option<(String, String)> {
    let failed = condition(job, "Failed")?;
    Some((failed.reason.clone().unwrap_or_default(), words(failed.message.as_deref())))
}

fn name(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

fn words(text: Option<&str>) -> String {
    text.unwrap_or_default().chars().filter(|c| !c.is_control()).take(WORDS).collect()
}
