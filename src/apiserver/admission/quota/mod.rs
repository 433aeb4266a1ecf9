//! `ResourceQuota`: what a namespace may use up of what is counted.
//!
//! A write is charged to every quota that counts it before it is done: `status.used` is raised under the condition that
//! nobody else has changed the quota, and if somebody has, it is judged again. What is charged for a write that fails
//! afterwards, and what is deleted, is given back when the quota is [counted](counted) anew.

mod usage;

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::pods::{Amounts, amounts};
use super::{Host, object_mut, refused, served};
use crate::object::{Change, Object, Objects, at, text};
use crate::quantity::Quantity;
use crate::resources::{RESOURCES, Resource};
use crate::status::Status;

/// How often a quota may change under a write before the client is told to try again.
const TRIES: u32 = 16;

/// Charges a write to the quotas of its namespace.
pub(super) async fn charge(
    objects: &dyn Objects,
    host: &dyn Host,
    change: &Change<'_>,
    now: OffsetDateTime,
) -> Result<(), Status> {
    if change.namespace.is_empty()
        || !usage::charges(change.resource, change.subresource, change.operation)
    {
        return Ok(());
    }
    let quotas = served("", "v1", "resourcequotas");
    let mut open = objects.list(quotas, change.namespace);
    let mut tries = 0;
    while !open.is_empty() {
        let mut again = Vec::new();
        for quota in judged(&open, change, now)? {
            if change.dry_run {
                continue;
            }
            let name = text(&quota, "/metadata/name").to_owned();
            match host.charge(quota).await {
                Ok(_) => {}
                // Somebody else has changed it; or nobody counts any more.
                Err(status) if status.code == 409 && tries < TRIES => {
                    again.extend(host.read(quotas, change.namespace, &name).await?);
                }
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        open = again;
        tries += 1;
    }
    Ok(())
}

/// What a quota's namespace has used at this time, of all that the quota limits.
#[must_use]
pub fn counted(quota: &Object, objects: &dyn Objects, now: OffsetDateTime) -> Map<String, Value> {
    let limited = amounts(at(quota, "/spec/hard"));
    let mut used: Amounts = limited.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    let namespace = text(quota, "/metadata/namespace");
    for resource in counted_by(limited.keys().map(String::as_str)) {
        for object in objects.list(resource, namespace) {
            if !usage::in_scopes(quota, resource, &object) {
                continue;
            }
            for (name, amount) in usage::usage(resource, &object, now) {
                if let Some(sum) = used.get_mut(&name) {
                    *sum = sum.plus(amount);
                }
            }
        }
    }
    written(&used)
}

/// The resources whose objects are counted under any of these names.
#[must_use]
pub fn counted_by<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'static Resource> {
    let names: Vec<_> = names.collect();
    let mut known = BTreeSet::new();
    let counted = RESOURCES.iter().filter(|resource| {
        resource.namespaced
            && resource.verbs.contains(&"list")
            && names.iter().any(|name| usage::tracks(resource, name))
    });
    // Two versions of a group have the same objects.
    counted.filter(|resource| known.insert((resource.group, resource.plural))).collect()
}

/// The quotas a write changes, with what they are then; refused if one has not enough left.
fn judged(
    quotas: &[Object],
    change: &Change<'_>,
    now: OffsetDateTime,
) -> Result<Vec<Object>, Status> {
    let resource = change.resource;
    let mut concerned = Vec::new();
    for quota in quotas {
        let hard = amounts(at(quota, "/status/hard"));
        let limited: Vec<&str> =
            hard.keys().map(String::as_str).filter(|name| usage::tracks(resource, name)).collect();
        if limited.is_empty() || !usage::in_scopes(quota, resource, change.object) {
            continue;
        }
        let name = text(quota, "/metadata/name");
        if let Some(unsaid) = usage::unsaid(resource, change.object, &limited) {
            return Err(refused(change, &format!("failed quota: {name}: {unsaid}")));
        }
        let used = amounts(at(quota, "/status/used"));
        if limited.iter().any(|name| !used.contains_key(*name)) {
            let limited = limited.join(",");
            let why = format!("status unknown for quota: {name}, resources: {limited}");
            return Err(refused(change, &why));
        }
        concerned.push((quota, hard, used));
    }
    if concerned.is_empty() {
        return Ok(Vec::new());
    }
    let mut more = usage::usage(resource, change.object, now);
    let negative: Vec<_> =
        more.iter().filter(|(_, amount)| amount.is_negative()).map(|(name, _)| &**name).collect();
    if !negative.is_empty() {
        let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
        return Err(refused(change, &why));
    }
    if let Some(old) = change.old {
        for (name, amount) in usage::usage(resource, old, now) {
            let rest = more.get(&name).copied().unwrap_or_default().minus(amount);
            more.insert(name, rest);
        }
    }
    more.retain(|_, amount| !amount.is_zero());
    let mut changed = Vec::new();
    for (quota, hard, mut used) in concerned {
        let mut exceeded = [Amounts::new(), Amounts::new(), Amounts::new()];
        let mut raised = false;
        for (name, amount) in &more {
            let Some(limit) = hard.get(name) else { continue };
            let before = used.get(name).copied().unwrap_or_default();
            let after = before.plus(*amount);
            if after > *limit && !amount.is_negative() {
                for (list, amount) in exceeded.iter_mut().zip([*amount, before, *limit]) {
                    list.insert(name.clone(), amount);
                }
            }
            used.insert(name.clone(), after);
            raised = true;
        }
        if !exceeded[0].is_empty() {
            let [requested, used, limited] = exceeded.each_ref().map(told);
            let name = text(quota, "/metadata/name");
            let why = format!(
                "exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"
            );
            return Err(refused(change, &why));
        }
        if raised {
            let mut quota = quota.clone();
            object_mut(&mut quota, "status").insert("used".to_owned(), written(&used).into());
            changed.push(quota);
        }
    }
    Ok(changed)
}

/// `cpu=1,pods=2`.
fn told(amounts: &Amounts) -> String {
    let told: Vec<_> = amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    told.join(",")
}

fn written(amounts: &Amounts) -> Map<String, Value> {
    amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::OffsetDateTime;

    use crate::admission::fake::{Fake, message};
    use crate::object::{Object, Objects, Operation, text};

    fn quota(fake: &Fake, spec: Value, used: Value) {
        let hard = spec["hard"].clone();
        fake.put("v1", "resourcequotas", json!({
            "metadata": {"namespace": "a", "name": "q"}, "spec": spec, "status": {"hard": hard, "used": used},
        }));
    }

    fn used(fake: &Fake) -> Value {
        let quotas = crate::admission::served("", "v1", "resourcequotas");
        fake.get(quotas, "a", "q").expect("a quota")["status"]["used"].clone()
    }

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "x"}, "spec": spec})
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn what_is_created_is_charged_until_nothing_is_left() {
        let fake = Fake::ready();
        quota(
            &fake,
            json!({"hard": {"pods": "2", "requests.cpu": "1"}}),
            json!({"pods": "0", "requests.cpu": "0"}),
        );
        let with =
            |cpu: &str| pod(json!({"containers": [container(json!({"cpu": cpu}), json!({}))]}));
        fake.create("v1", "pods", "a", with("600m")).expect("there is room");
        assert_eq!(used(&fake), json!({"pods": "1", "requests.cpu": "600m"}));
        let status = fake.create("v1", "pods", "a", with("600m")).expect_err("there is none");
        assert_eq!(
            status.body(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Forbidden",
                "message": "pods \"x\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1",
                "code": 403, "details": {"name": "x", "kind": "pods"},
            })
        );
        fake.create("v1", "pods", "a", with("100m")).expect("a little is left");
        assert_eq!(
            message(fake.create("v1", "pods", "a", with("1m"))),
            "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        );
        assert_eq!(used(&fake), json!({"pods": "2", "requests.cpu": "700m"}));
    }

    #[test]
    fn a_quota_that_is_not_counted_yet_and_containers_that_say_nothing_are_refused() {
        let fake = Fake::ready();
        quota(&fake, json!({"hard": {"pods": "2"}}), json!({}));
        assert_eq!(
            message(fake.create("v1", "pods", "a", pod(json!({"containers": []})))),
            "pods \"x\" is forbidden: status unknown for quota: q, resources: pods"
        );
        let zero = json!({"limits.memory": "0", "cpu": "0"});
        quota(&fake, json!({"hard": {"limits.memory": "1Gi", "cpu": "1"}}), zero);
        let two = json!([{"name": "d"}, container(json!({"cpu": "1"}), json!({}))]);
        assert_eq!(
            message(fake.create("v1", "pods", "a", pod(json!({"containers": two})))),
            "pods \"x\" is forbidden: failed quota: q: must specify cpu for: d; limits.memory for: c,d"
        );
        fake.create("v1", "configmaps", "a", pod(json!({}))).expect("it is not counted");
    }

    #[test]
    fn objects_are_counted_by_their_resource_and_old_names_stay() {
        let fake = Fake::ready();
        let zero =
            json!({"configmaps": "0", "count/configmaps": "0", "count/deployments.apps": "1"});
        let hard =
            json!({"configmaps": "5", "count/configmaps": "5", "count/deployments.apps": "1"});
        quota(&fake, json!({"hard": hard}), zero);
        fake.create("v1", "configmaps", "a", pod(json!({}))).expect("a map");
        assert_eq!(used(&fake)["configmaps"], "1");
        assert_eq!(used(&fake)["count/configmaps"], "1");
        assert_eq!(
            message(fake.create("apps/v1", "deployments", "a", pod(json!({})))),
            "deployments.apps \"x\" is forbidden: exceeded quota: q, requested: count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1"
        );
    }

    #[test]
    fn services_and_claims_are_charged_for_what_they_become() {
        let fake = Fake::ready();
        let hard = json!({
            "services.nodeports": "2", "services.loadbalancers": "1", "requests.storage": "3Gi",
            "fast.storageclass.storage.k8s.io/requests.storage": "2Gi",
        });
        let zero = json!({
            "services.nodeports": "0", "services.loadbalancers": "0", "requests.storage": "0",
            "fast.storageclass.storage.k8s.io/requests.storage": "0",
        });
        quota(&fake, json!({"hard": hard}), zero);
        let service = |kind: &str| pod(json!({"type": kind, "ports": [{"port": 1}, {"port": 2}]}));
        let update = |from: &str, to: &str| {
            message(fake.update("v1", "services", "a", service(from), service(to)))
        };
        fake.create("v1", "services", "a", service("ClusterIP")).expect("a service");
        assert_eq!(used(&fake)["services.nodeports"], "0");
        assert_eq!(update("ClusterIP", "LoadBalancer"), "");
        assert_eq!(used(&fake)["services.nodeports"], "2");
        assert_eq!(
            update("ClusterIP", "NodePort"),
            "services \"x\" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=2, limited: services.nodeports=2"
        );
        assert_eq!(update("LoadBalancer", "ClusterIP"), "");
        assert_eq!(used(&fake)["services.nodeports"], "0");
        assert_eq!(used(&fake)["services.loadbalancers"], "0");

        let claim = |size: &str| {
            pod(json!({"storageClassName": "fast", "resources": {"requests": {"storage": size}}}))
        };
        fake.create("v1", "persistentvolumeclaims", "a", claim("1Gi")).expect("a claim");
        let grown = fake.update("v1", "persistentvolumeclaims", "a", claim("1Gi"), claim("3Gi"));
        assert_eq!(
            message(grown),
            "persistentvolumeclaims \"x\" is forbidden: Only bound persistent volume claims can be expanded"
        );
        assert_eq!(
            message(fake.create("v1", "persistentvolumeclaims", "a", claim("2Gi"))),
            "persistentvolumeclaims \"x\" is forbidden: exceeded quota: q, requested: fast.storageclass.storage.k8s.io/requests.storage=2Gi, used: fast.storageclass.storage.k8s.io/requests.storage=1Gi, limited: fast.storageclass.storage.k8s.io/requests.storage=2Gi"
        );
    }

    #[test]
    fn a_quota_counts_only_what_is_in_its_scopes() {
        let small =
            json!({"priorityClassName": "", "containers": [container(json!({}), json!({}))]});
        let sized = json!({"containers": [container(json!({"cpu": "1"}), json!({}))]});
        let short = json!({"activeDeadlineSeconds": 5, "containers": []});
        let near = json!({"containers": [], "affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"namespaceSelector": {}}],
        }}});
        let selector = |operator: &str| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]},
            ]}})
        };
        let scope = |name: &str| json!({"scopes": [name]});
        for (scopes, spec, inside) in [
            (scope("BestEffort"), &small, true),
            (scope("BestEffort"), &sized, false),
            (scope("NotBestEffort"), &sized, true),
            (scope("Terminating"), &short, true),
            (scope("Terminating"), &small, false),
            (scope("NotTerminating"), &short, false),
            (scope("CrossNamespacePodAffinity"), &near, true),
            (scope("CrossNamespacePodAffinity"), &small, false),
            (selector("NotIn"), &small, true),
            (selector("In"), &small, false),
            (selector("Exists"), &small, false),
        ] {
            let fake = Fake::ready();
            let mut limits = scopes.clone();
            limits["hard"] = json!({"pods": "0"});
            quota(&fake, limits, json!({"pods": "0"}));
            let refused = fake.create("v1", "pods", "a", pod(spec.clone())).is_err();
            assert_eq!(refused, inside, "{scopes} {spec}");
        }
    }

    #[test]
    fn nothing_is_charged_for_what_is_only_tried() {
        let fake = Fake::ready();
        quota(&fake, json!({"hard": {"pods": "1"}}), json!({"pods": "0"}));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let tried = |spec| {
            let pods = ("v1", "pods", "");
            runtime.block_on(fake.write(Operation::Create, pods, "a", pod(spec), None, true))
        };
        tried(json!({"containers": []})).expect("there is room");
        assert_eq!(used(&fake), json!({"pods": "0"}));
        quota(&fake, json!({"hard": {"pods": "1"}}), json!({"pods": "1"}));
        tried(json!({"containers": []})).expect_err("but it is told when there is none");
    }

    #[test]
    fn many_at_once_get_what_there_is_and_no_more() {
        let fake = Fake::ready();
        quota(&fake, json!({"hard": {"pods": "5"}}), json!({"pods": "0"}));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let done = runtime.block_on(async {
            let mut writers = tokio::task::JoinSet::new();
            for _ in 0..12 {
                let fake = fake.clone();
                writers.spawn(async move {
                    let spec = json!({"containers": []});
                    fake.write(Operation::Create, ("v1", "pods", ""), "a", pod(spec), None, false)
                        .await
                });
            }
            writers.join_all().await
        });
        assert_eq!(done.iter().filter(|result| result.is_ok()).count(), 5);
        assert_eq!(used(&fake), json!({"pods": "5"}));
        let why = "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5";
        assert!(done.into_iter().all(|result| result.is_ok() || message(result) == why));
    }

    #[test]
    fn what_is_there_is_counted_anew() {
        let fake = Fake::ready();
        let put = |name: &str, status: Value| {
            let spec = json!({"containers": [container(json!({"cpu": "500m"}), json!({}))]});
            fake.put("v1", "pods", json!({"metadata": {"namespace": "a", "name": name}, "spec": spec, "status": status}));
        };
        put("runs", json!({"phase": "Running"}));
        put("runs-too", json!({}));
        put("ended", json!({"phase": "Succeeded"}));
        fake.put(
            "v1",
            "pods",
            json!({"metadata": {
                "namespace": "a", "name": "lost",
                "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30,
            }}),
        );
        let hard =
            json!({"pods": "9", "cpu": "9", "count/pods": "9", "secrets": "9", "limits.cpu": "1"});
        quota(&fake, json!({"hard": hard}), json!({}));
        let quotas = crate::admission::served("", "v1", "resourcequotas");
        let quota: Object = fake.get(quotas, "a", "q").expect("a quota");
        let at = |second: i64| {
            OffsetDateTime::from_unix_timestamp(1_767_225_600 + second).expect("a time")
        };
        assert_eq!(
            Value::from(super::counted(&quota, &fake, at(31))),
            json!({"pods": "2", "cpu": "1", "count/pods": "4", "secrets": "0", "limits.cpu": "0"})
        );
        assert_eq!(super::counted(&quota, &fake, at(30))["pods"], "3", "its time is not over");
        let counted = super::counted_by(["pods", "count/jobs.batch"].into_iter());
        assert_eq!(
            counted.iter().map(|resource| resource.plural).collect::<Vec<_>>(),
            ["pods", "jobs"]
        );
        assert_eq!(text(&quota, "/metadata/name"), "q");
    }
}
