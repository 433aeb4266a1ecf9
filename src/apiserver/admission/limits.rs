//! `LimitRanger`: a namespace's defaults and bounds for containers, pods and claims.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::pods::{self, Amounts, amounts};
use super::{Stop, View, is, object_mut, refused, served, word};
use crate::object::{Change, Object, Operation, at, items, metadata, text};
use crate::quantity::Quantity;
use crate::status::Status;

/// Where the reference says what it has filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Gives the containers of a new pod the requests and limits they do not have.
pub(super) fn mutate(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    if !is(change, "", "pods") || change.operation != Operation::Create {
        return Ok(());
    }
    let mut said = Vec::new();
    for range in ranges(view, change) {
        let (requests, limits) = defaults(&range);
        let spec = object_mut(change.object, "spec");
        for (kind, called) in [("containers", "container"), ("initContainers", "init container")] {
            let containers = spec.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten();
            for container in containers.filter_map(Value::as_object_mut) {
                fill(container, called, &requests, &limits, &mut said);
            }
        }
    }
    if !said.is_empty() {
        let said = format!("LimitRanger plugin set: {}", said.join("; "));
        object_mut(metadata(change.object), "annotations")
            .insert(ANNOTATION.to_owned(), said.into());
    }
    Ok(())
}

/// Refuses what is out of bounds.
pub(super) fn validate(view: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    let pod = change.resource.group.is_empty() && change.resource.plural == "pods";
    // What a pod's containers have only changes through `resize`.
    let pod = pod
        && match change.operation {
            Operation::Create => change.subresource.is_empty(),
            Operation::Update => change.subresource == "resize",
            Operation::Delete => false,
        };
    let claim = is(change, "", "persistentvolumeclaims") && change.operation != Operation::Delete;
    let goes = change.operation == Operation::Update
        && at(change.object, "/metadata/deletionTimestamp").is_some();
    if !(pod || claim) || goes {
        return Ok(());
    }
    for range in ranges(view, change) {
        let mut wrong = Vec::new();
        for limit in items(&range, "/spec/limits") {
            if pod {
                judge_pod(change.object, limit, &mut wrong);
            } else {
                judge_claim(change.object, limit, &mut wrong);
            }
        }
        if let Some(status) = refusal(change, wrong) {
            return Err(status.into());
        }
    }
    Ok(())
}

fn ranges(view: &View<'_>, change: &Change<'_>) -> Vec<Object> {
    view.objects.list(served("", "v1", "limitranges"), change.namespace)
}

/// All that is wrong in one message, each thing once.
fn refusal(change: &Change<'_>, wrong: Vec<String>) -> Option<Status> {
    let mut once: Vec<String> = Vec::new();
    for said in wrong {
        if !once.contains(&said) {
            once.push(said);
        }
    }
    match &once[..] {
        [] => None,
        [only] => Some(refused(change, only)),
        several => Some(refused(change, &format!("[{}]", several.join(", ")))),
    }
}

/// The requests and limits of a container that says nothing.
fn defaults(range: &Object) -> (Map<String, Value>, Map<String, Value>) {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for limit in items(range, "/spec/limits").filter(|limit| word(limit, "type") == "Container") {
        for (field, all) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            let given = limit.get(field).and_then(Value::as_object);
            all.extend(given.cloned().into_iter().flatten());
        }
    }
    (requests, limits)
}

fn fill(
    container: &mut Object,
    called: &str,
    requests: &Map<String, Value>,
    limits: &Map<String, Value>,
    said: &mut Vec<String>,
) {
    let name = text(container, "/name").to_owned();
    for (field, kind, defaults) in [("requests", "request", requests), ("limits", "limit", limits)]
    {
        if defaults.is_empty() {
            continue;
        }
        let own = object_mut(object_mut(container, "resources"), field);
        let mut set = Vec::new();
        // In the order of their names, as they are told.
        for (resource, amount) in defaults.iter().collect::<BTreeMap<_, _>>() {
            if !own.contains_key(resource) {
                own.insert(resource.clone(), amount.clone());
                set.push(resource.as_str());
            }
        }
        if !set.is_empty() {
            said.push(format!("{} {kind} for {called} {name}", set.join(", ")));
        }
    }
}

/// What is asked for and what at most is used.
struct Used<'a> {
    of: &'a str,
    requests: Amounts,
    limits: Amounts,
}

fn judge_pod(pod: &Object, limit: &Value, wrong: &mut Vec<String>) {
    match word(limit, "type") {
        "Container" => {
            for container in ["/spec/containers", "/spec/initContainers"]
                .iter()
                .flat_map(|kind| items(pod, kind))
            {
                let used = Used {
                    of: "Container",
                    requests: amounts(container.pointer("/resources/requests")),
                    limits: amounts(container.pointer("/resources/limits")),
                };
                used.judge(limit, wrong);
            }
        }
        "Pod" => {
            let (requests, limits) = (pods::requests(pod), pods::limits(pod));
            Used { of: "Pod", requests, limits }.judge(limit, wrong);
        }
        _ => {}
    }
}

fn judge_claim(claim: &Object, limit: &Value, wrong: &mut Vec<String>) {
    if word(limit, "type") != "PersistentVolumeClaim" {
        return;
    }
    let requests = amounts(at(claim, "/spec/resources/requests"));
    let used = Used { of: "PersistentVolumeClaim", requests, limits: Amounts::new() };
    for (resource, bound) in amounts(limit.get("min")) {
        wrong.extend(used.below(&resource, bound));
    }
    for (resource, bound) in amounts(limit.get("max")) {
        let what = format!("maximum {resource} usage per {} is {bound}", used.of);
        wrong.extend(match used.requests.get(&resource) {
            None => Some(format!("{what}.  No request is specified")),
            Some(request) if *request > bound => Some(format!("{what}, but request is {request}")),
            Some(_) => None,
        });
    }
}

impl Used<'_> {
    fn judge(&self, limit: &Value, wrong: &mut Vec<String>) {
        for (resource, bound) in amounts(limit.get("min")) {
            wrong.extend(self.below(&resource, bound));
        }
        for (resource, bound) in amounts(limit.get("max")) {
            wrong.extend(self.above(&resource, bound));
        }
        for (resource, bound) in amounts(limit.get("maxLimitRequestRatio")) {
            wrong.extend(self.uneven(&resource, bound));
        }
    }

    fn below(&self, resource: &str, bound: Quantity) -> Option<String> {
        let what = format!("minimum {resource} usage per {} is {bound}", self.of);
        let Some(request) = self.requests.get(resource) else {
            return Some(format!("{what}.  No request is specified"));
        };
        if *request < bound {
            return Some(format!("{what}, but request is {request}"));
        }
        let limit = self.limits.get(resource).filter(|limit| **limit < bound)?;
        Some(format!("{what}, but limit is {limit}"))
    }

    fn above(&self, resource: &str, bound: Quantity) -> Option<String> {
        let what = format!("maximum {resource} usage per {} is {bound}", self.of);
        let Some(limit) = self.limits.get(resource) else {
            return Some(format!("{what}.  No limit is specified"));
        };
        if *limit > bound {
            return Some(format!("{what}, but limit is {limit}"));
        }
        let request = self.requests.get(resource).filter(|request| **request > bound)?;
        Some(format!("{what}, but request is {request}"))
    }

    fn uneven(&self, resource: &str, bound: Quantity) -> Option<String> {
        let what = format!("{resource} max limit to request ratio per {} is {bound}", self.of);
        let some =
            |amounts: &Amounts| amounts.get(resource).copied().filter(|amount| !amount.is_zero());
        let Some(request) = some(&self.requests) else {
            return Some(format!("{what}, but no request is specified or request is 0"));
        };
        let Some(limit) = some(&self.limits) else {
            return Some(format!("{what}, but no limit is specified or limit is 0"));
        };
        let (ratio, most) = (limit.ratio(request)?, bound.ratio(Quantity::units(1))?);
        (ratio > most).then(|| format!("{what}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Fake, message};
    use crate::object::Operation;

    fn limited(limits: Value) -> Fake {
        let fake = Fake::ready();
        fake.put(
            "v1",
            "limitranges",
            json!({
                "metadata": {"namespace": "a", "name": "l"}, "spec": {"limits": limits},
            }),
        );
        fake
    }

    fn pod(containers: Value) -> Value {
        json!({"metadata": {"name": "x"}, "spec": {"containers": containers}})
    }

    fn container(name: &str, requests: Value, limits: Value) -> Value {
        json!({"name": name, "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn containers_get_the_defaults_they_do_not_have_and_it_is_told() {
        let fake = limited(json!([{
            "type": "Container",
            "default": {"memory": "256Mi", "cpu": "1"},
            "defaultRequest": {"memory": "128Mi", "cpu": "100m"},
        }]));
        let mut written =
            pod(json!([{"name": "c"}, container("d", json!({"cpu": "2"}), json!({"cpu": "3"}))]));
        written["spec"]["initContainers"] = json!([{"name": "i"}]);
        let created = fake.create("v1", "pods", "a", written).expect("a pod");
        let given = json!({
            "requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "256Mi"},
        });
        assert_eq!(created["spec"]["containers"][0]["resources"], given);
        assert_eq!(created["spec"]["initContainers"][0]["resources"], given);
        assert_eq!(
            created["spec"]["containers"][1]["resources"],
            json!({"requests": {"cpu": "2", "memory": "128Mi"}, "limits": {"cpu": "3", "memory": "256Mi"}})
        );
        assert_eq!(
            created["metadata"]["annotations"][super::ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container c; cpu, memory limit for container c; \
             memory request for container d; memory limit for container d; \
             cpu, memory request for init container i; cpu, memory limit for init container i"
        );
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_in_the_words_of_the_reference() {
        let bounds = |kind: &str| {
            json!([{
                "type": kind,
                "min": {"cpu": "100m"},
                "max": {"cpu": "2"},
                "maxLimitRequestRatio": {"cpu": "4"},
            }])
        };
        for (requests, limits, why) in [
            (json!({"cpu": "1"}), json!({"cpu": "2"}), ""),
            (
                json!({"cpu": "50m"}),
                json!({"cpu": "200m"}),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                json!({"cpu": "1"}),
                json!({"cpu": "3"}),
                "maximum cpu usage per Container is 2, but limit is 3",
            ),
            (
                json!({"cpu": "300m"}),
                json!({"cpu": "2"}),
                "cpu max limit to request ratio per Container is 4, but provided ratio is 6.666667",
            ),
            (
                json!({}),
                json!({}),
                "[minimum cpu usage per Container is 100m.  No request is specified, maximum cpu usage per Container is 2.  \
                 No limit is specified, cpu max limit to request ratio per Container is 4, but no request is specified or request is 0]",
            ),
        ] {
            let fake = limited(bounds("Container"));
            let said = message(fake.create(
                "v1",
                "pods",
                "a",
                pod(json!([container("c", requests, limits)])),
            ));
            let expected = if why.is_empty() {
                String::new()
            } else {
                format!("pods \"x\" is forbidden: {why}")
            };
            assert_eq!(said, expected);
        }
        let two = pod(json!([
            container("c", json!({"cpu": "1"}), json!({"cpu": "1500m"})),
            container("d", json!({"cpu": "1"}), json!({"cpu": "1"})),
        ]));
        assert_eq!(
            message(limited(bounds("Pod")).create("v1", "pods", "a", two)),
            "pods \"x\" is forbidden: maximum cpu usage per Pod is 2, but limit is 2500m"
        );
    }

    #[test]
    fn claims_have_bounds_and_pods_are_measured_when_they_are_resized() {
        let fake = limited(json!([{
            "type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"},
        }]));
        let create = |size: &str| {
            let claim = json!({"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": size}}}});
            message(fake.create("v1", "persistentvolumeclaims", "a", claim))
        };
        let not = |why: &str| format!("persistentvolumeclaims \"c\" is forbidden: {why}");
        assert_eq!(create("1Gi"), "");
        assert_eq!(
            create("3Gi"),
            not("maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi")
        );
        assert_eq!(
            create("1Mi"),
            not("minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi")
        );

        let fake = limited(json!([{"type": "Container", "max": {"cpu": "1"}}]));
        let large = pod(json!([container("c", json!({}), json!({"cpu": "2"}))]));
        let update = |sub: &str| {
            message(fake.run(
                Operation::Update,
                ("v1", "pods", sub),
                "a",
                large.clone(),
                Some(large.clone()),
            ))
        };
        assert_eq!(update(""), "");
        assert_eq!(
            update("resize"),
            "pods \"x\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        );
    }
}
