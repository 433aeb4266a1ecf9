//! What is not given is what the reference makes of it: `defaults.tsv` has a row per field (type, path, value,
//! condition), applied wherever the type occurs, in the order of the table; what depends on more is code beside it.
//!
//! A value is JSON, or `=` and the path of a sibling that is copied. A condition is a list of paths that must be given
//! (`egress`), must not (`!spec.completions`), or must be something (`type=NodePort`).

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::json::empty;
use crate::object::{Object, at, at_mut, text};
use crate::packed::unpacked;
use crate::quantity::Quantity;
use crate::resources::Resource;
use crate::schema::{Kind, SCHEMA, Shape, TypeId};

/// Fills in what is not given, and writes quantities canonically. Doing it twice is doing it once.
pub fn default(resource: &Resource, object: &mut Object) {
    walk(object, resource.schema);
}

/// The same for one part of it, which is there.
pub(super) fn fill(resource: &Resource, object: &mut Object, part: &str) {
    let kind = SCHEMA.field(resource.schema, part).map(|field| field.kind);
    if let (Some(Kind::Message(of)), Some(Value::Object(part))) = (kind, object.get_mut(part)) {
        walk(part, of);
    }
}

/// A row of the table.
struct Rule {
    path: Vec<&'static str>,
    /// A zero value is as good as none.
    plain: bool,
    value: Source,
    conditions: Vec<Condition>,
}

enum Source {
    Value(Value),
    /// Of a sibling.
    Copy(String),
}

enum Condition {
    Given(String),
    Absent(String),
    Equal(String, &'static str),
}

type Hook = fn(&mut Object);

static RULES: LazyLock<HashMap<TypeId, Vec<Rule>>> = LazyLock::new(read);

static HOOKS: LazyLock<HashMap<TypeId, Hook>> = LazyLock::new(|| {
    let hooks: [(&str, &str, Hook); 9] = [
        ("core/v1", "Pod", pod),
        ("core/v1", "Container", container),
        ("core/v1", "EphemeralContainerCommon", container),
        ("core/v1", "Volume", volume),
        ("core/v1", "ServiceSpec", service),
        ("core/v1", "Secret", secret),
        ("core/v1", "Namespace", namespace),
        ("core/v1", "LimitRangeItem", limit_range_item),
        ("core/v1", "PersistentVolumeClaimSpec", claim),
    ];
    hooks
        .into_iter()
        .map(|(place, name, hook)| (SCHEMA.find(place, name).expect("a type of the schema"), hook))
        .collect()
});

fn read() -> HashMap<TypeId, Vec<Rule>> {
    let mut rules: HashMap<TypeId, Vec<Rule>> = HashMap::new();
    for line in unpacked!("defaults.tsv").lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let &[place, name, path, value, conditions] = &columns[..] else {
            unreachable!("a row of the defaults has five columns: {line:?}");
        };
        let of = SCHEMA.find(place, name).expect("the defaults are of types of the schema");
        let value = match value.strip_prefix('=') {
            Some(path) => Source::Copy(pointer(path)),
            None => Source::Value(serde_json::from_str(value).expect("a default is JSON")),
        };
        let conditions = conditions.split(',').filter(|condition| *condition != "-");
        let conditions = conditions.map(|condition| match condition.split_once('=') {
            Some((path, value)) => Condition::Equal(pointer(path), value),
            None => match condition.strip_prefix('!') {
                Some(path) => Condition::Absent(pointer(path)),
                None => Condition::Given(pointer(condition)),
            },
        });
        let path: Vec<_> = path.split('.').collect();
        rules.entry(of).or_default().push(Rule {
            plain: shape(of, &path) == Shape::Value,
            path,
            value,
            conditions: conditions.collect(),
        });
    }
    rules
}

fn pointer(path: &str) -> String {
    format!("/{}", path.replace('.', "/"))
}

/// Of the field at the end of a path.
fn shape(of: TypeId, path: &[&str]) -> Shape {
    let field = SCHEMA.field(of, path[0]).expect("a default is of a field");
    match field.kind {
        Kind::Message(inner) if path.len() > 1 => shape(inner, &path[1..]),
        _ => field.shape,
    }
}

/// An object of a type and all in it.
fn walk(object: &mut Object, of: TypeId) {
    for rule in RULES.get(&of).into_iter().flatten() {
        rule.apply(object);
    }
    if let Some(hook) = HOOKS.get(&of) {
        hook(object);
    }
    for field in &SCHEMA.get(of).fields {
        match (field.shape, field.kind) {
            (Shape::Inline, Kind::Message(inner)) => walk(object, inner),
            // In Go it is there, even when nothing is in it.
            (Shape::Value, Kind::Message(inner)) => {
                let inside = object.entry(field.json).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(inside) = inside {
                    walk(inside, inner);
                }
            }
            (Shape::Value, kind) if !field.omits_empty && !object.contains_key(field.json) => {
                let value = empty(kind);
                if !value.is_null() {
                    object.insert(field.json.to_owned(), value);
                }
            }
            (_, Kind::Message(_) | Kind::Quantity) => {
                if let Some(value) = object.get_mut(field.json) {
                    walk_value(value, field.kind);
                }
            }
            _ => {}
        }
    }
}

/// One value of a kind, or a list or map of them.
fn walk_value(value: &mut Value, kind: Kind) {
    match (kind, value) {
        (kind, Value::Array(items)) => items.iter_mut().for_each(|item| walk_value(item, kind)),
        (Kind::Message(of), Value::Object(object)) => {
            // Maps are of quantities or of plain values.
            walk(object, of);
        }
        (Kind::Quantity, Value::Object(map)) => {
            map.values_mut().for_each(|value| walk_value(value, kind));
        }
        (Kind::Quantity, value) => {
            if let Ok(amount) = Quantity::of(value) {
                *value = amount.to_string().into();
            }
        }
        _ => {}
    }
}

impl Rule {
    fn apply(&self, object: &mut Object) {
        let holds = |condition: &Condition| match condition {
            Condition::Given(path) => at(object, path).is_some_and(|value| !is_none(value)),
            Condition::Absent(path) => at(object, path).is_none_or(is_none),
            Condition::Equal(path, expected) => text(object, path) == *expected,
        };
        if !self.conditions.iter().all(holds) {
            return;
        }
        let value = match &self.value {
            Source::Value(value) => value.clone(),
            Source::Copy(path) => match at(object, path) {
                Some(value) if !is_none(value) && !is_zero(value) => value.clone(),
                _ => return,
            },
        };
        let mut inside = object;
        let (last, way) = self.path.split_last().expect("a path has a field");
        for name in way {
            let next = inside.entry(*name).or_insert_with(|| Value::Object(Map::new()));
            match next {
                Value::Object(next) => inside = next,
                _ => return,
            }
        }
        let unset =
            inside.get(*last).is_none_or(|old| is_none(old) || (self.plain && is_zero(old)));
        if unset {
            inside.insert((*last).to_owned(), value);
        }
    }
}

/// Nothing, or a list or text map of nothing. An empty message is given.
fn is_none(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// What Go has where nothing is given.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(value) => !value,
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Of pods alone, not of templates.
fn pod(pod: &mut Object) {
    let host_network = at(pod, "/spec/hostNetwork") == Some(&Value::Bool(true));
    for list in ["/spec/initContainers", "/spec/containers"] {
        let Some(Value::Array(containers)) = at_mut(pod, list) else { continue };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            requests_from_limits(container);
            if host_network && let Some(Value::Array(ports)) = container.get_mut("ports") {
                for port in ports.iter_mut().filter_map(Value::as_object_mut) {
                    let given = port.get("hostPort").is_some_and(|port| !is_zero(port));
                    let own = port.get("containerPort").filter(|own| !is_zero(own)).cloned();
                    if let (false, Some(own)) = (given, own) {
                        port.insert("hostPort".to_owned(), own);
                    }
                }
            }
        }
    }
    if let Some(Value::Object(spec)) = pod.get_mut("spec") {
        requests_from_limits(spec);
    }
}

/// What is limited and not asked for is asked for.
fn requests_from_limits(of: &mut Object) {
    let Some(Value::Object(resources)) = of.get_mut("resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Value::Object(requests) = requests {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn container(container: &mut Object) {
    if text(container, "/imagePullPolicy").is_empty() {
        let policy = if is_latest(text(container, "/image")) { "Always" } else { "IfNotPresent" };
        container.insert("imagePullPolicy".to_owned(), policy.into());
    }
}

/// Neither tag nor digest, or the tag `latest`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn volume(volume: &mut Object) {
    let sourced = volume.iter().any(|(name, source)| name != "name" && !source.is_null());
    if !sourced {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
}

fn service(spec: &mut Object) {
    if text(spec, "/sessionAffinity") == "None" {
        spec.remove("sessionAffinityConfig");
    }
}

/// `stringData` is written and never read.
fn secret(secret: &mut Object) {
    if let Some(Value::Object(texts)) = secret.remove("stringData") {
        let data = secret.entry("data").or_insert_with(|| json!({}));
        if let Value::Object(data) = data {
            for (key, value) in texts {
                data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
            }
        }
    }
}

fn namespace(namespace: &mut Object) {
    let name = text(namespace, "/metadata/name").to_owned();
    if name.is_empty() {
        return;
    }
    if let Value::Object(metadata) = namespace.entry("metadata").or_insert_with(|| json!({}))
        && let Value::Object(labels) = metadata.entry("labels").or_insert_with(|| json!({}))
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

/// Containers: what is limited by default is asked for by default, and the rest as `max` and `min` say.
fn limit_range_item(item: &mut Object) {
    if text(item, "/type") != "Container" {
        return;
    }
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")]
    {
        let Some(Value::Object(from)) = item.get(from).cloned() else { continue };
        let own = item.entry(to).or_insert_with(|| json!({}));
        if let Value::Object(own) = own {
            for (name, amount) in from {
                own.entry(name).or_insert(amount);
            }
        }
    }
}

/// The two names of a claim's source say the same where they can.
fn claim(spec: &mut Object) {
    let namespaced = !text(spec, "/dataSourceRef/namespace").is_empty();
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => drop(spec.insert("dataSourceRef".to_owned(), source)),
        (None, Some(source)) if !namespaced && is_old_source(&source) => {
            spec.insert("dataSource".to_owned(), source);
        }
        _ => {}
    }
}

/// A claim or a snapshot, which is all the older field may name.
fn is_old_source(source: &Value) -> bool {
    matches!(
        (source["apiGroup"].as_str().unwrap_or_default(), source["kind"].as_str()),
        ("", Some("PersistentVolumeClaim")) | ("snapshot.storage.k8s.io", Some("VolumeSnapshot"))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    fn defaulted(group: &str, version: &str, plural: &str, object: Value) -> Value {
        let resource = find(group, version, plural).expect("a resource");
        let Value::Object(mut object) = object else { unreachable!("it is an object") };
        default(resource, &mut object);
        let once = object.clone();
        default(resource, &mut object);
        assert_eq!(object, once, "twice is once");
        object.into()
    }

    #[test]
    fn a_pod_gets_what_the_reference_gives_it() {
        let pod = defaulted(
            "",
            "v1",
            "pods",
            json!({"metadata": {"name": "a"}, "spec": {
                "hostNetwork": true, "serviceAccountName": "sa",
                "containers": [{
                    "name": "c", "image": "registry:5000/app",
                    "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}, "requests": {"cpu": 0.25}},
                    "livenessProbe": {"httpGet": {"port": 80}},
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                }],
                "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "s"}}, {"name": "h", "hostPath": {"path": "/"}}],
            }}),
        );
        let spec = &pod["spec"];
        for (at, value) in [
            ("/restartPolicy", json!("Always")),
            ("/dnsPolicy", json!("ClusterFirst")),
            ("/terminationGracePeriodSeconds", json!(30)),
            ("/schedulerName", json!("default-scheduler")),
            ("/securityContext", json!({})),
            ("/enableServiceLinks", json!(true)),
            ("/serviceAccount", json!("sa")),
            ("/containers/0/imagePullPolicy", json!("Always")),
            ("/containers/0/terminationMessagePath", json!("/dev/termination-log")),
            (
                "/containers/0/ports/0",
                json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}),
            ),
            (
                "/containers/0/resources",
                json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "250m", "memory": "1Gi"}}),
            ),
            (
                "/containers/0/livenessProbe",
                json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}),
            ),
            ("/containers/0/env/0/valueFrom/fieldRef/apiVersion", json!("v1")),
            ("/volumes/0/emptyDir", json!({})),
            ("/volumes/1/secret/defaultMode", json!(420)),
            ("/volumes/2/hostPath/type", json!("")),
        ] {
            assert_eq!(spec.pointer(at), Some(&value), "{at}");
        }
        for (image, policy) in [
            ("app:latest", "Always"),
            ("app:1", "IfNotPresent"),
            ("r:5000/app@sha256:00", "IfNotPresent"),
            ("r:5000/x/app", "Always"),
        ] {
            let pod =
                defaulted("", "v1", "pods", json!({"spec": {"containers": [{"image": image}]}}));
            assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn each_kind_gets_what_the_reference_gives_it() {
        let all = [
            (
                "apps",
                "v1",
                "deployments",
                json!({"spec": {"template": {"spec": {}}}}),
                "/spec/strategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}),
            ),
            (
                "apps",
                "v1",
                "deployments",
                json!({"spec": {"strategy": {"type": "Recreate"}}}),
                "/spec/strategy",
                json!({"type": "Recreate"}),
            ),
            (
                "apps",
                "v1",
                "deployments",
                json!({"spec": {"replicas": 0}}),
                "/spec/replicas",
                json!(0),
            ),
            (
                "apps",
                "v1",
                "deployments",
                json!({}),
                "/spec/template/spec/restartPolicy",
                json!("Always"),
            ),
            (
                "apps",
                "v1",
                "statefulsets",
                json!({}),
                "/spec/updateStrategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
            ),
            (
                "apps",
                "v1",
                "daemonsets",
                json!({}),
                "/spec/updateStrategy/rollingUpdate",
                json!({"maxUnavailable": 1, "maxSurge": 0}),
            ),
            ("batch", "v1", "jobs", json!({}), "/spec/completions", json!(1)),
            (
                "batch",
                "v1",
                "jobs",
                json!({"spec": {"parallelism": 2}}),
                "/spec/completions",
                Value::Null,
            ),
            (
                "batch",
                "v1",
                "jobs",
                json!({"spec": {"backoffLimitPerIndex": 1}}),
                "/spec/backoffLimit",
                json!(i32::MAX),
            ),
            (
                "batch",
                "v1",
                "jobs",
                json!({"spec": {"podFailurePolicy": {"rules": []}}}),
                "/spec/podReplacementPolicy",
                json!("Failed"),
            ),
            ("batch", "v1", "cronjobs", json!({}), "/spec/successfulJobsHistoryLimit", json!(3)),
            (
                "batch",
                "v1",
                "cronjobs",
                json!({}),
                "/spec/jobTemplate/spec/backoffLimit",
                Value::Null,
            ),
            (
                "",
                "v1",
                "services",
                json!({"spec": {"ports": [{"port": 80}]}}),
                "/spec",
                json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                    "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]}),
            ),
            (
                "",
                "v1",
                "services",
                json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}),
                "/spec",
                json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "internalTrafficPolicy": "Cluster",
                    "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true}),
            ),
            (
                "",
                "v1",
                "services",
                json!({"spec": {"type": "ExternalName"}}),
                "/spec/internalTrafficPolicy",
                Value::Null,
            ),
            (
                "",
                "v1",
                "secrets",
                json!({"stringData": {"a": "b"}, "data": {"a": "eA==", "c": "eA=="}}),
                "/data",
                json!({"a": "Yg==", "c": "eA=="}),
            ),
            ("", "v1", "secrets", json!({"stringData": {"a": "b"}}), "/stringData", Value::Null),
            ("", "v1", "secrets", json!({}), "/type", json!("Opaque")),
            (
                "",
                "v1",
                "namespaces",
                json!({"metadata": {"name": "a"}}),
                "/metadata/labels",
                json!({"kubernetes.io/metadata.name": "a"}),
            ),
            (
                "",
                "v1",
                "persistentvolumes",
                json!({}),
                "/spec/persistentVolumeReclaimPolicy",
                json!("Retain"),
            ),
            ("", "v1", "persistentvolumeclaims", json!({}), "/status/phase", json!("Pending")),
            (
                "",
                "v1",
                "limitranges",
                json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}}]}}),
                "/spec/limits/0",
                json!({"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}, "default": {"cpu": "1"},
                    "defaultRequest": {"cpu": "1", "memory": "1Mi"}}),
            ),
            (
                "networking.k8s.io",
                "v1",
                "networkpolicies",
                json!({"spec": {"egress": [{}]}}),
                "/spec/policyTypes",
                json!(["Ingress", "Egress"]),
            ),
            (
                "networking.k8s.io",
                "v1",
                "networkpolicies",
                json!({}),
                "/spec/policyTypes",
                json!(["Ingress"]),
            ),
            (
                "autoscaling",
                "v2",
                "horizontalpodautoscalers",
                json!({}),
                "/spec/metrics/0/resource/target/averageUtilization",
                json!(80),
            ),
            (
                "autoscaling",
                "v2",
                "horizontalpodautoscalers",
                json!({"spec": {"behavior": {}}}),
                "/spec/behavior/scaleDown",
                json!({
                "selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}),
            ),
            (
                "autoscaling",
                "v2",
                "horizontalpodautoscalers",
                json!({}),
                "/spec/behavior",
                Value::Null,
            ),
            (
                "storage.k8s.io",
                "v1",
                "storageclasses",
                json!({}),
                "/volumeBindingMode",
                json!("Immediate"),
            ),
            (
                "scheduling.k8s.io",
                "v1",
                "priorityclasses",
                json!({}),
                "/preemptionPolicy",
                json!("PreemptLowerPriority"),
            ),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "rolebindings",
                json!({"subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}], "roleRef": {"kind": "Role", "name": "r"}}),
                "/subjects",
                json!([{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount", "name": "s"}]),
            ),
            (
                "admissionregistration.k8s.io",
                "v1",
                "mutatingwebhookconfigurations",
                json!({"webhooks": [{"name": "a", "clientConfig": {"service": {}}, "rules": [{"operations": ["*"]}]}]}),
                "/webhooks/0",
                json!({"name": "a", "clientConfig": {"service": {"namespace": "", "name": "", "port": 443}},
                    "rules": [{"operations": ["*"], "scope": "*"}], "failurePolicy": "Fail", "matchPolicy": "Equivalent",
                    "namespaceSelector": {}, "objectSelector": {}, "timeoutSeconds": 10, "reinvocationPolicy": "Never"}),
            ),
        ];
        for (group, version, plural, object, at, value) in all {
            let object = defaulted(group, version, plural, object);
            assert_eq!(object.pointer(at).unwrap_or(&Value::Null), &value, "{plural} {at}");
        }
    }
}
