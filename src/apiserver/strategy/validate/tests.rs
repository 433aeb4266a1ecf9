//! Tables: what is written, and what is said of it.

use serde_json::json;
use time::OffsetDateTime;

use super::*;
use crate::object::User;
use crate::resources::find;
use crate::strategy::{default, prepare_create, prepare_update};

fn resource(path: &str) -> &'static Resource {
    let (group, plural) = path.rsplit_once('/').unwrap_or(("", path));
    let version = if group == "autoscaling" { "v2" } else { "v1" };
    find(group, version, plural).expect("a resource")
}

fn object(value: Value) -> Object {
    let Value::Object(object) = value else { unreachable!("it is an object") };
    object
}

fn said(causes: Vec<Cause>) -> Vec<String> {
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// What is said of a new object, named unless it names itself.
fn created(path: &str, value: Value) -> Vec<String> {
    let resource = resource(path);
    let mut object = object(value);
    crate::object::metadata(&mut object).entry("name").or_insert("a.b".into());
    default(resource, &mut object);
    prepare_create(resource, &mut object, &User::apiserver());
    said(validate_create(resource, &object))
}

/// What is said of a change.
fn updated(path: &str, sub: &str, old: Value, new: Value) -> Vec<String> {
    let resource = resource(path);
    let (mut old, mut new) = (object(old), object(new));
    for object in [&mut old, &mut new] {
        crate::object::metadata(object).entry("name").or_insert("a".into());
        default(resource, object);
    }
    prepare_update(resource, sub, &mut new, &old, OffsetDateTime::UNIX_EPOCH);
    said(validate_update(resource, sub, &new, &old))
}

/// The same of an object that was stored as it is.
fn updated_raw(path: &str, old: Value, new: Value) -> Vec<String> {
    let resource = resource(path);
    let (mut old, mut new) = (object(old), object(new));
    for object in [&mut old, &mut new] {
        crate::object::metadata(object).insert("name".to_owned(), "a".into());
    }
    default(resource, &mut new);
    prepare_update(resource, "", &mut new, &old, OffsetDateTime::UNIX_EPOCH);
    said(validate_update(resource, "", &new, &old))
}

/// A sound pod specification with more in it, and with more in its container.
fn pod(spec: Value, container: Value) -> Value {
    let mut own = object(json!({"name": "c", "image": "i"}));
    own.extend(object(container));
    let mut all = object(json!({"containers": [own]}));
    all.extend(object(spec));
    json!({"metadata": {"name": "a"}, "spec": all})
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn workload(more: Value) -> Value {
    let mut spec =
        object(json!({"selector": {"matchLabels": {"app": "a"}}, "template": template()}));
    spec.extend(object(more));
    json!({"spec": spec})
}

#[test]
fn names_and_metadata() {
    let named = |name: &str| json!({"metadata": {"name": name}});
    let subdomain = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
        and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
        '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    assert_eq!(
        created("configmaps", named("A")),
        [format!("metadata.name: Invalid value: \"A\": {subdomain}")]
    );
    assert_eq!(
        created("configmaps", named("")),
        ["metadata.name: Required value: name or generateName is required"]
    );
    assert_eq!(created("namespaces", named("a.b")).len(), 1);
    assert_eq!(created("rbac.authorization.k8s.io/clusterroles", named("system:A b")), [""; 0]);
    assert_eq!(
        created("rbac.authorization.k8s.io/clusterroles", named("a/b")),
        ["metadata.name: Invalid value: \"a/b\": may not contain '/'"]
    );
    let meta = |more: Value| {
        let mut all = object(json!({"name": "a"}));
        all.extend(object(more));
        json!({"metadata": all})
    };
    for (more, expected) in [
        (json!({"generateName": "a-"}), vec![]),
        (json!({"labels": {"a/b": "c"}, "annotations": {"A.b/C": "x y"}}), vec![]),
        (
            json!({"labels": {"a": "-"}}),
            vec![
                "metadata.labels: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric \
                 characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ],
        ),
        (
            json!({"annotations": {"a": "x".repeat(262_144)}}),
            vec!["metadata.annotations: Too long: may not be more than 262144 bytes"],
        ),
        (
            json!({"finalizers": ["mine"]}),
            vec![
                "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it \
                 fully qualified",
            ],
        ),
        (json!({"finalizers": ["orphan", "a.b/c"]}), vec![]),
        (
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]}),
            vec!["metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty"],
        ),
        (
            json!({"ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "A", "name": "p", "uid": "1", "controller": true},
                {"apiVersion": "v1", "kind": "B", "name": "q", "uid": "2", "controller": true}]}),
            vec![
                "metadata.ownerReferences: Invalid value: [{\"apiVersion\":\"apps/v1\",\"controller\":true,\"kind\":\"A\",\
                 \"name\":\"p\",\"uid\":\"1\"},{\"apiVersion\":\"v1\",\"controller\":true,\"kind\":\"B\",\"name\":\"q\",\
                 \"uid\":\"2\"}]: Only one reference can have Controller set to true. Found \"true\" in references for p and q",
            ],
        ),
    ] {
        assert_eq!(created("configmaps", meta(more.clone())), expected, "{more}");
    }
    let old = json!({"metadata": {"name": "a", "uid": "u", "finalizers": ["a/b"]}});
    let renamed = json!({"metadata": {"name": "b", "uid": "v"}});
    assert_eq!(
        updated("configmaps", "", old.clone(), renamed),
        [
            "metadata.name: Invalid value: \"b\": field is immutable",
            "metadata.uid: Invalid value: \"v\": field is immutable"
        ]
    );
    let deleted = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(updated("configmaps", "", deleted.clone(), json!({})), [""; 0]);
    assert_eq!(
        updated("configmaps", "", json!({}), deleted.clone()),
        ["metadata.deletionTimestamp: Invalid value: \"2026-01-01T00:00:00Z\": field is immutable"]
    );
    assert_eq!(
        updated("configmaps", "", deleted, old),
        [
            "metadata.uid: Invalid value: \"u\": field is immutable",
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
             finalizers []string{\"a/b\"}"
        ]
    );
}

#[test]
fn pods() {
    assert_eq!(created("pods", pod(json!({}), json!({}))), [""; 0]);
    assert_eq!(created("pods", json!({})), ["spec.containers: Required value"]);
    let here = "spec.containers[0]";
    for (container, expected) in [
        (json!({"name": ""}), vec![format!("{here}.name: Required value")]),
        (json!({"image": ""}), vec![format!("{here}.image: Required value")]),
        (
            json!({"imagePullPolicy": "Maybe"}),
            vec![format!(
                "{here}.imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\""
            )],
        ),
        (json!({"ports": [{}]}), vec![format!("{here}.ports[0].containerPort: Required value")]),
        (
            json!({"ports": [{"containerPort": 70000, "name": "a"}, {"containerPort": 1, "name": "a"}]}),
            vec![
                format!("{here}.ports[1].name: Duplicate value: \"a\""),
                format!(
                    "{here}.ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"
                ),
            ],
        ),
        (
            json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
            vec![format!(
                "{here}.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"
            )],
        ),
        (
            json!({"resources": {"requests": {"cpu": "many"}}}),
            vec![format!(
                "{here}.resources.requests[cpu]: Invalid value: \"many\": quantities must match the regular expression \
                 '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )],
        ),
        (
            json!({"resources": {"limits": {"cpu": "-1"}, "requests": {"cpu": "-1"}}}),
            vec![
                format!(
                    "{here}.resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"
                ),
                format!(
                    "{here}.resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"
                ),
            ],
        ),
        (
            json!({"env": [{"name": "a=b"}, {"name": "E", "valueFrom": {}}]}),
            vec![
                format!(
                    "{here}.env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of \
                     printable ASCII characters other than '='"
                ),
                format!(
                    "{here}.env[1].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
                     `configMapKeyRef` or `secretKeyRef`"
                ),
            ],
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
            vec![format!("{here}.volumeMounts[0].name: Not found: \"v\"")],
        ),
        (
            json!({"livenessProbe": {}}),
            vec![format!("{here}.livenessProbe: Required value: must specify a handler type")],
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 0}, "successThreshold": 2, "periodSeconds": -1}}),
            vec![
                format!("{here}.livenessProbe.successThreshold: Invalid value: 2: must be 1"),
                format!(
                    "{here}.livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0"
                ),
                format!(
                    "{here}.livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive"
                ),
            ],
        ),
        (
            json!({"readinessProbe": {"exec": {"command": ["a"]}, "httpGet": {"port": "http"}}}),
            vec![format!(
                "{here}.readinessProbe.httpGet: Forbidden: may not specify more than 1 handler type"
            )],
        ),
    ] {
        assert_eq!(created("pods", pod(json!({}), container.clone())), expected, "{container}");
    }
    for (spec, expected) in [
        (
            json!({"restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            json!({"shareProcessNamespace": true, "hostPID": true}),
            "spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
        ),
        (
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]}}]}),
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes",
        ),
        (
            json!({"volumes": [{"name": "v", "secret": {}}]}),
            "spec.volumes[0].secret.secretName: Required value",
        ),
        (
            json!({"volumes": [{"name": "v"}, {"name": "v"}]}),
            "spec.volumes[1].name: Duplicate value: \"v\"",
        ),
        (
            json!({"tolerations": [{"operator": "Exists", "value": "v", "key": "k"}]}),
            "spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'",
        ),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "image": "i"}]}),
            "spec.ephemeralContainers: Forbidden: cannot be set on create",
        ),
        (
            json!({"nodeName": "n", "schedulingGates": [{"name": "a.b/c"}]}),
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ),
        (
            json!({"initContainers": [{"name": "i", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
    ] {
        assert_eq!(created("pods", pod(spec.clone(), json!({}))), [expected], "{spec}");
    }
}

#[test]
fn workloads() {
    for plural in ["deployments", "replicasets", "statefulsets", "daemonsets"] {
        let path = format!("apps/{plural}");
        assert_eq!(created(&path, workload(json!({}))), [""; 0], "{plural}");
        assert_eq!(
            created(&path, workload(json!({"selector": {"matchLabels": {"app": "b"}}}))),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`"
            ]
        );
        assert_eq!(
            created(&path, workload(json!({"selector": {}}))),
            [format!(
                "spec.selector: Invalid value: {{}}: empty selector is invalid for {}",
                plural.trim_end_matches('s').replace("replicaset", "deployment")
            )]
        );
    }
    assert_eq!(
        created("apps/deployments", json!({})),
        ["spec.selector: Required value", "spec.template.spec.containers: Required value",]
    );
    for (path, more, expected) in [
        (
            "apps/deployments",
            json!({"replicas": -1}),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "apps/deployments",
            json!({"strategy": {"type": "Burn"}}),
            "spec.strategy.type: Unsupported value: \"Burn\": supported values: \"Recreate\", \"RollingUpdate\"",
        ),
        (
            "apps/deployments",
            json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "apps/deployments",
            json!({"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            "apps/deployments",
            json!({"strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
        ),
        (
            "apps/deployments",
            json!({"minReadySeconds": 600}),
            "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
        ),
        (
            "apps/daemonsets",
            json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ),
        (
            "apps/deployments",
            json!({"template": {"metadata": {"labels": {"app": "a"}}, "spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "i"}]}}}),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
    ] {
        assert_eq!(created(path, workload(more.clone())), [expected], "{more}");
    }
    let job = |policy: &str| {
        let mut template = template();
        template["spec"]["restartPolicy"] = policy.into();
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": template}})
    };
    assert_eq!(created("batch/jobs", job("Never")), [""; 0]);
    assert_eq!(
        created("batch/jobs", job("Always")),
        [
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        ]
    );
    let cron = |more: Value| {
        let mut spec =
            object(json!({"schedule": "* * * * *", "jobTemplate": {"spec": job("Never")["spec"]}}));
        spec.extend(object(more));
        json!({"spec": spec})
    };
    assert_eq!(created("batch/cronjobs", cron(json!({"timeZone": "Europe/Berlin"}))), [""; 0]);
    for (more, expected) in [
        (json!({"schedule": ""}), "spec.schedule: Required value"),
        (
            json!({"schedule": "* *"}),
            "spec.schedule: Invalid value: \"* *\": expected exactly 5 fields, found 2: [* *]",
        ),
        (
            json!({"timeZone": "Mars/A"}),
            "spec.timeZone: Invalid value: \"Mars/A\": unknown time zone Mars/A",
        ),
        (
            json!({"schedule": "TZ=UTC * * * * *"}),
            "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ),
    ] {
        assert_eq!(created("batch/cronjobs", cron(more.clone())), [expected], "{more}");
    }
    let long = json!({"metadata": {"name": "a".repeat(53)}, "spec": cron(json!({}))["spec"]});
    assert_eq!(created("batch/cronjobs", long).len(), 1);
}

#[test]
fn services_and_what_leads_to_them() {
    let service = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
    for (spec, expected) in [
        (json!({"ports": [{"port": 80}]}), vec![]),
        (json!({"clusterIP": "None"}), vec![]),
        (json!({"type": "ExternalName", "externalName": "a.b"}), vec![]),
        (json!({}), vec!["spec.ports: Required value"]),
        (json!({"type": "ExternalName"}), vec!["spec.externalName: Required value"]),
        (
            json!({"type": "Other", "ports": [{"port": 80}]}),
            vec![
                "spec.type: Unsupported value: \"Other\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ],
        ),
        (
            json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
            vec!["spec.ports[0].name: Required value"],
        ),
        (
            json!({"ports": [{"port": 0}]}),
            vec![
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30000}]}),
            vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        ),
        (
            json!({"type": "LoadBalancer", "clusterIP": "None", "ports": [{"port": 80}]}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services",
            ],
        ),
        (
            json!({"clusterIP": "10.0.0", "ports": [{"port": 80}]}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"10.0.0\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        ),
        (
            json!({"externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
            vec![
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            ],
        ),
    ] {
        assert_eq!(created("services", service(spec.clone())), expected, "{spec}");
    }
    let old = json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80}]}});
    let new = json!({"spec": {"clusterIP": "10.0.0.2", "ports": [{"port": 80}]}});
    assert_eq!(
        updated("services", "", old, new),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
    );
    let ingress =
        |path: Value| json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [path]}}]}});
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    for (path, expected) in [
        (json!({"path": "/", "pathType": "Prefix", "backend": backend}), vec![]),
        (
            json!({"path": "/", "backend": backend}),
            vec![
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ],
        ),
        (
            json!({"path": "a", "pathType": "Exact", "backend": backend}),
            vec![
                "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
            ],
        ),
        (
            json!({"pathType": "Prefix", "path": "/", "backend": {"service": {"name": "s"}}}),
            vec![
                "spec.rules[0].http.paths[0].backend.service: Required value: port name or number is required",
            ],
        ),
    ] {
        assert_eq!(
            created("networking.k8s.io/ingresses", ingress(path.clone())),
            expected,
            "{path}"
        );
    }
    assert_eq!(
        created("networking.k8s.io/ingresses", json!({})),
        ["spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"]
    );
    let policy = |peer: Value| json!({"spec": {"podSelector": {}, "ingress": [{"from": [peer]}]}});
    assert_eq!(
        created("networking.k8s.io/networkpolicies", policy(json!({"podSelector": {}}))),
        [""; 0]
    );
    assert_eq!(
        created("networking.k8s.io/networkpolicies", policy(json!({}))),
        ["spec.ingress[0].from[0]: Required value: must specify a peer"]
    );
    assert_eq!(
        created(
            "networking.k8s.io/networkpolicies",
            policy(
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}})
            )
        ),
        [
            "spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr` \"10.0.0.0/8\""
        ]
    );
    let slice = |more: Value| {
        let mut all = object(json!({"addressType": "IPv4", "endpoints": []}));
        all.extend(object(more));
        Value::from(all)
    };
    assert_eq!(
        created(
            "discovery.k8s.io/endpointslices",
            slice(json!({"endpoints": [{"addresses": ["10.0.0.1"]}]}))
        ),
        [""; 0]
    );
    assert_eq!(
        created("discovery.k8s.io/endpointslices", slice(json!({"addressType": ""}))),
        ["addressType: Required value"]
    );
}

#[test]
fn the_rest() {
    let rbac = "rbac.authorization.k8s.io";
    let binding = |kind: &str, subject: Value| json!({"roleRef": {"kind": kind, "name": "r"}, "subjects": [subject]});
    let user = || json!({"kind": "User", "name": "u"});
    let long = "x".repeat(1_048_577);
    for (path, value, expected) in [
        (
            "configmaps".to_owned(),
            json!({"data": {"a/b": "c"}}),
            vec![
                "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or \
                 '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            ],
        ),
        (
            "configmaps".to_owned(),
            json!({"data": {"a": long}}),
            vec!["[]: Too long: may not be more than 1048576 bytes"],
        ),
        (
            "secrets".to_owned(),
            json!({"type": "kubernetes.io/tls"}),
            vec!["data[tls.crt]: Required value", "data[tls.key]: Required value"],
        ),
        (
            "secrets".to_owned(),
            json!({"type": "kubernetes.io/service-account-token"}),
            vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
        ),
        (format!("{rbac}/rolebindings"), binding("ClusterRole", user()), vec![]),
        (
            format!("{rbac}/clusterrolebindings"),
            binding("Role", user()),
            vec!["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""],
        ),
        (
            format!("{rbac}/rolebindings"),
            binding("Role", json!({"kind": "ServiceAccount", "name": "s"})),
            vec!["subjects[0].namespace: Required value"],
        ),
        (
            format!("{rbac}/rolebindings"),
            binding("Role", json!({"kind": "Robot", "name": "s"})),
            vec![
                "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
            ],
        ),
        (
            format!("{rbac}/roles"),
            json!({"rules": [{"nonResourceURLs": ["/"], "verbs": ["get"]}, {"apiGroups": [""], "resources": ["pods"]}]}),
            vec![
                "rules[1].verbs: Required value: verbs must contain at least one value",
                "rules[0].nonResourceURLs: Invalid value: [\"/\"]: namespaced rules cannot apply to non-resource URLs",
            ],
        ),
        (
            "autoscaling/horizontalpodautoscalers".to_owned(),
            json!({"spec": {"minReplicas": 3, "maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
            vec![
                "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
            ],
        ),
        (
            "policy/poddisruptionbudgets".to_owned(),
            json!({"spec": {"minAvailable": 1, "maxUnavailable": "10%"}}),
            vec![
                "spec: Invalid value: {\"maxUnavailable\":\"10%\",\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set",
            ],
        ),
        (
            "resourcequotas".to_owned(),
            json!({"spec": {"hard": {"pods": "1500m", "wheels": "4"}}}),
            vec![
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                "spec.hard[wheels]: Invalid value: \"wheels\": must be a standard resource type or fully qualified",
                "spec.hard[wheels]: Invalid value: \"wheels\": must be a standard resource for quota",
            ],
        ),
        (
            "limitranges".to_owned(),
            json!({"spec": {"limits": [{"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}}),
            vec![
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ],
        ),
        (
            "scheduling.k8s.io/priorityclasses".to_owned(),
            json!({"value": 2_000_000_000}),
            vec![
                "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
            ],
        ),
        (
            "scheduling.k8s.io/priorityclasses".to_owned(),
            json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}),
            vec![],
        ),
        (
            "storage.k8s.io/storageclasses".to_owned(),
            json!({"reclaimPolicy": "Burn"}),
            vec![
                "provisioner: Required value",
                "reclaimPolicy: Unsupported value: \"Burn\": supported values: \"Delete\", \"Retain\"",
            ],
        ),
        (
            "persistentvolumeclaims".to_owned(),
            json!({"spec": {}}),
            vec![
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
        ),
        (
            "persistentvolumes".to_owned(),
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}),
            vec!["spec: Required value: must specify a volume type"],
        ),
        (
            "coordination.k8s.io/leases".to_owned(),
            json!({"spec": {"leaseDurationSeconds": 0}}),
            vec!["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
        ),
        (
            "certificates.k8s.io/certificatesigningrequests".to_owned(),
            json!({"spec": {"request": "YQ==", "signerName": "a", "usages": []}}),
            vec![
                "spec.usages: Required value",
                "spec.request: Invalid value: \"YQ==\": PEM block type must be CERTIFICATE REQUEST",
                "spec.signerName: Invalid value: \"a\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ],
        ),
        (
            "events".to_owned(),
            json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            vec!["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"],
        ),
        (
            "events.k8s.io/events".to_owned(),
            json!({"metadata": {"name": "e", "namespace": "a"}, "regarding": {"namespace": "a"}, "type": "Normal",
                "reason": "r", "action": "a", "reportingController": "c/d", "reportingInstance": "i"}),
            vec!["eventTime: Required value"],
        ),
        (
            "admissionregistration.k8s.io/validatingwebhookconfigurations".to_owned(),
            json!({"webhooks": [{"name": "a.b", "clientConfig": {"url": "http://a"}, "timeoutSeconds": 31,
                "admissionReviewVersions": ["v1"], "sideEffects": "None"}]}),
            vec![
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
                "webhooks[0].clientConfig.url: Invalid value: \"http://a\": 'https' is the only allowed URL scheme",
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ],
        ),
    ] {
        assert_eq!(created(&path, value.clone()), expected, "{path} {}", value.to_string().len());
    }
}

#[test]
fn what_does_not_change() {
    let data = |value: &str| json!({"immutable": true, "data": {"a": value}});
    assert_eq!(
        updated("configmaps", "", data("eA=="), data("eQ==")),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        updated("secrets", "", json!({"type": "a"}), json!({"type": "b"})),
        ["type: Invalid value: \"b\": field is immutable"]
    );
    let deployment = |label: &str| {
        let mut deployment = workload(json!({"selector": {"matchLabels": {"app": label}}}));
        deployment["spec"]["template"]["metadata"]["labels"] = json!({"app": label});
        deployment
    };
    assert_eq!(
        updated("apps/deployments", "", deployment("a"), deployment("b")),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"]
    );
    assert_eq!(
        updated(
            "apps/statefulsets",
            "",
            workload(json!({})),
            workload(json!({"serviceName": "s"}))
        ),
        [
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
          'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
        ]
    );
    assert_eq!(
        updated("apps/statefulsets", "", workload(json!({})), workload(json!({"replicas": 3}))),
        [""; 0]
    );
    let before = pod(json!({"tolerations": [{"key": "a", "operator": "Exists"}]}), json!({}));
    let change =
        |spec: Value, container: Value| updated("pods", "", before.clone(), pod(spec, container));
    let tolerations =
        |more: Value| json!({"tolerations": [{"key": "a", "operator": "Exists"}, more]});
    let kept = tolerations(json!({"key": "b", "operator": "Exists"}));
    assert_eq!(change(kept.clone(), json!({"image": "j", "imagePullPolicy": "Always"})), [""; 0]);
    let refused = change(kept.clone(), json!({"command": ["x"]}));
    assert_eq!(refused.len(), 1);
    assert!(refused[0].starts_with(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
    ));
    assert_eq!(
        change(json!({}), json!({})),
        [
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
        ]
    );
    let mut two = kept;
    two["containers"] = json!([{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]);
    assert_eq!(
        change(two, json!({})),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    // Of what was stored without them, defaults are no change.
    assert_eq!(
        updated_raw(
            "pods",
            json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
            pod(json!({}), json!({}))
        ),
        [""; 0]
    );
    let rbac = "rbac.authorization.k8s.io/rolebindings";
    let binding = |name: &str| json!({"roleRef": {"kind": "Role", "name": name}});
    assert_eq!(
        updated(rbac, "", binding("a"), binding("b")),
        [
            "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"b\"}: cannot change roleRef"
        ]
    );
    let class = |value: u32| json!({"value": value});
    assert_eq!(
        updated("scheduling.k8s.io/priorityclasses", "", class(1), class(2)),
        ["value: Forbidden: may not be changed in an update."]
    );
    let claim = |storage: &str, bound: bool| {
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "v", "resources": {"requests": {"storage": storage}}},
            "status": {"phase": if bound { "Bound" } else { "Pending" }}})
    };
    assert_eq!(
        updated("persistentvolumeclaims", "", claim("1Gi", true), claim("2Gi", true)),
        [""; 0]
    );
    assert_eq!(
        updated("persistentvolumeclaims", "", claim("2Gi", true), claim("1Gi", true)),
        ["spec.resources.requests.storage: Forbidden: field can not be less than previous value"]
    );
    assert_eq!(
        updated("persistentvolumeclaims", "", claim("1Gi", false), claim("2Gi", false)).len(),
        1
    );
}
