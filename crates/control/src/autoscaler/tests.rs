//! Golden rows: each expectation is computed by hand from Knative's formulas, written beside it.

use api::autoscaling::{PodAutoscaler, ScaleRequest};
use api::wire::{ConcurrencyStat, InstanceLoad, Poke, RevisionKey};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Key, View};
use serde_json::{Value, json};

use super::gather;
use super::kpa::{Decider, Wanted};
use super::settings::Settings;
use crate::fixtures::*;

const NAME: &str = "hello-00001";

fn autoscaler(limit: i64, annotations: Value, reachability: &str) -> PodAutoscaler {
    serde_json::from_value(json!({
        "apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler",
        "metadata": {"namespace": "default", "name": NAME, "annotations": annotations},
        "spec": {"containerConcurrency": limit, "reachability": reachability,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}},
    }))
    .unwrap()
}

fn settings(limit: i64, annotations: Value) -> Settings {
    Settings::of(&autoscaler(limit, annotations, ""))
}

fn stat(average: f64, in_flight: u32) -> ConcurrencyStat {
    ConcurrencyStat {
        key: RevisionKey { namespace: "default".into(), revision: NAME.into() },
        gateway: String::new(),
        average_concurrency: average,
        requests_per_second: average,
        in_flight,
        instances: vec![],
    }
}

fn poke(gateway: &str, queued: u32, in_flight: u32) -> Poke {
    let key = RevisionKey { namespace: "default".into(), revision: NAME.into() };
    Poke { key, gateway: gateway.into(), queued, in_flight }
}

fn load(pod: &str, in_flight: u32) -> InstanceLoad {
    InstanceLoad { pod: pod.into(), in_flight, draining: false }
}

/// Reports `average` for each second of `from..to` and decides at the end.
fn steady(decider: &mut Decider, from: i64, to: i64, average: f64, ready: i32) -> i32 {
    for second in from..to {
        decider.report(&stat(average, average as u32), after(second));
    }
    decider.tick(ready, ready, after(to - 1));
    decider.wanted(after(to - 1)).scale.unwrap()
}

#[test]
fn one_decision() {
    // Default target: 100 x 70 % = 70; with a limit of 10: 7; of 1: 0.7.
    let none = json!({});
    let target = |t: &str| json!({"autoscaling.knative.dev/target": t, "autoscaling.knative.dev/target-utilization-percentage": "100"});
    for (case, limit, annotations, average, ready, want) in [
        ("nothing to do", 0, none.clone(), 0.0, 1, 0),
        ("ceil(70/70)", 0, none.clone(), 70.0, 1, 1),
        ("ceil(71/70)", 0, none.clone(), 71.0, 1, 2),
        ("ceil(1/0.7)", 1, none.clone(), 1.0, 1, 2),
        ("ceil(20/7)", 10, none.clone(), 20.0, 3, 3),
        ("ceil(20/5)", 10, target("5"), 20.0, 4, 4),
        ("target beyond the limit is the limit", 10, target("50"), 20.0, 2, 2),
        ("at most 1000 x ready", 0, target("0.01"), 100.0, 2, 2000),
        ("at least floor(ready/2), and a panic is kept", 0, target("1"), 1.0, 10, 10),
        ("activation scale", 0, json!({"autoscaling.knative.dev/activation-scale": "4"}), 1.0, 0, 4),
        ("activation scale is not for zero", 0, json!({"autoscaling.knative.dev/activation-scale": "4"}), 0.0, 0, 0),
    ] {
        let mut decider = Decider::new(settings(limit, annotations), ready, start());
        let got = steady(&mut decider, 0, 6, average, ready);
        assert_eq!(got, want, "{case}");
    }
}

#[test]
fn scale_down_is_halved_at_most() {
    let mut decider = Decider::new(
        settings(
            0,
            json!({"autoscaling.knative.dev/target": "1", "autoscaling.knative.dev/target-utilization-percentage": "100"}),
        ),
        1,
        start(),
    );
    let mut ready = steady(&mut decider, 0, 1, 1.0, 1);
    for (second, want) in [(62, 8), (64, 4), (66, 2), (68, 1)] {
        if second == 62 {
            // The window holds only the last minute: an average of 1 wants 1 instance, floor(16/2) = 8 is allowed.
            ready = 16;
            for s in 1..62 {
                decider.report(&stat(1.0, 1), after(s));
            }
        }
        decider.report(&stat(1.0, 1), after(second));
        decider.tick(ready, ready, after(second));
        let want_now = decider.wanted(after(second)).scale.unwrap();
        assert_eq!(want_now, want, "at {second}");
        ready = want_now;
    }
}

#[test]
fn nothing_reported_changes_nothing() {
    let mut decider = Decider::new(settings(1, json!({})), 1, start());
    assert!(!decider.tick(1, 1, after(2)));
    assert_eq!(decider.wanted(after(2)), Wanted::default());
    steady(&mut decider, 2, 4, 2.0, 1);
    let before = decider.wanted(after(3)).scale;
    // Both windows are empty a minute and a second later: the decision stays.
    assert!(!decider.tick(1, 1, after(3 + 61)));
    assert_eq!(decider.wanted(after(64)).scale, before);
}

#[test]
fn panic_begins_holds_and_ends() {
    // Target 10 of 10 at 100 %: stable window 60 s, panic window 6 s, threshold 2.0.
    let annotations = json!({"autoscaling.knative.dev/target-utilization-percentage": "100"});
    let mut decider = Decider::new(settings(10, annotations), 1, start());
    assert_eq!(steady(&mut decider, 0, 60, 10.0, 1), 1);
    assert!(!decider.is_panicking());
    // Two seconds of 100: the panic average is (4 x 10 + 2 x 100) / 6 = 40, so ceil(40/10) = 4 and 4/1 >= 2.
    // The stable average is (58 x 10 + 2 x 100) / 60 = 13, so ceil(13/10) = 2 alone would not do.
    assert_eq!(steady(&mut decider, 60, 62, 100.0, 1), 4);
    assert!(decider.is_panicking());
    // While it panics nothing shrinks, even when the load is gone.
    assert_eq!(steady(&mut decider, 62, 120, 0.0, 4), 4);
    assert!(decider.is_panicking());
    // It began at 61 and ends with the first decision after 61 + 60 s: all windows are quiet, floor(4/2) = 2 is left.
    assert_eq!(steady(&mut decider, 120, 122, 0.0, 4), 4);
    assert!(decider.is_panicking());
    assert_eq!(steady(&mut decider, 122, 123, 0.0, 4), 2);
    assert!(!decider.is_panicking());
}

#[test]
fn a_restart_begins_in_panic() {
    let mut decider = Decider::new(settings(1, json!({})), 5, start());
    assert!(decider.is_panicking());
    // floor(5/2) = 2 would be allowed; what was there stays for a window.
    assert_eq!(steady(&mut decider, 0, 60, 0.0, 5), 5);
    assert_eq!(steady(&mut decider, 60, 62, 0.0, 5), 2);
    assert!(!Decider::new(settings(1, json!({})), 1, start()).is_panicking());
}

#[test]
fn scale_down_waits_for_the_delay() {
    let annotations = json!({"autoscaling.knative.dev/scale-down-delay": "10s", "autoscaling.knative.dev/window": "6s",
        "autoscaling.knative.dev/target-utilization-percentage": "100"});
    let mut decider = Decider::new(settings(10, annotations), 1, start());
    assert_eq!(steady(&mut decider, 0, 2, 19.0, 2), 2);
    // The window of 6 s is quiet by second 8; the want of 2 at second 1 counts until second 10.
    assert_eq!(steady(&mut decider, 2, 9, 0.0, 2), 2);
    assert_eq!(steady(&mut decider, 9, 20, 0.0, 2), 1);
}

#[test]
fn requests_per_second() {
    let annotations = json!({"autoscaling.knative.dev/metric": "rps"});
    let mut decider = Decider::new(settings(0, annotations), 1, start());
    // 200 x 70 % = 140: ceil(141/140) = 2.
    assert_eq!(steady(&mut decider, 0, 6, 141.0, 1), 2);
}

#[test]
fn excess_burst_capacity() {
    for (case, annotations, ready, average, want) in [
        ("floor(3 x 10 - 211 - 5)", json!({}), 3, 5.0, -186.0),
        ("room", json!({"autoscaling.knative.dev/target-burst-capacity": "10"}), 3, 5.5, 14.0),
        ("off", json!({"autoscaling.knative.dev/target-burst-capacity": "0"}), 3, 5.0, 0.0),
        ("always", json!({"autoscaling.knative.dev/target-burst-capacity": "-1"}), 3, 5.0, -1.0),
    ] {
        let mut decider = Decider::new(settings(10, annotations), 1, start());
        decider.report(&stat(average, 5), start());
        decider.tick(ready, ready, start());
        assert_eq!(decider.excess_burst(), want, "{case}");
    }
}

#[test]
fn a_poke_decides_at_once() {
    let max = json!({"autoscaling.knative.dev/max-scale": "5"});
    for (case, limit, annotations, queued, in_flight, ready, floor, panics) in [
        ("from zero", 1, json!({}), 1, 0, 0, 1, false),
        ("twenty at once", 1, json!({}), 20, 0, 0, 20, true),
        ("no limit needs one", 0, json!({}), 50, 0, 0, 1, false),
        ("ceil((5 + 20) / 10)", 10, json!({}), 5, 20, 2, 3, false),
        ("ceil((5 + 30) / 10) is twice two", 10, json!({}), 5, 30, 2, 4, true),
        ("bounded", 1, max, 20, 0, 0, 5, true),
    ] {
        let mut decider = Decider::new(settings(limit, annotations), ready, start());
        decider.poke(&poke("", queued, in_flight), ready, start());
        assert_eq!(decider.wanted(start()).floor, floor, "{case}");
        assert_eq!(decider.is_panicking(), panics || ready > 1, "{case}");
        assert_eq!(decider.wanted(after(2)).floor, 0, "{case}: a tick later the algorithm decides");
    }
}

#[test]
fn a_burst_stays_for_one_window() {
    let mut decider = Decider::new(settings(1, json!({"autoscaling.knative.dev/window": "10s"})), 0, start());
    decider.poke(&poke("", 20, 0), 0, start());
    decider.report(&stat(20.0, 20), after(1));
    for second in 2..=9 {
        decider.quiet_second(after(second));
        decider.tick(20, 20, after(second));
        // The report of second 1 lets the panic ask for ceil(20/0.7) = 29 while its window remembers it.
        assert!(decider.wanted(after(second)).scale.unwrap() >= 20, "at {second}");
    }
    for second in 10..=13 {
        decider.quiet_second(after(second));
        decider.tick(20, 20, after(second));
    }
    assert_eq!(decider.wanted(after(13)).scale, Some(10), "quiet for a window: half may go");
}

#[test]
fn the_past_does_not_wake_a_revision() {
    let mut decider = Decider::new(settings(1, json!({})), 0, start());
    decider.report(&stat(3.0, 0), start());
    decider.tick(0, 0, after(1));
    assert_eq!(decider.wanted(after(1)).scale, Some(0), "an average without a request inside");
    decider.report(&stat(1.0, 1), after(2));
    decider.tick(0, 0, after(3));
    assert!(decider.wanted(after(3)).scale.unwrap() > 0);
}

#[test]
fn busy_instances_are_kept() {
    for (limit, want) in [(1, 2), (0, 0)] {
        let mut decider = Decider::new(settings(limit, json!({})), 0, start());
        let mut report = stat(0.0, 2);
        report.instances = vec![load("a", 1), load("b", 0), load("c", 1)];
        decider.report(&report, start());
        assert_eq!(decider.wanted(start()).floor, want, "limit {limit}");
        assert_eq!(decider.wanted(after(10)).floor, 0, "an old report protects nothing");
    }
}

#[test]
fn gateways_add_up() {
    let said = |gateway: &str, in_flight: u32, loads: &[(&str, u32, bool)]| {
        let load = |(pod, in_flight, draining): &(&str, u32, bool)| InstanceLoad {
            pod: (*pod).into(),
            in_flight: *in_flight,
            draining: *draining,
        };
        let instances = loads.iter().map(load).collect();
        ConcurrencyStat { gateway: gateway.into(), instances, ..stat(f64::from(in_flight), in_flight) }
    };
    let told = |decider: &Decider, second: i64| -> Vec<String> {
        let loads = decider.wanted(after(second)).loads;
        loads.iter().map(|l| format!("{}={}{}", l.pod, l.in_flight, if l.draining { " drains" } else { "" })).collect()
    };
    let mut decider = Decider::new(settings(1, json!({})), 0, start());
    decider.poke(&poke("a", 10, 0), 0, start());
    assert_eq!(decider.wanted(start()).floor, 10);
    decider.poke(&poke("b", 5, 2), 0, start());
    assert_eq!(decider.wanted(start()).floor, 17, "both gateways' requests");
    decider.poke(&poke("a", 1, 0), 0, after(1));
    assert_eq!(decider.wanted(after(1)).floor, 17, "a floor holds for a tick");
    decider.poke(&poke("a", 1, 0), 0, after(4));
    assert_eq!(decider.wanted(after(4)).floor, 1, "b was silent for too long");

    // Each gateway has 7 on average: ceil(14/7) = 2.
    let mut decider = Decider::new(settings(10, json!({})), 1, start());
    for second in 0..6 {
        decider.report(&said("a", 7, &[("p", 3, true), ("q", 0, true)]), after(second));
        decider.report(&said("b", 7, &[("p", 1, true), ("q", 0, false)]), after(second));
    }
    decider.tick(1, 1, after(5));
    assert_eq!(decider.wanted(after(5)).scale, Some(2));
    assert_eq!(told(&decider, 5), ["p=4 drains", "q=0"], "a pod drains when every gateway says so");
    decider.report(&said("a", 1, &[("p", 1, true), ("q", 0, true)]), after(8));
    assert_eq!(told(&decider, 8), ["p=2 drains", "q=0"]);
    assert_eq!(told(&decider, 9), ["p=1 drains", "q=0 drains"], "b is gone");
    assert!(told(&decider, 12).is_empty());

    let mut decider = Decider::new(settings(1, json!({})), 0, start());
    for gateway in 0..100 {
        decider.poke(&poke(&gateway.to_string(), 1, 0), 0, start());
    }
    assert_eq!(decider.wanted(start()).floor, 64, "no more gateways than a cluster can have");
}

#[test]
fn scale_requests() {
    let request = |replicas, second| ScaleRequest { replicas, at: after(second) };
    let mut decider = Decider::new(settings(1, json!({})), 3, start());
    decider.request(request(0, -61), start());
    assert!(!decider.wanted(start()).drain, "a request from before the last window is over");

    decider.request(request(5, 0), after(1));
    assert_eq!((decider.wanted(after(60)).floor, decider.wanted(after(61)).floor), (5, 0), "one window");

    let mut report = stat(1.0, 1);
    report.instances = vec![load("a", 1)];
    decider.report(&report, after(70));
    decider.request(request(0, 70), after(70));
    assert_eq!(decider.wanted(after(70)), Wanted { scale: Some(0), floor: 1, drain: true, loads: vec![load("a", 1)] });
    decider.tick(3, 3, after(71));
    assert!(decider.wanted(after(71)).drain, "the busy instance's own request does not end it");
    decider.poke(&poke("", 1, 0), 0, after(75));
    let wanted = decider.wanted(after(75));
    assert_eq!((wanted.drain, wanted.floor), (false, 1), "the next request starts one");
}

// The plan: bounds, the way to zero, conditions, and which instances go.

fn pods(world: World, ready: usize) -> World {
    (0..ready).fold(world, |w, i| {
        w.with(pod(&format!("p{i}"), json!({"serving.knative.dev/revision": NAME}), json!([]), is_ready(true)))
    })
}

/// A PodAutoscaler that was `active` since the start, a Deployment and ready pods.
fn given(annotations: Value, active: &str, initialized: bool, replicas: i32, ready: usize) -> World {
    given_reachable(annotations, active, initialized, replicas, ready, "")
}

fn given_reachable(
    annotations: Value,
    active: &str,
    initialized: bool,
    replicas: i32,
    ready: usize,
    reach: &str,
) -> World {
    let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "lastTransitionTime": start()});
    let mut conditions = vec![condition("Active", active), condition("Ready", active)];
    if initialized {
        conditions.push(condition("ScaleTargetInitialized", "True"));
    }
    let mut autoscaler = json!(autoscaler(1, annotations, reach));
    autoscaler["status"] = json!({"conditions": conditions});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "default", "name": "d"},
        "spec": {"replicas": replicas, "selector": {}, "template": {}}});
    pods(world().with_json(autoscaler).with_json(deployment), ready)
}

fn wants(scale: i32) -> Wanted {
    Wanted { scale: Some(scale), ..Wanted::default() }
}

fn run(case: &str, world: &World, second: i64, wanted: &Wanted) -> Outcome {
    run_where(case, world, second, wanted, false)
}

/// On a cluster, where gateways drain.
fn run_where(case: &str, world: &World, second: i64, wanted: &Wanted, drains: bool) -> Outcome {
    let mut world = world.clone();
    world.set_now(after(second));
    converge(case, &world, &Key::new("default", NAME), |w, key, now| gather(w, drains, key, now, |_, _| wanted.clone()))
}

fn replicas(world: &World) -> i32 {
    world.expect::<Deployment>("default", "d").spec.unwrap().replicas.unwrap()
}

fn active(world: &World) -> String {
    tell(&world.expect::<PodAutoscaler>("default", NAME).status.unwrap().conditions, "Active")
}

#[test]
fn bounds() {
    let none = json!({});
    let min = json!({"autoscaling.knative.dev/min-scale": "2"});
    let max = json!({"autoscaling.knative.dev/max-scale": "3"});
    let initial = json!({"autoscaling.knative.dev/initial-scale": "4"});
    let floor = Wanted { floor: 6, ..wants(1) };
    for (case, annotations, reach, initialized, wanted, want) in [
        ("as wanted", none.clone(), "", true, wants(5), 5),
        ("unknown leaves it", none.clone(), "", true, Wanted::default(), 1),
        ("minimum", min.clone(), "", true, wants(1), 2),
        ("minimum without data", min.clone(), "", true, Wanted::default(), 2),
        ("minimum for what nothing reaches", min, "Unreachable", true, wants(1), 1),
        ("maximum", max.clone(), "", true, wants(9), 3),
        ("initial", initial.clone(), "", false, wants(1), 4),
        ("initial, once reached", initial.clone(), "", true, wants(1), 1),
        ("initial, unreachable", initial, "Unreachable", false, wants(1), 1),
        ("floor", none, "", true, floor.clone(), 6),
        ("floor below the maximum", max, "", true, floor, 3),
    ] {
        let world = given_reachable(annotations, "True", initialized, 1, 1, reach);
        assert_eq!(replicas(&run(case, &world, 100, &wanted).world), want, "{case}");
    }
}

#[test]
fn the_way_to_zero() {
    let kept = json!({"autoscaling.knative.dev/scale-to-zero-pod-retention-period": "45s"});
    let idle = json!({"autoscaling.knative.dev/window": "10s"});
    for (case, annotations, state, initialized, second, replicas_after, active_after, again) in [
        ("active for less than a window", json!({}), "True", true, 59, 1, "True", Some(1)),
        ("active for a window", json!({}), "True", true, 60, 0, "False NoTraffic", None),
        ("a window of one's own", idle, "True", true, 10, 0, "False NoTraffic", None),
        ("retention, marked inactive first", kept.clone(), "True", true, 60, 1, "False NoTraffic", Some(45)),
        ("retention", kept.clone(), "False", true, 44, 1, "False", Some(1)),
        ("retention over", kept, "False", true, 45, 0, "False", None),
        ("activating", json!({}), "Unknown", true, 629, 1, "Unknown Queued", Some(1)),
        ("never activated", json!({}), "Unknown", true, 630, 0, "False TimedOut", None),
    ] {
        let ready = usize::from(state != "Unknown");
        let outcome = run(case, &given(annotations, state, initialized, 1, ready), second, &wants(0));
        assert_eq!(replicas(&outcome.world), replicas_after, "{case}");
        let told = active(&outcome.world);
        assert!(told.starts_with(active_after), "{case}: {told}");
        assert_eq!(outcome.requeue_after.map(|d| d.as_secs()), again, "{case}");
    }
}

#[test]
fn from_zero_and_back_in_time() {
    let zero = given(json!({}), "False", true, 0, 0);
    assert_eq!(
        run("nothing wanted", &zero, 10, &Wanted::default()).writes,
        ["status PodAutoscaler default/hello-00001"]
    );
    let poked = Wanted { floor: 1, ..Wanted::default() };
    let outcome = run("poked", &zero, 10, &poked);
    assert_eq!(outcome.writes[0], "patch Deployment default/d", "the scale before the status");
    assert_eq!(active(&outcome.world), "Unknown Queued: Requests to the target are held while instances start.");
    let up = pods(outcome.world, 1);
    let outcome = run("ready", &up, 11, &poked);
    assert_eq!(active(&outcome.world), "True");
    let status = outcome.world.expect::<PodAutoscaler>("default", NAME).status.unwrap();
    assert_eq!((status.desired_scale, status.actual_scale), (Some(1), Some(1)));
    // The average knows of nothing, but the instance became active at 11: it stays until 71.
    let outcome = run("quiet", &outcome.world, 70, &wants(0));
    assert_eq!((replicas(&outcome.world), active(&outcome.world).as_str()), (1, "True"));
    let outcome = run("quiet for a window", &outcome.world, 71, &wants(0));
    assert_eq!(replicas(&outcome.world), 0);
}

#[test]
fn the_first_instances_prove_it() {
    let world = given(json!({}), "Unknown", false, 1, 0);
    let outcome = run("starting", &world, 1, &Wanted::default());
    assert_eq!(replicas(&outcome.world), 1);
    let outcome = run("ready", &pods(outcome.world, 1), 2, &Wanted::default());
    let conditions = outcome.world.expect::<PodAutoscaler>("default", NAME).status.unwrap().conditions;
    assert_eq!(told(&conditions), ["Active=True : ", "Ready=True : ", "ScaleTargetInitialized=True : "]);
    let none = given(json!({"autoscaling.knative.dev/initial-scale": "0"}), "Unknown", false, 0, 0);
    let outcome = run("none needed", &none, 1, &Wanted::default());
    assert_eq!(replicas(&outcome.world), 0);
    assert!(active(&outcome.world).starts_with("False NoTraffic"));
}

#[test]
fn the_idle_go_first() {
    let loads = vec![load("p0", 2), load("p1", 0), load("p2", 1)];
    let outcome = run("down", &given(json!({}), "True", true, 3, 3), 100, &Wanted { loads, ..wants(2) });
    let writes: Vec<&str> = outcome.writes.iter().map(String::as_str).take(3).collect();
    assert_eq!(writes, ["patch Pod default/p0", "patch Pod default/p2", "patch Deployment default/d"]);
    let cost = |name| {
        outcome
            .world
            .expect::<Pod>("default", name)
            .metadata
            .annotations
            .map(|a| a["controller.kubernetes.io/pod-deletion-cost"].clone())
    };
    assert_eq!((cost("p0"), cost("p1"), cost("p2")), (Some("2".into()), None, Some("1".into())));
    let outcome =
        run("up", &given(json!({}), "True", true, 1, 1), 100, &Wanted { loads: vec![load("p0", 2)], ..wants(2) });
    assert_eq!(outcome.writes[0], "patch Deployment default/d", "nothing is spared on the way up");
}

#[test]
fn on_a_cluster_the_victim_drains_first() {
    let said = |loads: &[(&str, u32, bool)], scale: i32| {
        let load = |(pod, in_flight, draining): &(&str, u32, bool)| InstanceLoad {
            pod: (*pod).into(),
            in_flight: *in_flight,
            draining: *draining,
        };
        Wanted { loads: loads.iter().map(load).collect(), ..wants(scale) }
    };
    let mark = |world: &World, pod: &str| {
        let meta = world.expect::<Pod>("default", pod).metadata;
        let cost = meta.annotations.and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost").cloned());
        (meta.labels.unwrap().contains_key("dhow.dev/draining"), cost)
    };
    let marked = (true, Some("-1".to_owned()));
    let busy = [("p0", 2, false), ("p1", 0, false), ("p2", 1, false)];
    let given = given(json!({}), "True", true, 3, 3);
    let first = run_where("the idle one is marked", &given, 100, &said(&busy, 2), true);
    assert_eq!(first.writes.iter().filter(|w| !w.starts_with("status")).collect::<Vec<_>>(), ["patch Pod default/p1"]);
    assert_eq!((mark(&first.world, "p1"), mark(&first.world, "p2")), (marked.clone(), (false, None)));
    assert_eq!((replicas(&first.world), first.requeue_after.map(|d| d.as_secs())), (3, Some(2)));

    for (case, second, loads, scale, after, again) in [
        ("gateways without a request are given time", 101, vec![], 2, 3, Some(1)),
        ("all say that it drains", 102, vec![("p0", 2, false), ("p1", 0, true)], 2, 2, None),
        ("no gateway has a request", 102, vec![], 2, 2, None),
        ("one has not seen the mark", 102, vec![("p1", 0, false)], 2, 3, Some(1)),
        ("a request was faster than the mark", 120, vec![("p1", 1, true)], 2, 3, Some(1)),
        ("for as long as a request may take", 130, vec![("p1", 1, true)], 2, 2, None),
        ("the choice stays although another is idle", 102, vec![("p1", 1, true), ("p2", 0, false)], 2, 3, Some(1)),
    ] {
        let outcome = run_where(case, &first.world, second, &said(&loads, scale), true);
        assert_eq!((replicas(&outcome.world), mark(&outcome.world, "p1")), (after, marked.clone()), "{case}");
        assert_eq!(outcome.requeue_after.map(|d| d.as_secs()), again, "{case}");
    }

    let again = run_where("a request comes", &first.world, 101, &said(&busy, 3), true);
    assert_eq!(again.writes[0], "patch Pod default/p1");
    assert_eq!((replicas(&again.world), mark(&again.world, "p1")), (3, (false, None)));
    let more = run_where("many come", &first.world, 101, &said(&busy, 5), true);
    assert_eq!(more.writes[..2], ["patch Pod default/p1", "patch Deployment default/d"], "served before others start");

    let lowered = run_where("lowered", &first.world, 102, &said(&[], 2), true).world;
    let outcome = run_where("the pod is still there", &lowered, 103, &said(&[], 2), true);
    assert_eq!(mark(&outcome.world, "p1"), marked, "it is on its way out");
    let mut gone = lowered;
    gone.remove::<Pod>("default", "p1");
    assert_eq!(replicas(&run_where("gone", &gone, 104, &said(&[], 2), true).world), 2);

    let mut starting = first.world;
    set_status::<Pod>(&mut starting, "default", "p2", is_ready(false));
    let outcome = run_where("one is not ready", &starting, 102, &said(&[], 2), true);
    assert_eq!((mark(&outcome.world, "p1"), mark(&outcome.world, "p2")), ((false, None), marked));
}

#[test]
fn a_request_for_zero() {
    let drain = Wanted { drain: true, ..wants(0) };
    let min = json!({"autoscaling.knative.dev/min-scale": "1"});
    for (case, annotations, state, initialized, wanted, want) in [
        ("idle", json!({}), "True", true, drain.clone(), 0),
        ("busy", json!({}), "True", true, Wanted { floor: 2, ..drain.clone() }, 2),
        ("a minimum holds", min, "True", true, drain.clone(), 1),
        ("not proven yet", json!({}), "Unknown", false, drain, 1),
    ] {
        let ready = if initialized { 3 } else { 0 };
        let outcome = run(case, &given(annotations, state, initialized, 3, ready), 1, &wanted);
        assert_eq!(replicas(&outcome.world), want, "{case}");
        let status = outcome.world.get::<PodAutoscaler>("default", NAME).unwrap().status.clone().unwrap();
        assert_eq!(status.desired_scale, Some(want), "{case}");
    }
}
