//! Which objects are Dhow's to act on where others serve the same kinds: each says so by an annotation, or says nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// On any object of ours: who acts on it.
pub const CLASS: &str = "dhow.dev/class";
const DHOW: &str = "dhow";
/// Knative's, of PodAutoscalers and of Ingresses; the latter in the older spelling, too.
const AUTOSCALER: &str = "autoscaling.knative.dev/class";
const INGRESS: [&str; 2] = ["networking.knative.dev/ingress-class", "networking.knative.dev/ingress.class"];
const AUTOSCALERS: [&str; 2] = ["kpa.autoscaling.knative.dev", "dhow.dev"];
const INGRESSES: [&str; 1] = ["dhow.ingress.networking.knative.dev"];

pub fn is_ours(meta: &ObjectMeta) -> bool {
    allows(meta, CLASS, &[DHOW])
}

pub fn is_our_autoscaler(meta: &ObjectMeta) -> bool {
    is_ours(meta) && allows(meta, AUTOSCALER, &AUTOSCALERS)
}

pub fn is_our_ingress(meta: &ObjectMeta) -> bool {
    is_ours(meta) && INGRESS.iter().all(|key| allows(meta, key, &INGRESSES))
}

fn allows(meta: &ObjectMeta, key: &str, classes: &[&str]) -> bool {
    let class = meta.annotations.as_ref().and_then(|annotations| annotations.get(key));
    class.is_none_or(|class| classes.contains(&class.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (annotation, ours, autoscaler, ingress) in [
            (None, true, true, true),
            (Some((CLASS, "dhow")), true, true, true),
            (Some((CLASS, "other")), false, false, false),
            (Some((AUTOSCALER, "kpa.autoscaling.knative.dev")), true, true, true),
            (Some((AUTOSCALER, "hpa.autoscaling.knative.dev")), true, false, true),
            (Some((INGRESS[0], "dhow.ingress.networking.knative.dev")), true, true, true),
            (Some((INGRESS[1], "kourier.ingress.networking.knative.dev")), true, true, false),
        ] {
            let annotations = annotation.map(|(key, value)| [(key.to_owned(), value.to_owned())].into());
            let meta = ObjectMeta { annotations, ..ObjectMeta::default() };
            let found = (is_ours(&meta), is_our_autoscaler(&meta), is_our_ingress(&meta));
            assert_eq!(found, (ours, autoscaler, ingress), "{annotation:?}");
        }
    }
}
