//! The health of a sandbox's containers, as their probes tell it.
//!
//! Owns: asking, for as long as the sandbox runs. Must not know: what becomes of a container that is not well. A worker polls
//! [`Health::news`]; dropping it ends every question.

mod plan;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Container, Pod};
use probe::{Check, Connect, How};
use runtime::{Command, Connection, Output, Provider, Sandbox};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

pub use self::plan::Probes;
use self::plan::{Answers, Rule};
use crate::translate;

/// News that one container's probes can have before anybody hears of them: one of each kind.
const AT_ONCE: usize = 4;

/// What was found out of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Whether its probes let it be ready.
    Ready { container: String, ready: bool },
    /// It must be started again; with what failed.
    Unwell { container: String, probe: &'static str },
}

/// The probes of one run of a sandbox.
pub struct Health {
    questions: FuturesUnordered<BoxFuture<'static, ()>>,
    heard: mpsc::Receiver<News>,
    /// Of the containers that are ready only when their probes say so.
    ready: HashMap<String, bool>,
    /// Tells the questions that their container runs: it may have to wait for others.
    runs: HashMap<String, watch::Sender<bool>>,
}

impl Health {
    /// `None` for a pod without probes.
    pub fn watch(pod: &Pod, provider: &Arc<dyn Provider>) -> Option<Self> {
        let containers: Vec<&Container> = pod.spec.iter().flat_map(translate::containers).collect();
        let (tell, heard) = mpsc::channel(AT_ONCE * containers.len().max(1));
        let mut health =
            Self { questions: FuturesUnordered::new(), heard, ready: HashMap::new(), runs: HashMap::new() };
        for container in containers {
            // A pod whose probes cannot be made was refused.
            let Ok(probes) = Probes::of(container) else { continue };
            if probes.hold_back() {
                health.ready.insert(container.name.clone(), false);
            }
            if !probes.is_empty() {
                let (runs, mut running) = watch::channel(false);
                health.runs.insert(container.name.clone(), runs);
                let (asked, tell) = (Asked::new(pod, container, provider.clone()), tell.clone());
                health.questions.push(Box::pin(async move {
                    if running.wait_for(|runs| *runs).await.is_ok() {
                        asked.attend(probes, tell).await;
                    }
                }));
            }
        }
        (!health.questions.is_empty()).then_some(health)
    }

    /// Waits for news; for ever, once there can be none.
    pub async fn news(&mut self) -> News {
        let news = loop {
            tokio::select! {
                Some(news) = self.heard.recv() => break news,
                Some(()) = self.questions.next() => {}
                else => std::future::pending().await,
            }
        };
        if let News::Ready { container, ready } = &news {
            self.ready.insert(container.clone(), *ready);
        }
        news
    }

    /// A sandbox as its probes let it be seen.
    pub fn judge(&self, sandbox: &mut Sandbox) {
        for container in &mut sandbox.containers {
            if let runtime::Phase::Running { ready, .. } = &mut container.phase {
                self.runs.get(&container.name).iter().for_each(|runs| _ = runs.send_replace(true));
                *ready &= self.ready.get(&container.name).copied().unwrap_or(true);
            }
        }
    }
}

/// One container, and how it is reached.
struct Asked {
    uid: String,
    container: String,
    provider: Arc<dyn Provider>,
    /// Where it serves.
    port: u16,
}

impl Asked {
    fn new(pod: &Pod, container: &Container, provider: Arc<dyn Provider>) -> Self {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Self { uid, container: container.name.clone(), provider, port: translate::port(container) }
    }

    /// Asks for as long as it is polled. Nothing else is asked before the container has started.
    async fn attend(self, probes: Probes, tell: mpsc::Sender<News>) {
        let begun = Instant::now();
        let unwell = |probe| News::Unwell { container: self.container.clone(), probe };
        // Whoever listens is also who has this polled, and hears all before it is polled again.
        let say = |news| drop(tell.try_send(news));
        if let Some(rule) = probes.startup {
            let mut well = None;
            self.follow(Answers::new(rule.clone()), rule, begun, |is| {
                well = Some(is);
                false
            })
            .await;
            if well == Some(false) {
                return say(unwell("startup"));
            }
        }
        let ready = |ready| News::Ready { container: self.container.clone(), ready };
        let readiness = async {
            match probes.readiness {
                Some(rule) => {
                    self.follow(Answers::new(rule.clone()), rule, begun, |is| {
                        say(ready(is));
                        true
                    })
                    .await
                }
                None => say(ready(true)),
            }
        };
        let liveness = async {
            let Some(rule) = probes.liveness else { return };
            self.follow(Answers::patient(rule.clone()), rule, begun, |is| {
                if !is {
                    say(unwell("liveness"))
                };
                is
            })
            .await;
        };
        tokio::join!(readiness, liveness);
    }

    /// Asks one question again and again, as long as `news` wants to go on.
    async fn follow(&self, mut answers: Answers, rule: Rule, begun: Instant, mut news: impl FnMut(bool) -> bool) {
        tokio::time::sleep_until(begun + rule.delay).await;
        loop {
            let well = self.ask(answers.check()).await;
            if let Some(is) = answers.hear(well, begun.elapsed())
                && !news(is)
            {
                return;
            }
            sleep(answers.pause()).await;
        }
    }

    async fn ask(&self, check: &Check) -> bool {
        match &check.how {
            How::Exec(argv) => timeout(check.timeout, self.run(argv)).await.unwrap_or(false),
            _ => probe::ask(check, self).await,
        }
    }

    async fn run(&self, argv: &[String]) -> bool {
        let command = Command { argv: argv.to_vec(), input: false, terminal: false };
        let Ok(mut session) = self.provider.exec(&self.uid, &self.container, command).await else { return false };
        while let Some(output) = session.output.next().await {
            if let Output::Exited(code) = output {
                return code == 0;
            }
        }
        false
    }
}

impl Connect for Asked {
    type Stream = Connection;

    async fn connect(&self, port: Option<u16>) -> io::Result<Connection> {
        self.provider.connect(&self.uid, port.unwrap_or(self.port)).await.map_err(io::Error::other)
    }

    fn host(&self, port: Option<u16>) -> String {
        format!("localhost:{}", port.unwrap_or(self.port))
    }
}
