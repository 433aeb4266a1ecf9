//! Pods, wherever their specification stands.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::names::{Form, wrong};
use super::{Check, child, labels, named, not_found};
use crate::object::{Object, items, text};
use crate::quantity::Quantity;
use crate::status::Cause;

pub(super) const CHECKS: &[(&str, &str, Check)] = &[
    ("core/v1", "PodSpec", spec),
    ("core/v1", "Container", container),
    ("core/v1", "EphemeralContainerCommon", container),
    ("core/v1", "ContainerPort", container_port),
    ("core/v1", "Probe", probe),
    ("core/v1", "LifecycleHandler", |handler, path, causes| one_handler(handler, path, causes)),
    ("core/v1", "HTTPGetAction", |action, path, causes| port(action, path, causes)),
    ("core/v1", "TCPSocketAction", |action, path, causes| port(action, path, causes)),
    ("core/v1", "EnvVar", variable),
    ("core/v1", "EnvFromSource", variables),
    ("core/v1", "ResourceRequirements", resources),
    ("core/v1", "VolumeResourceRequirements", resources),
    ("core/v1", "Volume", volume),
    ("core/v1", "KeyToPath", |item, path, causes| {
        local_path(text(item, "/path"), &child(path, "path"), causes);
    }),
    ("core/v1", "DownwardAPIVolumeFile", |file, path, causes| {
        local_path(text(file, "/path"), &child(path, "path"), causes);
        if let Some(Value::Object(field)) = file.get("fieldRef") {
            field_reference(field, &child(path, "fieldRef"), causes);
        }
    }),
    ("core/v1", "ServiceAccountTokenProjection", token),
    ("core/v1", "Toleration", toleration),
    ("core/v1", "SecurityContext", security_context),
    ("core/v1", "NodeSelectorRequirement", node_requirement),
    ("core/v1", "TopologySpreadConstraint", spread),
];

/// Of a pod that is not there yet.
pub(super) fn create(pod: &Object, causes: &mut Vec<Cause>) {
    if items(pod, "/spec/ephemeralContainers").next().is_some() {
        causes.push(Cause::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    let gated = items(pod, "/spec/schedulingGates").next().is_some();
    if gated && !text(pod, "/spec/nodeName").is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        causes.push(Cause::forbidden("spec.nodeName", why));
    }
}

fn spec(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let volumes = unique(spec, "volumes", path, causes);
    let mut names = HashSet::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, container) in items(spec, &format!("/{list}")).enumerate() {
            let here = format!("{path}.{list}[{index}]");
            let name = container["name"].as_str().unwrap_or_default();
            if !name.is_empty() && !names.insert(name.to_owned()) {
                causes.push(Cause::duplicate(format!("{here}.name"), &container["name"]));
            }
            mounts(container, &volumes, &here, causes);
            if list == "initContainers" {
                init_container(container, &here, causes);
            }
            if list == "ephemeralContainers" {
                for field in
                    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"]
                {
                    if container.get(field).is_some_and(|value| !value.is_null()) {
                        let why = "cannot be set for an Ephemeral Container";
                        causes.push(Cause::forbidden(format!("{here}.{field}"), why));
                    }
                }
            }
        }
    }
    host_ports(spec, path, causes);
    let is = |name: &str| spec.get(name) == Some(&Value::Bool(true));
    if is("shareProcessNamespace") && is("hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        causes.push(Cause::invalid(child(path, "shareProcessNamespace"), &json!(true), why));
    }
    labels(spec.get("nodeSelector"), &child(path, "nodeSelector"), causes);
    for (index, alias) in items(spec, "/hostAliases").enumerate() {
        let ip = alias["ip"].as_str().unwrap_or_default();
        named(Form::Address, ip, &format!("{path}.hostAliases[{index}].ip"), causes);
        for name in alias["hostnames"].as_array().into_iter().flatten() {
            let here = format!("{path}.hostAliases[{index}].hostnames");
            named(Form::Subdomain, name.as_str().unwrap_or_default(), &here, causes);
        }
    }
    unique(spec, "schedulingGates", path, causes);
    if text(spec, "/dnsPolicy") == "None" && items(spec, "/dnsConfig/nameservers").next().is_none()
    {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.push(Cause::required(format!("{path}.dnsConfig"), why));
    }
    let context = format!("{path}.securityContext");
    for user in ["runAsUser", "runAsGroup", "fsGroup"] {
        let number = spec.get("securityContext").and_then(|context| context.get(user));
        id(number, &format!("{context}.{user}"), causes);
    }
}

/// The names of a list's items, which must be different.
fn unique(object: &Object, list: &str, path: &str, causes: &mut Vec<Cause>) -> HashSet<String> {
    let mut names = HashSet::new();
    for (index, item) in items(object, &format!("/{list}")).enumerate() {
        let name = item["name"].as_str().unwrap_or_default();
        if !names.insert(name.to_owned()) && !name.is_empty() {
            let path = format!("{}[{index}].name", child(path, list));
            causes.push(Cause::duplicate(path, &item["name"]));
        }
    }
    names
}

fn mounts(container: &Value, volumes: &HashSet<String>, path: &str, causes: &mut Vec<Cause>) {
    let mut places = HashSet::new();
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let here = format!("{path}.volumeMounts[{index}]");
        let own = |field: &str| mount[field].as_str().unwrap_or_default();
        if !own("name").is_empty() && !volumes.contains(own("name")) {
            causes.push(not_found(format!("{here}.name"), &mount["name"]));
        }
        if !own("mountPath").is_empty() && !places.insert(own("mountPath")) {
            let path = format!("{here}.mountPath");
            causes.push(Cause::invalid(path, &mount["mountPath"], "must be unique"));
        }
        for field in ["subPath", "subPathExpr"] {
            if !own(field).is_empty() {
                local_path(own(field), &format!("{here}.{field}"), causes);
            }
        }
        if !own("subPath").is_empty() && !own("subPathExpr").is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            causes.push(Cause::invalid(format!("{here}.subPathExpr"), &mount["subPathExpr"], why));
        }
    }
    for (index, device) in container["volumeDevices"].as_array().into_iter().flatten().enumerate() {
        let name = device["name"].as_str().unwrap_or_default();
        if !name.is_empty() && !volumes.contains(name) {
            causes.push(not_found(format!("{path}.volumeDevices[{index}].name"), &device["name"]));
        }
    }
}

/// Without `restartPolicy: Always` it ends before the others start.
fn init_container(container: &Value, path: &str, causes: &mut Vec<Cause>) {
    if container["restartPolicy"] == "Always" {
        return;
    }
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.get(field).is_some_and(|value| !value.is_null()) {
            let why = "may not be set for init containers without restartPolicy=Always";
            causes.push(Cause::forbidden(format!("{path}.{field}"), why));
        }
    }
}

/// No two containers have the same port of the node.
fn host_ports(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let mut used = HashSet::new();
    let host = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for (at, container) in items(spec, "/containers").enumerate() {
        for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
            let here = format!("{path}.containers[{at}].ports[{index}]");
            let number = port["hostPort"].as_i64().unwrap_or(0);
            if host && number != 0 && number != port["containerPort"].as_i64().unwrap_or(0) {
                let why = "must match `containerPort` when `hostNetwork` is true";
                let inner = format!("{here}.hostPort");
                causes.push(Cause::invalid(inner, &port["hostPort"], why));
            }
            let key = (number, port["protocol"].to_string(), port["hostIP"].to_string());
            if number != 0 && !used.insert(key) {
                let key = format!(
                    "{}/{}/{number}",
                    port["protocol"].as_str().unwrap_or_default(),
                    port["hostIP"].as_str().unwrap_or_default()
                );
                causes.push(Cause::duplicate(format!("{here}.hostPort"), &json!(key)));
            }
        }
    }
}

fn container(container: &Object, path: &str, causes: &mut Vec<Cause>) {
    let image = text(container, "/image");
    if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(child(path, "image"), &json!(image), why));
    }
    let mut names = HashSet::new();
    for (index, port) in items(container, "/ports").enumerate() {
        let name = port["name"].as_str().unwrap_or_default();
        if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(format!("{path}.ports[{index}].name"), &port["name"]));
        }
    }
    for field in ["livenessProbe", "startupProbe"] {
        let Some(probe) = container.get(field) else { continue };
        let successes = &probe["successThreshold"];
        if successes.as_i64().unwrap_or(1) != 1 {
            let here = format!("{path}.{field}.successThreshold");
            causes.push(Cause::invalid(here, successes, "must be 1"));
        }
        let grace = &probe["terminationGracePeriodSeconds"];
        if grace.as_i64().is_some_and(|grace| grace <= 0) {
            let here = format!("{path}.{field}.terminationGracePeriodSeconds");
            causes.push(Cause::invalid(here, grace, "must be greater than 0"));
        }
    }
    let grace =
        container.get("readinessProbe").map(|probe| &probe["terminationGracePeriodSeconds"]);
    if let Some(grace) = grace.filter(|grace| !grace.is_null()) {
        let here = format!("{path}.readinessProbe.terminationGracePeriodSeconds");
        causes.push(Cause::invalid(here, grace, "must not be set for readinessProbes"));
    }
    if let Some(policy) = container.get("restartPolicy").filter(|policy| !policy.is_null())
        && policy != "Always"
        && items(container, "/restartPolicyRules").next().is_none()
        && path.contains(".initContainers[")
    {
        causes.push(Cause::not_supported(child(path, "restartPolicy"), policy, &["Always"]));
    }
}

fn container_port(port: &Object, path: &str, causes: &mut Vec<Cause>) {
    let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
    if number == 0 {
        causes.push(Cause::required(child(path, "containerPort"), ""));
    } else {
        port_number(&json!(number), &child(path, "containerPort"), causes);
    }
    if let Some(host) = port.get("hostPort").filter(|host| host.as_i64() != Some(0)) {
        port_number(host, &child(path, "hostPort"), causes);
    }
}

/// 1 to 65535.
pub(super) fn port_number(number: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !number.as_i64().is_some_and(|number| (1..=65_535).contains(&number)) {
        causes.push(Cause::invalid(path, number, "must be between 1 and 65535, inclusive"));
    }
}

/// A number, or the name of one.
pub(super) fn port_or_name(port: &Value, path: &str, causes: &mut Vec<Cause>) {
    match port {
        Value::String(name) => named(Form::Port, name, path, causes),
        Value::Null => port_number(&json!(0), path, causes),
        number => port_number(number, path, causes),
    }
}

fn port(action: &Object, path: &str, causes: &mut Vec<Cause>) {
    port_or_name(action.get("port").unwrap_or(&Value::Null), &child(path, "port"), causes);
}

fn probe(probe: &Object, path: &str, causes: &mut Vec<Cause>) {
    one_handler(probe, path, causes);
    if let Some(grpc) = probe.get("grpc").and_then(Value::as_object) {
        let number = grpc.get("port").cloned().unwrap_or_else(|| json!(0));
        port_number(&number, &format!("{path}.grpc.port"), causes);
    }
    let command = probe.get("exec").map(|exec| &exec["command"]);
    if command.is_some_and(|command| command.as_array().is_none_or(Vec::is_empty)) {
        causes.push(Cause::required(format!("{path}.exec.command"), ""));
    }
}

/// Something must be done, and only one thing.
fn one_handler(handler: &Object, path: &str, causes: &mut Vec<Cause>) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let mut given = kinds.iter().filter(|kind| handler.get(**kind).is_some_and(Value::is_object));
    if given.next().is_none() {
        causes.push(Cause::required(path, "must specify a handler type"));
    }
    for more in given {
        let why = "may not specify more than 1 handler type";
        causes.push(Cause::forbidden(child(path, more), why));
    }
}

fn variable(variable: &Object, path: &str, causes: &mut Vec<Cause>) {
    let name = text(variable, "/name");
    if !name.is_empty() {
        named(Form::Variable, name, &child(path, "name"), causes);
    }
    let Some(Value::Object(from)) = variable.get("valueFrom") else { return };
    let here = child(path, "valueFrom");
    let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given: Vec<_> =
        kinds.iter().filter(|kind| from.get(**kind).is_some_and(Value::is_object)).collect();
    let why = match given.len() {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        }
        1 if !text(variable, "/value").is_empty() => {
            "may not be specified when `value` is not empty"
        }
        1 => "",
        _ => "may not have more than one field specified at a time",
    };
    if !why.is_empty() {
        causes.push(Cause::invalid(here.as_str(), &json!(""), why));
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        let Some(Value::Object(reference)) = from.get(kind) else { continue };
        let here = child(&here, kind);
        if text(reference, "/name").is_empty() {
            causes.push(Cause::required(child(&here, "name"), ""));
        }
        match text(reference, "/key") {
            "" => causes.push(Cause::required(child(&here, "key"), "")),
            key => named(Form::Key, key, &child(&here, "key"), causes),
        }
    }
    if let Some(Value::Object(field)) = from.get("fieldRef") {
        field_reference(field, &child(&here, "fieldRef"), causes);
    }
}

/// What a container may know of its pod.
fn field_reference(field: &Object, path: &str, causes: &mut Vec<Cause>) {
    const KNOWN: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let here = child(path, "fieldPath");
    match text(field, "/fieldPath") {
        "" => causes.push(Cause::required(here, "")),
        name if KNOWN.contains(&name) => {}
        name if name.starts_with("metadata.labels['")
            || name.starts_with("metadata.annotations['") => {}
        name if name.contains(['[', '\'']) => {
            causes.push(Cause::invalid(here, &json!(name), "does not support subscript"));
        }
        name => causes.push(Cause::not_supported(here, &json!(name), KNOWN)),
    }
}

fn variables(from: &Object, path: &str, causes: &mut Vec<Cause>) {
    let given: Vec<_> = ["configMapRef", "secretRef"]
        .into_iter()
        .filter(|kind| from.get(*kind).is_some_and(Value::is_object))
        .collect();
    let why = match given.len() {
        0 => "must specify one of: `configMapRef` or `secretRef`",
        1 => "",
        _ => "may not have more than one field specified at a time",
    };
    if !why.is_empty() {
        causes.push(Cause::invalid(path, &json!(""), why));
    }
    for kind in given {
        match text(from, &format!("/{kind}/name")) {
            "" => causes.push(Cause::required(format!("{path}.{kind}.name"), "")),
            name => named(Form::Subdomain, name, &format!("{path}.{kind}.name"), causes),
        }
    }
}

/// What is asked for must not be more than what is allowed.
fn resources(resources: &Object, path: &str, causes: &mut Vec<Cause>) {
    for list in ["limits", "requests"] {
        let Some(Value::Object(amounts)) = resources.get(list) else { continue };
        for (name, value) in amounts {
            let here = format!("{path}.{list}[{name}]");
            resource_name(name, &here, causes);
            // What cannot be read is told where all quantities are.
            let Ok(amount) = Quantity::of(value) else { continue };
            if amount.is_negative() {
                let why = "must be greater than or equal to 0";
                causes.push(Cause::invalid(&here, value, why));
            }
            if !is_standard(name) && !amount.is_whole() {
                causes.push(Cause::invalid(&here, value, "must be an integer"));
            }
        }
    }
    let Some(Value::Object(requests)) = resources.get("requests") else { return };
    for (name, value) in requests {
        let limit = resources.get("limits").and_then(|limits| limits.get(name));
        let (Ok(request), Some(Ok(most))) = (Quantity::of(value), limit.map(Quantity::of)) else {
            continue;
        };
        let here = child(path, "requests");
        if !is_standard(name) && request != most {
            let why = format!("must be equal to {name} limit of {most}");
            causes.push(Cause::invalid(here, value, &why));
        } else if request > most {
            let why = format!("must be less than or equal to {name} limit of {most}");
            causes.push(Cause::invalid(here, value, &why));
        }
    }
}

/// One that can be shared and has fractions.
fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage")
        || name.starts_with("hugepages-")
}

pub(super) fn resource_name(name: &str, path: &str, causes: &mut Vec<Cause>) {
    let before = causes.len();
    named(Form::Qualified, name, path, causes);
    if causes.len() == before && !name.contains('/') && !is_standard(name) {
        let why = "must be a standard resource type or fully qualified";
        causes.push(Cause::invalid(path, &json!(name), why));
        let why = "must be a standard resource for containers";
        causes.push(Cause::invalid(path, &json!(name), why));
    }
}

fn volume(volume: &Object, path: &str, causes: &mut Vec<Cause>) {
    let mut sources = volume.iter().filter(|(name, source)| *name != "name" && source.is_object());
    let first = sources.next();
    for (name, _) in sources {
        let why = "may not specify more than 1 volume type";
        causes.push(Cause::forbidden(child(path, name), why));
    }
    let Some((kind, source)) = first else { return };
    let needs: &[&str] = match kind.as_str() {
        "secret" => &["secretName"],
        "configMap" => &["name"],
        "persistentVolumeClaim" => &["claimName"],
        "hostPath" => &["path"],
        "nfs" => &["server", "path"],
        "csi" => &["driver"],
        "iscsi" => &["targetPortal", "iqn"],
        "gitRepo" => &["repository"],
        _ => &[],
    };
    for field in needs {
        if source[*field].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("{path}.{kind}.{field}"), ""));
        }
    }
    let mode = &source["defaultMode"];
    if mode.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        causes.push(Cause::invalid(format!("{path}.{kind}.defaultMode"), mode, why));
    }
    if kind == "hostPath" {
        const KNOWN: &[&str] = &[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ];
        let given = source["type"].as_str().unwrap_or_default();
        if !KNOWN.contains(&given) {
            let here = format!("{path}.hostPath.type");
            causes.push(Cause::not_supported(here, &source["type"], KNOWN));
        }
        if source["path"].as_str().unwrap_or_default().split('/').any(|part| part == "..") {
            let here = format!("{path}.hostPath.path");
            causes.push(Cause::invalid(here, &source["path"], "must not contain '..'"));
        }
    }
    if let Ok(limit) = Quantity::of(&source["sizeLimit"])
        && limit.is_negative()
    {
        let here = format!("{path}.{kind}.sizeLimit");
        let why = "SizeLimit field must be a valid resource quantity";
        causes.push(Cause::forbidden(here, why));
    }
}

fn token(token: &Object, path: &str, causes: &mut Vec<Cause>) {
    let seconds = token.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(3600);
    let here = child(path, "expirationSeconds");
    if seconds < 600 {
        let why = "may not specify a duration less than 10 minutes";
        causes.push(Cause::invalid(here, &json!(seconds), why));
    } else if seconds > 1 << 32 {
        let why = "may not specify a duration larger than 2^32 seconds";
        causes.push(Cause::invalid(here, &json!(seconds), why));
    }
    local_path(text(token, "/path"), &child(path, "path"), causes);
}

/// A path within something: relative, and never out of it.
fn local_path(text: &str, path: &str, causes: &mut Vec<Cause>) {
    if text.starts_with('/') {
        causes.push(Cause::invalid(path, &json!(text), "must be a relative path"));
    }
    if text.split('/').any(|part| part == "..") {
        causes.push(Cause::invalid(path, &json!(text), "must not contain '..'"));
    }
}

fn toleration(toleration: &Object, path: &str, causes: &mut Vec<Cause>) {
    let own = |name: &str| text(toleration, &format!("/{name}"));
    if !own("key").is_empty() {
        named(Form::Qualified, own("key"), &child(path, "key"), causes);
    }
    let operator = own("operator");
    if own("key").is_empty() && operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(child(path, "operator"), &json!(operator), why));
    }
    let seconds = toleration.get("tolerationSeconds").is_some_and(Value::is_number);
    if seconds && own("effect") != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.push(Cause::invalid(child(path, "effect"), &json!(own("effect")), why));
    }
    match operator {
        "Equal" | "" => {
            for why in wrong(Form::LabelValue, own("value")) {
                causes.push(Cause::invalid(child(path, "operator"), &json!(own("value")), &why));
            }
        }
        "Exists" => {
            if !own("value").is_empty() {
                let why = "value must be empty when `operator` is 'Exists'";
                causes.push(Cause::invalid(child(path, "operator"), &json!(own("value")), why));
            }
        }
        "Lt" | "Gt" => {
            if own("value").parse::<i64>().is_err() {
                let why = "value must be a valid integer when `operator` is 'Lt' or 'Gt'";
                causes.push(Cause::invalid(child(path, "value"), &json!(own("value")), why));
            }
        }
        _ => {
            let known = ["Equal", "Exists"];
            causes.push(Cause::not_supported(child(path, "operator"), &json!(operator), &known));
        }
    }
}

fn security_context(context: &Object, path: &str, causes: &mut Vec<Cause>) {
    for user in ["runAsUser", "runAsGroup"] {
        id(context.get(user), &child(path, user), causes);
    }
    let is = |name: &str, value: bool| context.get(name) == Some(&Value::Bool(value));
    if is("allowPrivilegeEscalation", false) && is("privileged", true) {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        causes.push(Cause::invalid(path, &json!(context), why));
    }
}

fn id(number: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    if let Some(value) = number
        && value.as_i64().is_some_and(|number| !(0..=i64::from(i32::MAX)).contains(&number))
    {
        causes.push(Cause::invalid(path, value, "must be between 0 and 2147483647, inclusive"));
    }
}

fn node_requirement(requirement: &Object, path: &str, causes: &mut Vec<Cause>) {
    let count = items(requirement, "/values").count();
    let here = child(path, "values");
    match text(requirement, "/operator") {
        "In" | "NotIn" if count == 0 => {
            let why = "must be specified when `operator` is 'In' or 'NotIn'";
            causes.push(Cause::required(here, why));
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            causes.push(Cause::forbidden(here, why));
        }
        "Gt" | "Lt" if count != 1 => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            causes.push(Cause::required(here, why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => {
            let why = "not a valid selector operator";
            causes.push(Cause::invalid(child(path, "operator"), &json!(other), why));
        }
    }
}

fn spread(constraint: &Object, path: &str, causes: &mut Vec<Cause>) {
    let skew = constraint.get("maxSkew").and_then(Value::as_i64).unwrap_or(0);
    if skew <= 0 {
        let here = child(path, "maxSkew");
        causes.push(Cause::invalid(here, &json!(skew), "must be greater than zero"));
    }
}
