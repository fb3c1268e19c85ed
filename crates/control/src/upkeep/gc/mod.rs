//! Garbage collection: what happens to the owned when the owner goes.
//!
//! Background: dependents of an owner that is gone are deleted. Foreground: the owner waits for those that block it.
//! Orphan: dependents forget the owner. An owner that the caches do not show is looked up live before anything is
//! deleted: a cache may be behind. Only kinds that are watched take part.

mod plan;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use reconcile::{Applier, Caches, Controller, Error, HeldChange, Requeue, Target, apply};

pub fn controller(caches: &Caches, applier: Applier, client: Client) -> Controller<Target> {
    let reading = caches.clone();
    Controller::new("gc", move |target: Target| {
        let (caches, applier, client) = (reading.clone(), applier.clone(), client.clone());
        async move { collect(&caches, &applier, &client, &target).await }
    })
}

/// Starts listening; to be called when the caches are complete, or everything would look like an orphan.
pub fn listen(caches: &Caches, controller: &Controller<Target>) {
    let (queue, reading) = (controller.queue(), caches.clone());
    caches.subscribe_all(move |change| touched(&reading, change).into_iter().for_each(|target| queue.add(target)));
}

async fn collect(caches: &Caches, applier: &Applier, client: &Client, target: &Target) -> Result<Requeue, Error> {
    let Some(held) = caches.held(target) else { return Ok(None) };
    let mut absent = vec![];
    for owner in held.meta.owner_references.iter().flatten() {
        if !is_known(caches, target, owner) && !is_live(client, caches, target, owner).await? {
            absent.push(owner.uid.clone());
        }
    }
    let dependents = caches.dependents(held.uid());
    let plan = plan::plan(&held, &absent, &dependents, |uid| !caches.dependents(uid).is_empty());
    applier.apply(&plan).await?;
    Ok(None)
}

/// What a change makes worth a look.
fn touched(caches: &Caches, change: &HeldChange) -> Vec<Target> {
    let mut targets = vec![];
    match &change.new {
        None => {
            let Some(old) = &change.old else { return targets };
            targets.extend(caches.dependents(old.uid()).into_iter().map(|h| h.target));
            // An owner may be waiting for this one.
            let owners = old.meta.owner_references.iter().flatten().map(|o| owner_target(caches, &old.target, o));
            targets.extend(owners.filter(|o| caches.held(o).is_some_and(|h| h.meta.deletion_timestamp.is_some())));
        }
        Some(new) => {
            let unknown = |o: &OwnerReference| !is_known(caches, &new.target, o);
            if plan::is_waiting(&new.meta) || new.meta.owner_references.iter().flatten().any(unknown) {
                targets.push(new.target.clone());
            }
        }
    }
    targets
}

fn is_known(caches: &Caches, dependent: &Target, owner: &OwnerReference) -> bool {
    caches.held(&owner_target(caches, dependent, owner)).is_some_and(|h| h.uid() == owner.uid)
}

async fn is_live(client: &Client, caches: &Caches, dependent: &Target, owner: &OwnerReference) -> Result<bool, Error> {
    let found = apply::get_live(client, caches, &owner_target(caches, dependent, owner)).await?;
    Ok(found.is_some_and(|o| o["metadata"]["uid"] == owner.uid.as_str()))
}

fn owner_target(caches: &Caches, dependent: &Target, owner: &OwnerReference) -> Target {
    let cluster_wide = super::is_cluster_wide(caches, &owner.api_version, &owner.kind);
    Target {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        namespace: if cluster_wide { String::new() } else { dependent.namespace.clone() },
        name: owner.name.clone(),
    }
}
