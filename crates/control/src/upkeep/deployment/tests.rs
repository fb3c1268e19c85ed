use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};

use super::gather;
use crate::fixtures::*;

fn given(strategy: Value) -> World {
    world().with_json(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "default", "name": "hello"},
        "spec": {"replicas": 2, "strategy": strategy, "selector": {"matchLabels": {"app": "hello"}}, "template": {
            "metadata": {"labels": {"app": "hello"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}}},
    }))
}

fn run(case: &str, world: &World) -> Outcome {
    settle(case, world, gather)
}

/// Each ReplicaSet as `image spec/available`.
fn sets(world: &World) -> Vec<String> {
    let mut sets: Vec<String> = reconcile::View::list::<ReplicaSet>(world, "default")
        .iter()
        .map(|s| {
            let spec = s.spec.as_ref().unwrap();
            let image = spec.template.as_ref().unwrap().spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            let available = s.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
            format!("{image} {}/{available}", spec.replicas.unwrap())
        })
        .collect();
    sets.sort();
    sets
}

/// Plays the ReplicaSet controller and the node: every set has what it should, all available.
fn catch_up(world: &mut World) {
    for set in reconcile::View::list::<ReplicaSet>(world, "default") {
        let replicas = set.spec.as_ref().unwrap().replicas.unwrap();
        let status = json!({"replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas});
        set_status::<ReplicaSet>(world, "default", set.metadata.name.as_deref().unwrap(), status);
    }
}

fn change(world: &mut World, image: &str) {
    world.edit::<Deployment>("default", "hello", |d| {
        d.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    });
}

fn conditions(world: &World) -> Vec<String> {
    let status = world.expect::<Deployment>("default", "hello").status.unwrap();
    status
        .conditions
        .unwrap()
        .iter()
        .map(|c| format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap()))
        .collect()
}

#[test]
fn comes_up() {
    let outcome = run("new", &given(json!({})));
    let mut world = outcome.world;
    assert_eq!(sets(&world), ["one 2/0"]);
    assert_eq!(
        conditions(&world),
        ["Available=False MinimumReplicasUnavailable", "Progressing=True ReplicaSetUpdated"]
    );
    assert_eq!(outcome.requeue_after, Some(SignedDuration::from_secs(600)));
    let set = reconcile::View::list::<ReplicaSet>(&world, "default")[0].clone();
    let hash = set.metadata.labels.as_ref().unwrap()["pod-template-hash"].clone();
    assert_eq!(set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()["pod-template-hash"], hash);
    catch_up(&mut world);
    let world = run("up", &world).world;
    assert_eq!(
        conditions(&world),
        ["Available=True MinimumReplicasAvailable", "Progressing=True NewReplicaSetAvailable"]
    );
    let status = world.expect::<Deployment>("default", "hello").status.unwrap();
    assert_eq!((status.ready_replicas, status.updated_replicas, status.unavailable_replicas), (Some(2), Some(2), None));
}

#[test]
fn the_old_goes_when_the_new_is_there() {
    for (case, strategy, steps) in [
        ("rolling", json!({"type": "RollingUpdate"}), [vec!["one 2/2", "two 2/0"], vec!["one 0/2", "two 2/2"]]),
        ("recreate", json!({"type": "Recreate"}), [vec!["one 0/2", "two 0/0"], vec!["one 0/0", "two 2/0"]]),
    ] {
        let mut world = run(case, &given(strategy)).world;
        catch_up(&mut world);
        let mut world = run(case, &world).world;
        change(&mut world, "two");
        for want in steps {
            world = run(case, &world).world;
            assert_eq!(sets(&world), want, "{case}");
            catch_up(&mut world);
        }
        catch_up(&mut world);
        let world = run(case, &world).world;
        assert_eq!(sets(&world), ["one 0/0", "two 2/2"], "{case}");
    }
}

#[test]
fn scale_follows() {
    let mut world = run("new", &given(json!({}))).world;
    for (replicas, told) in [(5, ["Scaled up", "from 2 to 5"]), (0, ["Scaled down", "from 5 to 0"])] {
        world.edit::<Deployment>("default", "hello", |d| d.spec.as_mut().unwrap().replicas = Some(replicas));
        let outcome = run("scaled", &world);
        world = outcome.world;
        assert_eq!(sets(&world), [format!("one {replicas}/0")]);
        assert_eq!(outcome.writes[0].split(' ').take(2).collect::<Vec<_>>(), ["patch", "ReplicaSet"]);
        let event = outcome.events.last().unwrap();
        assert!(told.iter().all(|part| event.contains(part)), "{event}");
    }
}

#[test]
fn stuck() {
    let mut world = run("new", &given(json!({}))).world;
    world.set_now(after(599));
    let world = run("not yet", &world).world;
    assert_eq!(conditions(&world)[1], "Progressing=True ReplicaSetUpdated");
    let mut world = world;
    world.set_now(after(600));
    let mut world = run("late", &world).world;
    assert_eq!(conditions(&world)[1], "Progressing=False ProgressDeadlineExceeded");
    catch_up(&mut world);
    let world = run("after all", &world).world;
    assert_eq!(conditions(&world)[1], "Progressing=True NewReplicaSetAvailable");
}

#[test]
fn history_is_bounded() {
    let mut world = given(json!({}));
    for i in 0..14 {
        change(&mut world, &format!("image-{i}"));
        world.set_now(after(i));
        world = run("roll", &world).world;
        catch_up(&mut world);
        world = run("roll", &world).world;
        catch_up(&mut world);
    }
    let world = run("rest", &world).world;
    assert_eq!(sets(&world).len(), 11);
    assert!(sets(&world).contains(&"image-13 2/2".to_owned()) && !sets(&world).contains(&"image-0 0/0".to_owned()));
}

/// Each ReplicaSet as `image revision cause`, and the Deployment's own revision.
fn revisions(world: &World) -> (Vec<String>, String) {
    let of = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, key: &str| {
        meta.annotations.as_ref().and_then(|a| a.get(key)).cloned().unwrap_or_default()
    };
    let mut sets: Vec<String> = reconcile::View::list::<ReplicaSet>(world, "default")
        .iter()
        .map(|s| {
            let template = s.spec.as_ref().unwrap().template.as_ref().unwrap();
            let image = template.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            let revision = of(&s.metadata, "deployment.kubernetes.io/revision");
            format!("{image} {revision} {}", of(&s.metadata, "kubernetes.io/change-cause"))
        })
        .collect();
    sets.sort();
    (sets, of(&world.expect::<Deployment>("default", "hello").metadata, "deployment.kubernetes.io/revision"))
}

#[test]
fn templates_are_numbered_in_the_order_of_their_use() {
    let mut world = run("new", &given(json!({}))).world;
    catch_up(&mut world);
    for (image, cause, want, revision) in [
        ("one", "first", vec!["one 1 first"], "1"),
        ("two", "second", vec!["one 1 first", "two 2 second"], "2"),
        ("one", "back", vec!["one 3 back", "two 2 second"], "3"),
        ("one", "again", vec!["one 3 again", "two 2 second"], "3"),
    ] {
        change(&mut world, image);
        world.edit::<Deployment>("default", "hello", |d| {
            d.metadata.annotations.get_or_insert_default().insert("kubernetes.io/change-cause".into(), cause.into());
        });
        for _ in 0..2 {
            world = run(image, &world).world;
            catch_up(&mut world);
        }
        assert_eq!(revisions(&world), (want.into_iter().map(str::to_owned).collect(), revision.to_owned()), "{cause}");
    }
}

#[test]
fn a_set_that_was_left_is_taken_again() {
    let mut world = run("new", &given(json!({}))).world;
    catch_up(&mut world);
    let left = reconcile::View::list::<ReplicaSet>(&world, "default")[0].metadata.name.clone().unwrap();
    world.edit::<ReplicaSet>("default", &left, |set| set.metadata.owner_references = None);
    let outcome = run("taken", &world);
    assert_eq!(outcome.writes, [format!("patch ReplicaSet default/{left}"), "status Deployment default/hello".into()]);
    assert_eq!(sets(&outcome.world), ["one 2/2"]);
}
