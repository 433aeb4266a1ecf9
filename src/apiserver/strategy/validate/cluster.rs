//! What rules the cluster: roles, quotas, budgets, scaling, webhooks, requests, leases, events.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::names::{Form, wrong};
use super::workload::count_or_share;
use super::{Check, child, named, too_long};
use crate::object::{Object, at, items, text};
use crate::quantity::Quantity;
use crate::resources::Resource;
use crate::status::Cause;

pub(super) const CHECKS: &[(&str, &str, Check)] = &[
    ("rbac/v1", "PolicyRule", |rule, path, causes| policy_rule(rule, path, causes)),
    ("rbac/v1", "Subject", subject),
    ("autoscaling/v1", "HorizontalPodAutoscalerSpec", autoscaler),
    ("autoscaling/v2", "HorizontalPodAutoscalerSpec", autoscaler),
    ("policy/v1", "PodDisruptionBudgetSpec", budget),
    ("core/v1", "ResourceQuotaSpec", quota),
    ("core/v1", "LimitRangeItem", limit),
    ("core/v1", "Taint", taint),
    ("admissionregistration/v1", "ValidatingWebhook", webhook),
    ("admissionregistration/v1", "MutatingWebhook", webhook),
    ("admissionregistration/v1", "RuleWithOperations", webhook_rule),
    ("coordination/v1", "LeaseSpec", lease),
    ("certificates/v1", "CertificateSigningRequestSpec", request),
];

const HIGHEST_PRIORITY: i64 = 1_000_000_000;

/// What a kind asks of its parts.
pub(super) fn kind(resource: &Resource, object: &Object, causes: &mut Vec<Cause>) {
    match (resource.group, resource.plural) {
        ("rbac.authorization.k8s.io", "roles") => {
            for (index, rule) in items(object, "/rules").enumerate() {
                let paths = &rule["nonResourceURLs"];
                if paths.as_array().is_some_and(|paths| !paths.is_empty()) {
                    let path = format!("rules[{index}].nonResourceURLs");
                    let why = "namespaced rules cannot apply to non-resource URLs";
                    causes.push(Cause::invalid(path, paths, why));
                }
            }
        }
        ("rbac.authorization.k8s.io", plural @ ("rolebindings" | "clusterrolebindings")) => {
            let known: &[&str] =
                if plural == "rolebindings" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
            let kind = text(object, "/roleRef/kind");
            if !known.contains(&kind) {
                causes.push(Cause::not_supported("roleRef.kind", &json!(kind), known));
            }
        }
        ("scheduling.k8s.io", "priorityclasses") => {
            let value = at(object, "/value").and_then(Value::as_i64).unwrap_or(0);
            let system = text(object, "/metadata/name").starts_with("system-");
            if value > HIGHEST_PRIORITY && !system {
                let why = format!(
                    "maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}"
                );
                causes.push(Cause::forbidden("value", &why));
            }
        }
        ("events.k8s.io", "events") => event(object, causes),
        ("", "events") => core_event(object, causes),
        ("", "nodes") => taints(object, causes),
        _ => {}
    }
}

fn policy_rule(rule: &Object, path: &str, causes: &mut Vec<Cause>) {
    let given = |name: &str| items(rule, &format!("/{name}")).next().is_some();
    if !given("verbs") {
        causes.push(Cause::required(child(path, "verbs"), "verbs must contain at least one value"));
    }
    if given("nonResourceURLs") {
        if given("apiGroups") || given("resources") || given("resourceNames") {
            let value = at(rule, "/nonResourceURLs").cloned().unwrap_or_default();
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            causes.push(Cause::invalid(child(path, "nonResourceURLs"), &value, why));
        }
        return;
    }
    if !given("apiGroups") {
        let why = "resource rules must supply at least one api group";
        causes.push(Cause::required(child(path, "apiGroups"), why));
    }
    if !given("resources") {
        let why = "resource rules must supply at least one resource";
        causes.push(Cause::required(child(path, "resources"), why));
    }
}

fn subject(subject: &Object, path: &str, causes: &mut Vec<Cause>) {
    let own = |name: &str| text(subject, &format!("/{name}"));
    let group = own("apiGroup");
    let supported = match own("kind") {
        "ServiceAccount" => {
            if !own("name").is_empty() {
                named(Form::Subdomain, own("name"), &child(path, "name"), causes);
            }
            if own("namespace").is_empty() {
                causes.push(Cause::required(child(path, "namespace"), ""));
            }
            ""
        }
        "User" | "Group" => "rbac.authorization.k8s.io",
        other => {
            let known = ["ServiceAccount", "User", "Group"];
            causes.push(Cause::not_supported(child(path, "kind"), &json!(other), &known));
            return;
        }
    };
    if group != supported {
        causes.push(Cause::not_supported(child(path, "apiGroup"), &json!(group), &[supported]));
    }
}

fn autoscaler(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let number = |name: &str| spec.get(name).and_then(Value::as_i64);
    let most = number("maxReplicas").unwrap_or(0);
    let here = child(path, "maxReplicas");
    if let Some(least) = number("minReplicas").filter(|least| *least < 1) {
        let why = "must be greater than or equal to 1";
        causes.push(Cause::invalid(child(path, "minReplicas"), &json!(least), why));
    }
    if most < 1 {
        causes.push(Cause::invalid(&here, &json!(most), "must be greater than 0"));
    }
    if number("minReplicas").is_some_and(|least| most < least) {
        let why = "must be greater than or equal to `minReplicas`";
        causes.push(Cause::invalid(&here, &json!(most), why));
    }
    let reference = spec.get("scaleTargetRef").cloned().unwrap_or_default();
    for field in ["kind", "name"] {
        let here = format!("{path}.scaleTargetRef.{field}");
        match reference[field].as_str().unwrap_or_default() {
            "" => causes.push(Cause::required(here, "")),
            value => named(Form::Segment, value, &here, causes),
        }
    }
    for (index, metric) in items(spec, "/metrics").enumerate() {
        let kind = metric["type"].as_str().unwrap_or_default();
        let field = match kind {
            "Object" => "object",
            "Pods" => "pods",
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "External" => "external",
            _ => continue,
        };
        if !metric[field].is_object() {
            let why = "must populate information for the given metric source";
            causes.push(Cause::required(format!("{path}.metrics[{index}].{field}"), why));
        }
    }
}

fn budget(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let given = |name: &str| spec.get(name).filter(|value| !value.is_null());
    let (least, most) = (given("minAvailable"), given("maxUnavailable"));
    if least.is_some() && most.is_some() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        causes.push(Cause::invalid(path, &json!(spec), why));
    }
    count_or_share(least, &child(path, "minAvailable"), causes);
    count_or_share(most, &child(path, "maxUnavailable"), causes);
}

fn quota(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    const COUNTED: &[&str] = &[
        "cpu",
        "memory",
        "ephemeral-storage",
        "storage",
        "pods",
        "services",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
        "requests.cpu",
        "requests.memory",
        "requests.storage",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
    ];
    for (name, value) in at(spec, "/hard").and_then(Value::as_object).into_iter().flatten() {
        let here = format!("{path}.hard[{name}]");
        let before = causes.len();
        named(Form::Qualified, name, &here, causes);
        let known = COUNTED.contains(&name.as_str())
            || name.contains('/')
            || name.starts_with("hugepages-")
            || name.starts_with("requests.hugepages-");
        if causes.len() == before && !known {
            let why = "must be a standard resource type or fully qualified";
            causes.push(Cause::invalid(&here, &json!(name), why));
            let why = "must be a standard resource for quota";
            causes.push(Cause::invalid(&here, &json!(name), why));
        }
        let Ok(amount) = Quantity::of(value) else { continue };
        if amount.is_negative() {
            causes.push(Cause::invalid(&here, value, "must be greater than or equal to 0"));
        }
        let count = COUNTED.contains(&name.as_str())
            && !name.contains("cpu")
            && !name.contains("memory")
            && !name.contains("storage");
        if (count || name.starts_with("count/")) && !amount.is_whole() {
            causes.push(Cause::invalid(&here, value, "must be an integer"));
        }
    }
    const SCOPES: &[&str] = &[
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    let scopes: Vec<&Value> = items(spec, "/scopes").collect();
    for scope in &scopes {
        if scope.as_str().is_none_or(|scope| !SCOPES.contains(&scope)) {
            let value = at(spec, "/scopes").cloned().unwrap_or_default();
            causes.push(Cause::invalid(child(path, "scopes"), &value, "unsupported scope"));
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| scopes.iter().any(|own| own == scope)) {
            let value = at(spec, "/scopes").cloned().unwrap_or_default();
            causes.push(Cause::invalid(child(path, "scopes"), &value, "conflicting scopes"));
        }
    }
}

fn limit(item: &Object, path: &str, causes: &mut Vec<Cause>) {
    let amount =
        |list: &str, name: &str| item.get(list).and_then(|list| Quantity::of(list.get(name)?).ok());
    let kind = text(item, "/type");
    if kind == "Pod" {
        for list in ["default", "defaultRequest"] {
            let given =
                item.get(list).and_then(Value::as_object).is_some_and(|map| !map.is_empty());
            if given {
                let why = "may not be specified when `type` is 'Pod'";
                causes.push(Cause::forbidden(child(path, list), why));
            }
        }
    }
    let mut names: Vec<&String> =
        ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
            .iter()
            .filter_map(|list| item.get(*list)?.as_object())
            .flat_map(|map| map.keys())
            .collect();
    orlop_rt::sort(&mut names);
    names.dedup();
    if kind == "PersistentVolumeClaim"
        && amount("min", "storage").is_none()
        && amount("max", "storage").is_none()
    {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        causes.push(Cause::required(child(path, "limits"), why));
    }
    for name in names {
        for (low, low_words, high, high_words, at_fault) in [
            ("min", "min", "max", "max", "min"),
            ("min", "min", "defaultRequest", "default request", "defaultRequest"),
            ("defaultRequest", "default request", "max", "max", "defaultRequest"),
            ("defaultRequest", "default request", "default", "default limit", "defaultRequest"),
            ("min", "min", "default", "default", "default"),
            ("default", "default", "max", "max", "default"),
        ] {
            let (Some(small), Some(large)) = (amount(low, name), amount(high, name)) else {
                continue;
            };
            if small > large {
                let why =
                    format!("{low_words} value {small} is greater than {high_words} value {large}");
                let here = format!("{path}.{at_fault}[{name}]");
                causes.push(Cause::invalid(here, &item[at_fault][name], &why));
            }
        }
        if let Some(ratio) = amount("maxLimitRequestRatio", name)
            && ratio < Quantity::units(1)
        {
            let value = item["maxLimitRequestRatio"][name].clone();
            let why = format!("ratio {ratio} is less than 1");
            let here = format!("{path}.maxLimitRequestRatio[{name}]");
            causes.push(Cause::invalid(here, &value, &why));
        }
    }
}

fn taint(taint: &Object, path: &str, causes: &mut Vec<Cause>) {
    named(Form::Qualified, text(taint, "/key"), &child(path, "key"), causes);
    for why in wrong(Form::LabelValue, text(taint, "/value")) {
        causes.push(Cause::invalid(child(path, "value"), &json!(text(taint, "/value")), &why));
    }
}

fn taints(node: &Object, causes: &mut Vec<Cause>) {
    let mut seen = Vec::new();
    for (index, taint) in items(node, "/spec/taints").enumerate() {
        let key = (&taint["key"], &taint["effect"]);
        if seen.contains(&key) {
            let value = json!({"key": taint["key"], "effect": taint["effect"]});
            let mut cause = Cause::duplicate(format!("metadata.taints[{index}]"), &value);
            cause.message += ": taints must be unique by key and effect pair";
            causes.push(cause);
        }
        seen.push(key);
    }
}

fn webhook(hook: &Object, path: &str, causes: &mut Vec<Cause>) {
    let name = text(hook, "/name");
    let here = child(path, "name");
    if name.is_empty() {
        causes.push(Cause::required(here, ""));
    } else {
        let before = causes.len();
        named(Form::Subdomain, name, &here, causes);
        if causes.len() == before && name.split('.').count() < 3 {
            let why = "should be a domain with at least three segments separated by dots";
            causes.push(Cause::invalid(here, &json!(name), why));
        }
    }
    let versions: Vec<&str> =
        items(hook, "/admissionReviewVersions").filter_map(Value::as_str).collect();
    let here = child(path, "admissionReviewVersions");
    if versions.is_empty() {
        causes.push(Cause::required(here, "must specify one of v1, v1beta1"));
    } else if !versions.iter().any(|version| ["v1", "v1beta1"].contains(version)) {
        let why = "must include at least one of v1, v1beta1";
        causes.push(Cause::invalid(here, &json!(versions), why));
    }
    let client = hook.get("clientConfig").cloned().unwrap_or_default();
    let here = child(path, "clientConfig");
    let (url, service) = (client["url"].as_str(), client["service"].as_object());
    match (url, service) {
        (Some(_), Some(_)) | (None, None) => {
            causes.push(Cause::required(here, "exactly one of url or service is required"));
        }
        (Some(url), None) if !url.starts_with("https://") => {
            let why = "'https' is the only allowed URL scheme";
            causes.push(Cause::invalid(child(&here, "url"), &json!(url), why));
        }
        (None, Some(service)) => {
            for (field, why) in [
                ("name", "service name is required"),
                ("namespace", "service namespace is required"),
            ] {
                if text(service, &format!("/{field}")).is_empty() {
                    causes.push(Cause::required(format!("{here}.service.{field}"), why));
                }
            }
        }
        _ => {}
    }
    let seconds = hook.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or(10);
    if !(1..=30).contains(&seconds) {
        let why = "the timeout value must be between 1 and 30 seconds";
        causes.push(Cause::invalid(child(path, "timeoutSeconds"), &json!(seconds), why));
    }
}

fn webhook_rule(rule: &Object, path: &str, causes: &mut Vec<Cause>) {
    for (field, why) in
        [("operations", ""), ("apiGroups", ""), ("apiVersions", ""), ("resources", "")]
    {
        let all: Vec<&Value> = items(rule, &format!("/{field}")).collect();
        let here = child(path, field);
        if all.is_empty() {
            causes.push(Cause::required(&here, why));
        }
        if all.len() > 1 && all.iter().any(|one| *one == "*") && field != "resources" {
            let value = at(rule, &format!("/{field}")).cloned().unwrap_or_default();
            let why = "if '*' is present, must not specify other ".to_owned()
                + match field {
                    "operations" => "operations",
                    "apiGroups" => "API groups",
                    _ => "API versions",
                };
            causes.push(Cause::invalid(&here, &value, &why));
        }
    }
}

fn lease(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let number = |name: &str| spec.get(name).and_then(Value::as_i64);
    if let Some(seconds) = number("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        let here = child(path, "leaseDurationSeconds");
        causes.push(Cause::invalid(here, &json!(seconds), "must be greater than 0"));
    }
    if let Some(count) = number("leaseTransitions").filter(|count| *count < 0) {
        let here = child(path, "leaseTransitions");
        causes.push(Cause::invalid(here, &json!(count), "must be greater than or equal to 0"));
    }
}

fn request(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let bytes = text(spec, "/request");
    if !bytes.is_empty() {
        let sound = STANDARD.decode(bytes).is_ok_and(|bytes| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let begins = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"];
            begins.iter().any(|kind| text.contains(&format!("-----BEGIN {kind}-----")))
        });
        if !sound {
            let why = "PEM block type must be CERTIFICATE REQUEST";
            causes.push(Cause::invalid(child(path, "request"), &json!(bytes), why));
        }
    }
    let signer = text(spec, "/signerName");
    if !signer.is_empty() && !wrong(Form::DomainPath, signer).is_empty() {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        causes.push(Cause::invalid(child(path, "signerName"), &json!(signer), why));
    }
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64);
    if let Some(seconds) = seconds.filter(|seconds| *seconds < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid(child(path, "expirationSeconds"), &json!(seconds), why));
    }
}

/// A request is decided once, and one way.
pub(super) fn approval(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let has = |object: &Object, kind: &str| {
        items(object, "/status/conditions").any(|condition| condition["type"] == kind)
    };
    if has(new, "Approved") && has(new, "Denied") {
        let value = at(new, "/status/conditions").cloned().unwrap_or_default();
        let why = "Approved and Denied conditions are mutually exclusive";
        causes.push(Cause::invalid("status.conditions", &value, why));
    }
    for kind in ["Approved", "Denied"] {
        if has(old, kind) && !has(new, kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            causes.push(Cause::forbidden("status.conditions", &why));
        }
    }
    for (index, condition) in items(new, "/status/conditions").enumerate() {
        let path = format!("status.conditions[{index}]");
        let kind = condition["type"].as_str().unwrap_or_default();
        let status = condition["status"].as_str().unwrap_or_default();
        if kind.is_empty() {
            causes.push(Cause::required(format!("{path}.type"), ""));
        }
        if status.is_empty() {
            causes.push(Cause::required(format!("{path}.status"), ""));
        } else if ["Approved", "Denied", "Failed"].contains(&kind) && status != "True" {
            let here = format!("{path}.status");
            causes.push(Cause::not_supported(here, &condition["status"], &["True"]));
        }
    }
}

/// `events.k8s.io` is strict.
fn event(event: &Object, causes: &mut Vec<Cause>) {
    for field in ["reportingController", "reportingInstance", "reason", "action", "eventTime"] {
        if text(event, &format!("/{field}")).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    let controller = text(event, "/reportingController");
    if !controller.is_empty() {
        named(Form::Qualified, controller, "reportingController", causes);
    }
    for (field, most) in
        [("action", 128), ("reason", 128), ("note", 1024), ("reportingInstance", 128)]
    {
        if text(event, &format!("/{field}")).len() > most {
            causes.push(too_long(field, most));
        }
    }
    let kind = text(event, "/type");
    if !matches!(kind, "Normal" | "Warning") {
        causes.push(Cause::invalid("type", &json!(kind), "has invalid value"));
    }
    same_namespace(event, "regarding", causes);
}

/// The older one takes nearly everything.
fn core_event(event: &Object, causes: &mut Vec<Cause>) {
    same_namespace(event, "involvedObject", causes);
}

fn same_namespace(event: &Object, field: &str, causes: &mut Vec<Cause>) {
    let own = text(event, "/metadata/namespace");
    let about = text(event, &format!("/{field}/namespace"));
    // What is in no namespace has its events in the default one.
    let fits = if about.is_empty() { matches!(own, "" | "default") } else { own == about };
    if !fits {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &json!(about), why));
    }
}
