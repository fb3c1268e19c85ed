//! Which old Revisions go: Knative's rules, kept by the Configuration itself. Pure.

use std::sync::Arc;

use api::config::Gc;
use api::names::label;
use api::serving::Revision;
use jiff::{SignedDuration, Timestamp};
use reconcile::view;

use crate::ownership::name_of;

/// On a Revision that must stay.
const NO_GC: &str = "serving.knative.dev/no-gc";

/// What is to be deleted, and when to look again.
pub struct Collected {
    pub gone: Vec<Arc<Revision>>,
    pub again: Option<SignedDuration>,
}

/// Of all Revisions of a Configuration; `latest` are those that it points at.
pub fn collect(revisions: &[Arc<Revision>], latest: &[Option<&str>], rules: &Gc, now: Timestamp) -> Collected {
    let mut idle: Vec<(Timestamp, &Arc<Revision>)> =
        revisions.iter().filter(|r| !is_kept(r, latest)).map(|r| (last_active(r), r)).collect();
    idle.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| name_of(one.as_ref()).cmp(name_of(other.as_ref()))));
    // The oldest first: those beyond the most that may stay, and of the others the stale ones beyond the least.
    let beyond_most = rules.max.map_or(0, |most| idle.len().saturating_sub(most));
    let beyond_least = idle.len().saturating_sub(rules.min);
    let (mut gone, mut again) = (vec![], None::<SignedDuration>);
    for (at, (active, revision)) in idle.into_iter().enumerate() {
        match stale_at(revision, active, rules) {
            _ if at < beyond_most => gone.push(revision.clone()),
            Some(stale) if gone.len() < beyond_least && stale <= now => gone.push(revision.clone()),
            Some(stale) if gone.len() < beyond_least => {
                let left = now.duration_until(stale);
                again = Some(again.map_or(left, |soonest| soonest.min(left)));
            }
            _ => {}
        }
    }
    gone.retain(|revision| !view::is_deleting(revision.as_ref()));
    Collected { gone, again }
}

fn is_kept(revision: &Revision, latest: &[Option<&str>]) -> bool {
    latest.contains(&Some(name_of(revision)))
        || view::annotation(revision, NO_GC).is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || view::label(revision, label::ROUTING_STATE) == Some("active")
}

/// When traffic last came or went.
fn last_active(revision: &Revision) -> Timestamp {
    let modified = view::annotation(revision, api::names::annotation::ROUTING_STATE_MODIFIED);
    modified.and_then(|text| text.parse().ok()).unwrap_or_else(|| created(revision))
}

fn created(revision: &Revision) -> Timestamp {
    revision.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// From when on it is too old; never, where both rules are off.
fn stale_at(revision: &Revision, active: Timestamp, rules: &Gc) -> Option<Timestamp> {
    let times = [(rules.since_create, created(revision)), (rules.since_active, active)];
    let ends = times.into_iter().filter_map(|(span, from)| Some(from.checked_add(span?).unwrap_or(Timestamp::MAX)));
    ends.max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::*;

    /// Created, and last with traffic, so many hours ago.
    fn revision(name: &str, created: i64, active: i64, labels: serde_json::Value) -> Arc<Revision> {
        let ago = |hours: i64| start() - SignedDuration::from_hours(hours);
        Arc::new(
            serde_json::from_value(json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "metadata": {"namespace": "default", "name": name, "labels": labels, "creationTimestamp": ago(created),
                    "annotations": {"serving.knative.dev/routingStateModified": ago(active).to_string()}},
                "spec": {"containers": []}}))
            .unwrap(),
        )
    }

    fn rules(min: usize, max: Option<usize>) -> Gc {
        Gc { min, max, ..Gc::of(&Default::default()) }
    }

    fn check(case: &str, rules: &Gc, want: &[&str], again_hours: Option<i64>) {
        let reserve = || json!({"serving.knative.dev/routingState": "reserve"});
        let revisions = [
            revision("latest", 100, 100, reserve()),
            revision("active", 100, 100, json!({"serving.knative.dev/routingState": "active"})),
            revision("older", 100, 90, reserve()),
            revision("old", 100, 50, reserve()),
            revision("left", 100, 5, reserve()),
            revision("young", 10, 3, reserve()),
        ];
        let collected = collect(&revisions, &[Some("latest"), None], rules, start());
        let names: Vec<&str> = collected.gone.iter().map(|r| name_of(r.as_ref())).collect();
        assert_eq!((names.as_slice(), collected.again.map(|again| again.as_hours())), (want, again_hours), "{case}");
    }

    #[test]
    fn what_is_stale_goes_down_to_the_least_and_what_is_too_much_at_once() {
        check("usual", &rules(20, Some(1000)), &[], None);
        check("stale", &rules(0, Some(1000)), &["older", "old"], Some(10));
        check("one may go", &rules(3, Some(1000)), &["older"], None);
        check("too many", &rules(0, Some(1)), &["older", "old", "left"], Some(38));
        check("too many and none stale", &rules(4, Some(3)), &["older"], None);
        let off = Gc { since_create: None, since_active: None, min: 0, max: None };
        check("off", &off, &[], None);
        check("age alone", &Gc { since_active: None, ..rules(0, None) }, &["older", "old", "left"], Some(38));
    }

    #[test]
    fn one_may_be_kept_by_hand() {
        let mut kept = revision("kept", 100, 100, json!({})).as_ref().clone();
        kept.metadata.annotations.get_or_insert_default().insert(NO_GC.into(), "True".into());
        assert!(collect(&[Arc::new(kept)], &[], &rules(0, Some(0)), start()).gone.is_empty());
    }
}
