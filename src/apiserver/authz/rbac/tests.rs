use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::request::Asked;
use crate::resources::find;

fn object(value: Value) -> Object {
    let Value::Object(object) = value else { unreachable!("it is an object") };
    object
}

fn resource(plural: &str) -> &'static Resource {
    find(GROUP, "v1", plural).expect("it is in the table")
}

fn see(rbac: &Rbac, plural: &str, namespace: &str, name: &str, value: Value) {
    let object = (!value.is_null()).then(|| object(value));
    rbac.observe(resource(plural), namespace, name, object.as_ref());
}

fn user(name: &str, groups: &[&str]) -> User {
    User {
        name: name.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ..User::default()
    }
}

/// `verb namespace group/plural/sub:name` or `verb /path`.
fn decide(rbac: &Rbac, user: &User, said: &str) -> Decision {
    let words: Vec<_> = said.split(' ').collect();
    let action = match words[..] {
        [verb, path] => Action { user, verb, asked: None, path },
        [verb, namespace, what] => {
            let (what, name) = what.split_once(':').unwrap_or((what, ""));
            let parts: Vec<_> = what.split('/').collect();
            let asked = Asked {
                group: parts[0],
                version: "v1",
                namespace: namespace.trim_matches('-'),
                plural: parts[1],
                subresource: parts.get(2).copied().unwrap_or_default(),
                name,
            };
            Action { user, verb, asked: Some(asked), path: "" }
        }
        _ => unreachable!("two or three words"),
    };
    rbac.decide(&action)
}

fn allowed(rbac: &Rbac, user: &User, said: &str) -> bool {
    matches!(decide(rbac, user, said), Decision::Allow(_))
}

fn binding(kind: &str, role: &str, subjects: &Value) -> Value {
    json!({"roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}, "subjects": subjects})
}

#[test]
fn rules_allow_what_they_name() {
    let rbac = Rbac::default();
    let ann = user("ann", &["dev"]);
    let rules = json!({"rules": [
        {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
        {"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["update"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a", "b"], "verbs": ["*"]},
        {"apiGroups": ["x.io"], "resources": ["*"], "verbs": ["knead"]},
        {"nonResourceURLs": ["/healthz", "/logs/*"], "verbs": ["get"]},
    ]});
    see(&rbac, "clusterroles", "", "r", rules);
    let subjects = json!([{"kind": "User", "name": "ann"}]);
    see(&rbac, "clusterrolebindings", "", "b", binding("ClusterRole", "r", &subjects));
    for said in [
        "get ns /pods:x",
        "list - /pods",
        "get ns /pods/log:x",
        "update ns apps/deployments/scale:x",
        "update ns /replicationcontrollers/scale:x",
        "delete ns /configmaps:a",
        "list ns /configmaps:b",
        "knead - x.io/dough:x",
        "knead - x.io/dough/part:x",
        "get /healthz",
        "get /logs/x/y",
        "get /logs/",
    ] {
        assert!(allowed(&rbac, &ann, said), "{said}");
    }
    for said in [
        "create ns /pods",
        "get ns apps/pods:x",
        "get ns /pods/exec:x",
        "get ns apps/deployments/scale:x",
        "update ns apps/deployments:x",
        "create ns /configmaps",
        "list ns /configmaps",
        "deletecollection ns /configmaps",
        "knead - y.io/dough:x",
        "roll - x.io/dough:x",
        "get - x.io/dough:x",
        "get /healthz/x",
        "get /logs",
        "post /healthz",
    ] {
        assert!(!allowed(&rbac, &ann, said), "{said}");
    }
    assert!(!allowed(&rbac, &user("bob", &["ann"]), "get ns /pods:x"));
}

#[test]
fn bindings_reach_whom_and_where_they_say_and_tell_why() {
    let rbac = Rbac::default();
    let rules = json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    see(&rbac, "clusterroles", "", "r", rules.clone());
    see(&rbac, "roles", "ns", "own", rules);
    let everybody = json!([{"kind": "Group", "name": "all"}]);
    let robot =
        json!([{"kind": "ServiceAccount", "name": "robot"}, {"kind": "Ghost", "name": "x"}]);
    see(&rbac, "rolebindings", "ns", "a", binding("Role", "own", &robot));
    see(&rbac, "rolebindings", "other", "b", binding("ClusterRole", "r", &everybody));
    let robot = user("system:serviceaccount:ns:robot", &[]);
    assert_eq!(
        decide(&rbac, &robot, "get ns /pods:x"),
        Decision::Allow(
            "RBAC: allowed by RoleBinding \"a/ns\" of Role \"own\" to ServiceAccount \"robot/ns\""
                .into()
        )
    );
    assert!(!allowed(&rbac, &robot, "get other /pods:x"));
    assert!(!allowed(&rbac, &robot, "get - /pods:x"));
    let bob = user("bob", &["all"]);
    assert_eq!(
        decide(&rbac, &bob, "get other /pods:x"),
        Decision::Allow(
            "RBAC: allowed by RoleBinding \"b/other\" of ClusterRole \"r\" to Group \"all\"".into()
        )
    );
    // Of another namespace, and of none of the role's own.
    let far = json!([{"kind": "ServiceAccount", "namespace": "ns", "name": "robot"}]);
    see(&rbac, "clusterrolebindings", "", "c", binding("ClusterRole", "r", &far));
    assert!(allowed(&rbac, &robot, "get - /pods:x"));
    see(&rbac, "rolebindings", "other", "d", binding("Role", "own", &far));
    see(&rbac, "clusterrolebindings", "", "c", Value::Null);
    assert_eq!(
        decide(&rbac, &robot, "get other /pods:x"),
        Decision::NoOpinion("RBAC: role.rbac.authorization.k8s.io \"own\" not found".to_owned())
    );
    see(&rbac, "rolebindings", "other", "e", binding("ClusterRole", "gone", &far));
    assert_eq!(
        decide(&rbac, &robot, "get other /pods:x"),
        Decision::NoOpinion(
            "RBAC: [role.rbac.authorization.k8s.io \"own\" not found, clusterrole.rbac.authorization.k8s.io \"gone\" not found]"
                .to_owned()
        )
    );
    assert_eq!(rbac.held(&robot, "other").unknown.len(), 2);
    // A role that comes later is found by the binding that was there before.
    see(
        &rbac,
        "clusterroles",
        "",
        "gone",
        json!({"rules": [
            {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        ]}),
    );
    assert!(allowed(&rbac, &robot, "delete other x.io/any:x"));
    assert_eq!(rbac.held(&robot, "other").rules, [Rule::all_resources()]);
}

#[test]
fn nothing_is_left_of_what_is_deleted() {
    let rbac = Rbac::default();
    let subjects = json!([
        {"kind": "User", "name": "ann"}, {"kind": "User", "name": "ann"}, {"kind": "Group", "name": "dev"},
    ]);
    for round in 0..3 {
        see(&rbac, "rolebindings", "ns", "a", binding("Role", "own", &subjects));
        see(&rbac, "rolebindings", "ns", "b", binding("Role", "own", &subjects));
        see(&rbac, "roles", "ns", "own", json!({"rules": []}));
        see(&rbac, "rolebindings", "ns", "b", binding("ClusterRole", "r", &subjects));
        see(&rbac, "roles", "ns", "own", Value::Null);
        assert_eq!(rbac.index().roles.len(), 2, "round {round}: they are still named");
        see(&rbac, "rolebindings", "ns", "a", Value::Null);
        see(&rbac, "rolebindings", "ns", "b", Value::Null);
        see(&rbac, "rolebindings", "ns", "b", Value::Null);
        let index = rbac.index();
        assert!(index.roles.is_empty() && index.bindings.is_empty());
        assert!(index.users.is_empty() && index.groups.is_empty());
        assert_eq!((index.slots.len(), index.free.len()), (2, 2), "the slots are used again");
    }
}

/// Says what the reference says, from all objects, one after the other.
#[derive(Debug, Default)]
struct Oracle(BTreeMap<(&'static str, String, String), Value>);

impl Oracle {
    fn allows(&self, action: &Action<'_>) -> bool {
        let namespace = action.asked.map_or("", |asked| asked.namespace);
        self.0.iter().any(|((plural, place, _), binding)| {
            let here = match *plural {
                "clusterrolebindings" => true,
                "rolebindings" => !namespace.is_empty() && place == namespace,
                _ => return false,
            };
            here && self.names(binding, place, action.user)
                && self.rules(binding, place).iter().any(|rule| Self::rule_allows(rule, action))
        })
    }

    fn names(&self, binding: &Value, place: &str, user: &User) -> bool {
        binding["subjects"].as_array().expect("a list").iter().any(|subject| {
            let name = subject["name"].as_str().expect("it is given");
            match subject["kind"].as_str().expect("it is given") {
                "User" => user.name == name,
                "Group" => user.groups.iter().any(|group| group == name),
                _ => {
                    let place = subject["namespace"].as_str().unwrap_or(place);
                    !place.is_empty()
                        && user.name == format!("system:serviceaccount:{place}:{name}")
                }
            }
        })
    }

    fn rules(&self, binding: &Value, place: &str) -> Vec<Value> {
        let name = binding["roleRef"]["name"].as_str().expect("it is given").to_owned();
        let key = match binding["roleRef"]["kind"].as_str() {
            Some("Role") => ("roles", place.to_owned(), name),
            _ => ("clusterroles", String::new(), name),
        };
        self.0
            .get(&key)
            .map_or(Vec::new(), |role| role["rules"].as_array().expect("a list").clone())
    }

    fn rule_allows(rule: &Value, action: &Action<'_>) -> bool {
        let words = |field: &str| -> Vec<&str> {
            rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let verbs = words("verbs");
        if !verbs.contains(&"*") && !verbs.contains(&action.verb) {
            return false;
        }
        let Some(asked) = action.asked else {
            return words("nonResourceURLs").iter().any(|url| {
                *url == "*"
                    || *url == action.path
                    || url.ends_with('*') && action.path.starts_with(url.trim_end_matches('*'))
            });
        };
        let full = match asked.subresource {
            "" => asked.plural.to_owned(),
            sub => format!("{}/{sub}", asked.plural),
        };
        let groups = words("apiGroups");
        (groups.contains(&"*") || groups.contains(&asked.group))
            && words("resources").iter().any(|known| {
                *known == "*"
                    || *known == full
                    || (!asked.subresource.is_empty()
                        && *known == format!("*/{}", asked.subresource))
            })
            && (words("resourceNames").is_empty() || words("resourceNames").contains(&asked.name))
    }
}

fn some(words: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(words), 0..=most)
}

fn a_rule() -> impl Strategy<Value = Value> {
    let verbs = || some(&["get", "list", "create", "knead", "*"], 2);
    let of_resources = (
        some(&["", "apps", "*"], 2),
        some(&["pods", "pods/log", "*/log", "*", "secrets"], 2),
        some(&["a", "b"], 1),
        verbs(),
    )
        .prop_map(|(groups, resources, names, verbs)| {
            json!({"apiGroups": groups, "resources": resources, "resourceNames": names, "verbs": verbs})
        });
    let of_urls = (some(&["/x", "/x/*", "*", "/y"], 2), verbs())
        .prop_map(|(urls, verbs)| json!({"nonResourceURLs": urls, "verbs": verbs}));
    prop_oneof![4 => of_resources, 1 => of_urls]
}

fn a_subject() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(&["ann", "bob"])
            .prop_map(|name| json!({"kind": "User", "name": name})),
        prop::sample::select(&["dev", "ops"])
            .prop_map(|name| json!({"kind": "Group", "name": name})),
        prop::sample::select(&["n", "m"]).prop_map(
            |place| json!({"kind": "ServiceAccount", "namespace": place, "name": "robot"})
        ),
        Just(json!({"kind": "ServiceAccount", "name": "robot"})),
    ]
}

/// A write: which resource, where, which name, and what; null deletes.
fn a_write() -> impl Strategy<Value = (&'static str, &'static str, &'static str, Value)> {
    let names = || prop::sample::select(&["r", "s"]);
    let place = || prop::sample::select(&["n", "m"]);
    let role = prop_oneof![
        3 => prop::collection::vec(a_rule(), 0..3).prop_map(|rules| json!({"rules": rules})),
        1 => Just(Value::Null),
    ];
    let bound = |kinds: &'static [&'static str]| {
        let bound =
            (prop::sample::select(kinds), names(), prop::collection::vec(a_subject(), 0..3))
                .prop_map(|(kind, role, subjects)| binding(kind, role, &json!(subjects)));
        prop_oneof![3 => bound, 1 => Just(Value::Null)]
    };
    prop_oneof![
        (names(), role.clone()).prop_map(|(name, role)| ("clusterroles", "", name, role)),
        (place(), names(), role).prop_map(|(place, name, role)| ("roles", place, name, role)),
        (names(), bound(&["ClusterRole"])).prop_map(|(name, bound)| (
            "clusterrolebindings",
            "",
            name,
            bound
        )),
        (place(), names(), bound(&["ClusterRole", "Role"])).prop_map(|(place, name, bound)| (
            "rolebindings",
            place,
            name,
            bound
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_index_says_what_all_objects_say(writes in prop::collection::vec(a_write(), 1..24)) {
        let (rbac, mut oracle) = (Rbac::default(), Oracle::default());
        let users = [
            user("ann", &["dev"]),
            user("bob", &["dev", "ops"]),
            user("system:serviceaccount:n:robot", &[]),
            user("system:serviceaccount:m:robot", &["ops"]),
        ];
        for (plural, place, name, value) in writes {
            see(&rbac, plural, place, name, value.clone());
            let key = (plural, place.to_owned(), name.to_owned());
            if value.is_null() { oracle.0.remove(&key); } else { oracle.0.insert(key, value); }
        }
        for user in &users {
            for verb in ["get", "list", "create", "knead", "roll"] {
                for path in ["/x", "/x/y", "/y", "/z"] {
                    let action = Action { user, verb, asked: None, path };
                    let allows = matches!(rbac.decide(&action), Decision::Allow(_));
                    prop_assert_eq!(allows, oracle.allows(&action), "{:?}", action);
                }
                for namespace in ["", "n", "m"] {
                    for (group, plural, subresource, name) in [
                        ("", "pods", "", ""), ("", "pods", "log", "a"), ("apps", "pods", "", "b"), ("x", "y", "", "c"),
                    ] {
                        let asked = Asked { group, version: "v1", namespace, plural, name, subresource };
                        let action = Action { user, verb, asked: Some(asked), path: "" };
                        let allows = matches!(rbac.decide(&action), Decision::Allow(_));
                        prop_assert_eq!(allows, oracle.allows(&action), "{:?}", action);
                    }
                }
            }
        }
    }
}
