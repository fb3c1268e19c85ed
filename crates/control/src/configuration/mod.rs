//! Configuration: stamps a Revision for each generation, and knows the latest created and the latest ready.

mod children;
mod collect;
mod plan;
#[cfg(test)]
mod tests;

use api::config::Gc;
use api::serving::{Configuration, Revision};
use jiff::Timestamp;
use reconcile::{Applier, Caches, Controller, Key, Plan, View, runner};

use crate::settings::Settings;

pub fn controller(caches: &Caches, applier: Applier, clock: api::Clock, settings: Settings) -> Controller {
    let (view, watched) = (caches.clone(), settings.clone());
    let controller =
        Controller::planned("configuration", clock, applier, move |key, now| gather(&view, &settings, key, now))
            .watch(&caches.of::<Configuration>(), runner::itself)
            .watch(&caches.of::<Revision>(), runner::owner::<Configuration, _>);
    watched.watched(controller, caches, &[Gc::NAME], |caches| {
        caches.of::<Configuration>().list("").iter().map(|c| Key::of(c.as_ref())).collect()
    })
}

fn gather(view: &impl View, settings: &Settings, key: &Key, now: Timestamp) -> Plan {
    let Some(configuration) = view.get::<Configuration>(&key.namespace, &key.name) else { return Plan::default() };
    if reconcile::view::is_deleting(configuration.as_ref()) || !api::class::is_ours(&configuration.metadata) {
        return Plan::default();
    }
    let name = children::revision_name(&configuration);
    let inputs = plan::Inputs {
        named: view.get::<Revision>(&key.namespace, &name),
        revisions: view.controlled_by::<Revision>(reconcile::view::uid(configuration.as_ref())),
        gc: settings.gc(view),
        configuration,
    };
    plan::plan(&inputs, now)
}
