//! `ServiceAccount`: every pod acts as a service account of its namespace, and finds its token in a volume.
//!
//! A mirror pod, which only shows what a node runs from its own disk, acts as nobody and sees no secret.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Stop, View, annotation, is, list_mut, object_mut, refused, served, word};
use crate::object::{Change, Object, Operation, at, items, text};

/// Where programs look for the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What a volume with a token is called, before its suffix.
const VOLUME: &str = "kube-api-access-";

/// Every kind of container.
const CONTAINERS: [&str; 3] =
    ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];

/// Gives a new pod its account, the volume with the token, and the account's pull secrets.
pub(super) fn mutate(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    if !is(change, "", "pods") || change.operation != Operation::Create {
        return Ok(());
    }
    if mirrors(change.object) {
        return validate(view, change);
    }
    let name = match text(change.object, "/spec/serviceAccountName") {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let account = account(view, change, &name)?;
    let pod = object_mut(change.object, "spec");
    pod.insert("serviceAccountName".to_owned(), name.as_str().into());
    // The older name of the same field, which clients still read.
    pod.insert("serviceAccount".to_owned(), name.into());
    let own = pod.get("automountServiceAccountToken").and_then(Value::as_bool);
    let mounts = own
        .or_else(|| at(&account, "/automountServiceAccountToken").and_then(Value::as_bool))
        .unwrap_or(true);
    if mounts {
        mount_token(pod, view.suffix);
    }
    let pulls = list_mut(pod, "imagePullSecrets");
    if pulls.is_empty() {
        pulls.extend(items(&account, "/imagePullSecrets").cloned());
    }
    if pulls.is_empty() {
        pod.remove("imagePullSecrets");
    }
    validate(view, change)
}

/// Refuses a pod whose account is not there, and references to secrets it may not make.
pub(super) fn validate(view: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    let creates = is(change, "", "pods") && change.operation == Operation::Create;
    let debugs = change.resource.plural == "pods" && change.subresource == "ephemeralcontainers";
    if !creates && !debugs {
        return Ok(());
    }
    let name = text(change.object, "/spec/serviceAccountName");
    if mirrors(change.object) {
        let why = if !name.is_empty() {
            "a mirror pod may not reference service accounts"
        } else if !secrets(change.object).is_empty() {
            "a mirror pod may not reference secrets"
        } else if projects_token(change.object) {
            "a mirror pod may not use ServiceAccountToken volume projections"
        } else {
            return Ok(());
        };
        return Err(refused(change, why).into());
    }
    if name.is_empty() {
        let pod = text(change.object, "/metadata/name");
        let why = format!("no service account specified for pod {}/{pod}", change.namespace);
        return Err(refused(change, &why).into());
    }
    let account = account(view, change, name)?;
    let enforced = annotation(&account, "kubernetes.io/enforce-mountable-secrets") == Some("true");
    if enforced && let Some(why) = unlisted_secret(change.object, &account) {
        return Err(refused(change, &why).into());
    }
    Ok(())
}

fn account(view: &View<'_>, change: &Change<'_>, name: &str) -> Result<Object, Stop> {
    let found = view.find(served("", "v1", "serviceaccounts"), change.namespace, name)?;
    found.ok_or_else(|| {
        let namespace = change.namespace;
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        );
        refused(change, &why).into()
    })
}

fn mirrors(pod: &Object) -> bool {
    annotation(pod, "kubernetes.io/config.mirror").is_some()
}

/// Mounts the token in every container that mounts nothing in its place.
fn mount_token(pod: &mut Object, suffix: fn() -> String) {
    let known = pod.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let known = known.map(|volume| word(volume, "name")).find(|name| name.starts_with(VOLUME));
    let (volume, exists) = match known {
        Some(name) => (name.to_owned(), true),
        None => (format!("{VOLUME}{}", suffix()), false),
    };
    let mut mounted = false;
    for kind in ["initContainers", "containers"] {
        let containers = pod.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            let mounts = list_mut(container, "volumeMounts");
            if mounts.iter().any(|mount| word(mount, "mountPath") == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if mounted && !exists {
        list_mut(pod, "volumes").push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    // A second more than an hour and a tenth of a minute: tokens asked for here are told apart by it.
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                    }},
                    {"downwardAPI": {"items": [{
                        "path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                    }]}},
                ],
            },
        }));
    }
}

fn projects_token(pod: &Object) -> bool {
    items(pod, "/spec/volumes")
        .filter_map(|volume| volume.pointer("/projected/sources")?.as_array())
        .flatten()
        .any(|source| source.get("serviceAccountToken").is_some())
}

/// Every secret a pod names.
fn secrets(pod: &Object) -> BTreeSet<&str> {
    // Where a volume names one.
    const SOURCES: [&str; 10] = [
        "/secret/secretName",
        "/azureFile/secretName",
        "/cephfs/secretRef/name",
        "/cinder/secretRef/name",
        "/csi/nodePublishSecretRef/name",
        "/flexVolume/secretRef/name",
        "/iscsi/secretRef/name",
        "/rbd/secretRef/name",
        "/scaleIO/secretRef/name",
        "/storageos/secretRef/name",
    ];
    let mut names = BTreeSet::new();
    names.extend(items(pod, "/spec/imagePullSecrets").map(|secret| word(secret, "name")));
    for volume in items(pod, "/spec/volumes") {
        names.extend(SOURCES.iter().filter_map(|source| volume.pointer(source)?.as_str()));
        let projected = volume.pointer("/projected/sources").and_then(Value::as_array);
        let projected = projected.into_iter().flatten();
        names.extend(projected.filter_map(|source| source.pointer("/secret/name")?.as_str()));
    }
    for container in CONTAINERS.iter().flat_map(|kind| items(pod, kind)) {
        names.extend(variables(container).map(|(_, secret)| secret));
        names.extend(environments(container));
    }
    names.remove("");
    names
}

/// The variables of a container that come from secrets, and which.
fn variables(container: &Value) -> impl Iterator<Item = (&str, &str)> {
    let variables = container.get("env").and_then(Value::as_array).into_iter().flatten();
    variables.filter_map(|variable| {
        let secret = variable.pointer("/valueFrom/secretKeyRef/name")?.as_str()?;
        Some((word(variable, "name"), secret))
    })
}

/// The secrets a container has all of in its environment.
fn environments(container: &Value) -> impl Iterator<Item = &str> {
    let sources = container.get("envFrom").and_then(Value::as_array).into_iter().flatten();
    sources.filter_map(|source| source.pointer("/secretRef/name")?.as_str())
}

/// What is wrong with the pod where its account lists the secrets that may be used.
fn unlisted_secret(pod: &Object, account: &Object) -> Option<String> {
    let listed = |list: &'static str| -> BTreeSet<&str> {
        items(account, list).map(|secret| word(secret, "name")).collect()
    };
    let (mountable, pulls) = (listed("/secrets"), listed("/imagePullSecrets"));
    let account = text(account, "/metadata/name");
    let not = |what: String, kind: &str| {
        Some(format!(
            "{what} is not allowed because service account {account} does not reference that {kind}"
        ))
    };
    for volume in items(pod, "/spec/volumes") {
        let secret = volume.pointer("/secret/secretName").and_then(Value::as_str);
        if let Some(secret) = secret.filter(|secret| !mountable.contains(secret)) {
            return not(format!("volume with secret.secretName={secret:?}"), "secret");
        }
    }
    for (list, kind) in
        CONTAINERS.iter().zip(["init container", "container", "ephemeral container"])
    {
        for container in items(pod, list) {
            let name = word(container, "name");
            for (variable, secret) in variables(container) {
                if !mountable.contains(secret) {
                    let what = format!(
                        "{kind} {name} with envVar {variable} referencing secret.secretName={secret:?}"
                    );
                    return not(what, "secret");
                }
            }
            for secret in environments(container) {
                if !mountable.contains(secret) {
                    let what = format!(
                        "{kind} {name} with envFrom referencing secret.secretName={secret:?}"
                    );
                    return not(what, "secret");
                }
            }
        }
    }
    let pull = items(pod, "/spec/imagePullSecrets").map(|secret| word(secret, "name"));
    let unlisted = pull.into_iter().find(|secret| !pulls.contains(secret))?;
    not(format!("imagePullSecret {unlisted:?}"), "imagePullSecret")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Fake, message};
    use crate::object::Operation;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "x"}, "spec": spec})
    }

    fn account(more: Value) -> Fake {
        let fake = Fake::with_namespace();
        let mut account = json!({"metadata": {"namespace": "a", "name": "default"}});
        let fields = more.as_object().expect("an object").clone();
        account.as_object_mut().expect("an object").extend(fields);
        fake.put("v1", "serviceaccounts", account);
        fake
    }

    #[test]
    fn a_pod_gets_the_default_account_its_token_and_its_pull_secrets() {
        let fake = account(json!({"imagePullSecrets": [{"name": "registry"}]}));
        let own = json!([{"name": "own", "mountPath": super::MOUNT_PATH}]);
        let created = fake.create(
            "v1",
            "pods",
            "a",
            pod(json!({
                "initContainers": [{"name": "i"}],
                "containers": [{"name": "c", "volumeMounts": own}, {"name": "d"}],
            })),
        );
        let spec = created.expect("a pod")["spec"].take();
        let mount = json!([{"name": "kube-api-access-x2z4b", "readOnly": true, "mountPath": super::MOUNT_PATH}]);
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["serviceAccount"], "default");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
        assert_eq!(spec["containers"][0]["volumeMounts"], own);
        assert_eq!(spec["containers"][1]["volumeMounts"], mount);
        assert_eq!(
            spec["volumes"],
            json!([{"name": "kube-api-access-x2z4b", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ]}}])
        );
        let again = fake.create("v1", "pods", "a", pod(spec.clone())).expect("a pod");
        assert_eq!(again["spec"], spec, "a copy of a pod gets nothing twice");
    }

    #[test]
    fn the_pod_before_its_account_says_whether_the_token_is_mounted() {
        for (account_says, pod_says, mounted) in [
            (json!({}), json!(null), true),
            (json!({"automountServiceAccountToken": false}), json!(null), false),
            (json!({"automountServiceAccountToken": false}), json!(true), true),
            (json!({"automountServiceAccountToken": true}), json!(false), false),
        ] {
            let mut spec = json!({"containers": [{"name": "c"}]});
            if !pod_says.is_null() {
                spec["automountServiceAccountToken"] = pod_says;
            }
            let created = account(account_says).create("v1", "pods", "a", pod(spec));
            assert_eq!(created.expect("a pod")["spec"].get("volumes").is_some(), mounted);
        }
    }

    #[test]
    fn a_pod_of_an_account_that_is_not_there_is_refused() {
        let fake = Fake::with_namespace();
        let status =
            fake.create("v1", "pods", "a", pod(json!({"containers": []}))).expect_err("refused");
        assert_eq!(
            status.body(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Forbidden",
                "message": "pods \"x\" is forbidden: error looking up service account a/default: serviceaccount \"default\" not found",
                "code": 403, "details": {"name": "x", "kind": "pods"},
            })
        );
        assert_eq!(fake.reads(), ["serviceaccounts default"], "the store was asked");
        fake.stored(
            "v1",
            "serviceaccounts",
            json!({"metadata": {"namespace": "a", "name": "default"}}),
        );
        fake.create("v1", "pods", "a", pod(json!({"containers": []}))).expect("the cache was late");
    }

    #[test]
    fn a_mirror_pod_acts_as_nobody_and_sees_no_secret() {
        let fake = Fake::with_namespace();
        let said = |spec: Value| {
            let annotations = json!({"kubernetes.io/config.mirror": "hash"});
            let pod = json!({"metadata": {"name": "x", "annotations": annotations}, "spec": spec});
            message(fake.create("v1", "pods", "a", pod))
        };
        let mirror = |why: &str| format!("pods \"x\" is forbidden: a mirror pod may not {why}");
        assert_eq!(said(json!({"containers": [{"name": "c"}]})), "");
        assert_eq!(
            said(json!({"serviceAccountName": "default"})),
            mirror("reference service accounts")
        );
        for spec in [
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]}),
            json!({"volumes": [{"name": "v", "csi": {"nodePublishSecretRef": {"name": "s"}}}]}),
            json!({"imagePullSecrets": [{"name": "s"}]}),
            json!({"containers": [{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}),
            json!({"initContainers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}]}),
        ] {
            assert_eq!(said(spec), mirror("reference secrets"));
        }
        assert_eq!(
            said(
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]})
            ),
            mirror("use ServiceAccountToken volume projections")
        );
    }

    #[test]
    fn an_account_may_list_the_secrets_its_pods_use() {
        let fake = account(json!({
            "metadata": {
                "namespace": "a", "name": "default",
                "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"},
            },
            "secrets": [{"name": "s"}],
        }));
        let said = |spec: Value| message(fake.create("v1", "pods", "a", pod(spec)));
        let not = |what: &str| format!("pods \"x\" is forbidden: {what}");
        assert_eq!(said(json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]})), "");
        assert_eq!(
            said(json!({"volumes": [{"name": "v", "secret": {"secretName": "t"}}]})),
            not(
                "volume with secret.secretName=\"t\" is not allowed because service account default does not reference that secret"
            )
        );
        assert_eq!(
            said(
                json!({"containers": [{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "t"}}}]}]})
            ),
            not(
                "container c with envVar E referencing secret.secretName=\"t\" is not allowed because service account default does not reference that secret"
            )
        );
        assert_eq!(
            said(json!({"imagePullSecrets": [{"name": "t"}]})),
            not(
                "imagePullSecret \"t\" is not allowed because service account default does not reference that imagePullSecret"
            )
        );
    }

    #[test]
    fn only_new_pods_get_an_account() {
        let fake = Fake::with_namespace();
        let bare = pod(json!({"containers": []}));
        let updated = fake.update("v1", "pods", "a", bare.clone(), bare.clone()).expect("a pod");
        assert_eq!(updated["spec"].get("serviceAccountName"), None);
        let status = ("v1", "pods", "status");
        assert_eq!(
            fake.run(Operation::Update, status, "a", bare.clone(), Some(bare.clone())),
            Ok(bare)
        );
    }
}
