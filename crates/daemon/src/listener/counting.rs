//! What listeners did to clients that were too many or too slow, as metrics.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

type ByListener = Family<[(&'static str, &'static str); 1], Counter>;

/// Of all listeners of a process.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    dismissed: ByListener,
    refused: ByListener,
    broken_off: ByListener,
}

/// Of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub dismissed: Counter,
    pub refused: Counter,
    pub broken_off: Counter,
}

impl Counters {
    pub fn register(registry: &mut Registry) -> Self {
        let counters = Self::default();
        for (name, help, family) in [
            ("dhow_listener_dismissed", "Idle connections closed to make room for others", &counters.dismissed),
            ("dhow_listener_refused", "Connections over the limit while all others were in use", &counters.refused),
            ("dhow_listener_broken_off", "Answers that a client did not take in time", &counters.broken_off),
        ] {
            registry.register(name, help, family.clone());
        }
        counters
    }

    pub(super) fn of(&self, listener: &'static str) -> Counted {
        let one = |family: &ByListener| family.get_or_create_owned(&[("listener", listener)]);
        Counted { dismissed: one(&self.dismissed), refused: one(&self.refused), broken_off: one(&self.broken_off) }
    }
}
