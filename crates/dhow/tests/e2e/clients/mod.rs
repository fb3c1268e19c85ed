//! The clients that people have already, as real processes against the embedded API. Those that must be installed first
//! are tried by `make test-clients`.

mod controller;
mod helm;
mod kubectl;
mod programs;

use serde_json::{Value, json};

use crate::function::HELLO;
use crate::harness::Platform;

/// The spec of a pod that runs here: that of a function, whose image was just built.
fn pod_spec(platform: &Platform) -> Value {
    platform.deploy("hello", HELLO);
    let mut spec = platform.object("deployment", "hello-00001-deployment")["spec"]["template"]["spec"].clone();
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec
}
