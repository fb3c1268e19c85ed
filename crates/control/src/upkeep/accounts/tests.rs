use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use reconcile::Key;
use serde_json::json;

use super::gather;
use crate::fixtures::*;

fn namespace() -> World {
    world().with_json(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}))
}

fn run(case: &str, world: &World) -> Vec<String> {
    converge(case, world, &Key::new("default", "default"), gather).writes
}

#[test]
fn every_namespace_has_one() {
    assert_eq!(run("new", &namespace()), ["create ServiceAccount default/default"]);
    let there =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "default", "name": "default"}});
    let mut world = namespace().with_json(there);
    assert!(run("there", &world).is_empty());
    world.remove::<ServiceAccount>("default", "default");
    assert_eq!(run("deleted", &world).len(), 1);
    assert!(run("no namespace", &self::world()).is_empty());
    world.edit::<Namespace>("", "default", |n| {
        n.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(start()));
    });
    assert!(run("going", &world).is_empty());
}
