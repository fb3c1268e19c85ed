//! Questions about the one who asks. There is no authorisation yet: whoever has a token may do everything.

use serde_json::json;

use super::{Shape, Strategy, Verbs};

pub static ACCESS_REVIEW: Strategy = Strategy {
    group: "authorization.k8s.io",
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    namespaced: false,
    verbs: Verbs::Ask(|review, _| review["status"] = json!({"allowed": true})),
    shape: Shape::Builtin("io.k8s.api.authorization.v1.SelfSubjectAccessReview"),
    ..Strategy::BASE
};

pub static RULES_REVIEW: Strategy = Strategy {
    group: "authorization.k8s.io",
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    namespaced: false,
    verbs: Verbs::Ask(|review, _| {
        review["status"] = json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        });
    }),
    shape: Shape::Builtin("io.k8s.api.authorization.v1.SelfSubjectRulesReview"),
    ..Strategy::BASE
};

pub static SUBJECT_REVIEW: Strategy = Strategy {
    group: "authentication.k8s.io",
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    namespaced: false,
    verbs: Verbs::Ask(|review, user| {
        let groups: Vec<&str> = user.groups.iter().map(String::as_str).chain(["system:authenticated"]).collect();
        review["status"] = json!({"userInfo": {"username": user.name, "groups": groups}});
    }),
    shape: Shape::Builtin("io.k8s.api.authentication.v1.SelfSubjectReview"),
    ..Strategy::BASE
};
