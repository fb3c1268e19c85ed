//! What the gateway counts.
//!
//! Owns: the metric families and, for each back end, handles resolved once, so that a request touches nothing but
//! atomics. Must not know: who scrapes. The surprise: answers given before a back end is chosen (404, 400) are counted
//! apart, by code only, and a back end's series vanish with it.

use std::sync::OnceLock;

use api::wire::RevisionKey;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    service: String,
    revision: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    namespace: String,
    service: String,
    revision: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnlyCode {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    namespace: String,
    service: String,
    revision: String,
    phase: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Every family of the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<CodeLabels, Counter>,
    seconds: Histograms<Labels>,
    queue_depth: Family<Labels, Gauge>,
    instances: Family<Labels, Gauge>,
    cold_starts: Family<Labels, Counter>,
    cold_seconds: Histograms<PhaseLabels>,
    pub connections: Gauge,
    pub connections_refused: Counter,
    pub retries: Counter,
    pub messages_dropped: Counter,
    pub probes: Counter,
    pub early_instances: Counter,
    rejected: Family<OnlyCode, Counter>,
}

/// The codes with a handle of their own; any other is looked up.
const CODES: [u16; 10] = [200, 201, 202, 204, 304, 400, 404, 500, 502, 503];
/// Of a cold request, in their order: all of its wait; in it, until a node had the pod, until its processes ran, until
/// it was ready; and from the slot to the answer.
const PHASES: [&str; 5] = ["queued", "scheduled", "sandbox", "runtime", "first_byte"];

/// The series of one back end.
#[derive(Debug)]
pub(crate) struct Handles {
    families: Metrics,
    labels: Labels,
    codes: [OnceLock<Counter>; CODES.len()],
    pub seconds: Histogram,
    pub queue_depth: Gauge,
    pub instances: Gauge,
    pub cold_starts: Counter,
    cold: OnceLock<[Histogram; PHASES.len()]>,
}

/// From a warm hop on one machine to the longest timeout.
fn request_buckets() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0])
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(request_buckets as fn() -> Histogram),
            queue_depth: Family::default(),
            instances: Family::default(),
            cold_starts: Family::default(),
            cold_seconds: Family::new_with_constructor(request_buckets as fn() -> Histogram),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            retries: Counter::default(),
            messages_dropped: Counter::default(),
            probes: Counter::default(),
            early_instances: Counter::default(),
            rejected: Family::default(),
        };
        let m = metrics.clone();
        registry.register("dhow_requests", "Requests answered, by back end and status code", m.requests);
        registry.register("dhow_request_seconds", "From a request's arrival to its answer's last byte", m.seconds);
        registry.register("dhow_queue_depth", "Requests that wait for a slot", m.queue_depth);
        registry.register("dhow_instances", "Instances that take new requests", m.instances);
        registry.register("dhow_cold_starts", "Requests that found no instance", m.cold_starts);
        registry.register("dhow_cold_start_seconds", "Parts of a cold request's time", m.cold_seconds);
        registry.register("dhow_gateway_connections", "Client connections", m.connections);
        registry.register("dhow_gateway_connections_refused", "Connections over the limit", m.connections_refused);
        registry.register("dhow_gateway_retries", "Requests sent again to another connection or instance", m.retries);
        registry.register(
            "dhow_gateway_messages_dropped",
            "Messages that did not reach the autoscaler",
            m.messages_dropped,
        );
        registry.register("dhow_gateway_probes", "Probes of instances that were not ready yet", m.probes);
        registry.register(
            "dhow_gateway_early_instances",
            "Instances that answered a probe before they were said to be ready",
            m.early_instances,
        );
        registry.register("dhow_gateway_rejected", "Requests answered before a back end was chosen", m.rejected);
        metrics
    }

    pub fn reject(&self, code: u16) {
        self.rejected.get_or_create(&OnlyCode { code }).inc();
    }

    pub fn backend(&self, key: &RevisionKey, service: &str) -> Handles {
        let labels =
            Labels { namespace: key.namespace.clone(), service: service.to_owned(), revision: key.revision.clone() };
        Handles {
            families: self.clone(),
            codes: std::array::from_fn(|_| OnceLock::new()),
            seconds: self.seconds.get_or_create_owned(&labels),
            queue_depth: self.queue_depth.get_or_create_owned(&labels),
            instances: self.instances.get_or_create_owned(&labels),
            cold_starts: self.cold_starts.get_or_create_owned(&labels),
            cold: OnceLock::new(),
            labels,
        }
    }
}

impl Labels {
    fn with_code(&self, code: u16) -> CodeLabels {
        let Self { namespace, service, revision } = self.clone();
        CodeLabels { namespace, service, revision, code }
    }

    fn with_phase(&self, phase: &'static str) -> PhaseLabels {
        let Self { namespace, service, revision } = self.clone();
        PhaseLabels { namespace, service, revision, phase }
    }
}

impl Handles {
    pub fn answered(&self, code: u16, seconds: f64) {
        match CODES.iter().position(|known| *known == code) {
            Some(at) => {
                let resolve = || self.families.requests.get_or_create_owned(&self.labels.with_code(code));
                self.codes[at].get_or_init(resolve).inc();
            }
            None => {
                self.families.requests.get_or_create(&self.labels.with_code(code)).inc();
            }
        }
        self.seconds.observe(seconds);
    }

    /// A cold request got its slot after the first time, and its answer's first byte after the second.
    pub fn cold(&self, queued: f64, first_byte: f64) {
        let [waiting, .., serving] = self.cold_phases();
        waiting.observe(queued);
        serving.observe(first_byte);
    }

    /// An instance for which requests wait became ready.
    pub fn started(&self, scheduled: f64, sandbox: f64, runtime: f64) {
        let [_, scheduling, making, loading, _] = self.cold_phases();
        scheduling.observe(scheduled);
        making.observe(sandbox);
        loading.observe(runtime);
    }

    fn cold_phases(&self) -> &[Histogram; PHASES.len()] {
        let resolve = |phase| self.families.cold_seconds.get_or_create_owned(&self.labels.with_phase(phase));
        self.cold.get_or_init(|| PHASES.map(resolve))
    }
}

/// The label sets of what no longer exists would otherwise grow without bound.
impl Drop for Handles {
    fn drop(&mut self) {
        let families = &self.families;
        families.seconds.remove(&self.labels);
        families.queue_depth.remove(&self.labels);
        families.instances.remove(&self.labels);
        families.cold_starts.remove(&self.labels);
        for phase in PHASES {
            families.cold_seconds.remove(&self.labels.with_phase(phase));
        }
        for code in 100..600 {
            families.requests.remove(&self.labels.with_code(code));
        }
    }
}
