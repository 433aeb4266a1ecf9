//! Prints what Kubernetes says of each type of the built-in groups: its definitions in JSON, one per line and in the
//! order of their names, as `make openapi` keeps them in `src/apiserver/schema/definitions.json.gz`.
//!
//! A workspace of its own: `k8s-openapi` takes a minute to compile, and is needed only when its version changes.

use std::io::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

macro_rules! roots {
    ($from:ident: $($group:ident::$version:ident: $($kind:ident),+;)+) => {
        $($($from.subschema_for::<k8s_openapi::api::$group::$version::$kind>();)+)+
    };
}

fn main() -> std::io::Result<()> {
    let mut from = SchemaSettings::draft07().into_generator();
    roots! {
        from:
        admissionregistration::v1: MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration;
        apps::v1: ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet;
        authentication::v1: SelfSubjectReview, TokenRequest, TokenReview;
        authorization::v1: LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview;
        autoscaling::v1: HorizontalPodAutoscaler, Scale;
        autoscaling::v2: HorizontalPodAutoscaler;
        batch::v1: CronJob, Job;
        certificates::v1: CertificateSigningRequest;
        coordination::v1: Lease;
        core::v1: Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount;
        discovery::v1: EndpointSlice;
        events::v1: Event;
        flowcontrol::v1: FlowSchema, PriorityLevelConfiguration;
        networking::v1: IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR;
        node::v1: RuntimeClass;
        policy::v1: Eviction, PodDisruptionBudget;
        rbac::v1: ClusterRole, ClusterRoleBinding, Role, RoleBinding;
        resource::v1: DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice;
        scheduling::v1: PriorityClass;
        storage::v1: CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass;
    }
    {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
        from.subschema_for::<meta::APIGroup>();
        from.subschema_for::<meta::APIGroupList>();
        from.subschema_for::<meta::APIResourceList>();
        from.subschema_for::<meta::APIVersions>();
        from.subschema_for::<meta::DeleteOptions>();
        from.subschema_for::<meta::ListMeta>();
        from.subschema_for::<meta::Status>();
        from.subschema_for::<k8s_openapi::apimachinery::pkg::version::Info>();
    }
    let definitions = from.take_definitions(true);
    let mut out = std::io::stdout().lock();
    for (name, definition) in definitions {
        let mut line = Map::from_iter([(name, definition)]);
        line.values_mut().for_each(shorten);
        writeln!(out, "{}", Value::from(line))?;
    }
    Ok(())
}

/// References by their names alone.
fn shorten(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/definitions/")
            {
                *reference = name.to_owned();
            }
            object.values_mut().for_each(shorten);
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        _ => {}
    }
}
