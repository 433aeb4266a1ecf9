//! The columns of every kind, and who fills them: as the reference has them, in its order.

use serde_json::Value;

use super::cells::{self, Cells};
use super::{Column, pod};
use crate::resources::Resource;

/// How a resource is printed, in all its versions.
pub(super) struct Kind {
    group: &'static str,
    plural: &'static str,
    pub(super) columns: &'static [Column],
    pub(super) cells: fn(&Cells<'_>) -> Vec<Value>,
}

/// The one of this resource, if it has columns of its own.
pub(super) fn of(resource: &Resource) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == resource.group && kind.plural == resource.plural)
}

/// Of kinds that have none of their own.
pub(super) const PLAIN: &[Column] =
    &[NAME, Column { kind: "date", ..text("Created At", "When it was made.") }];

const NAME: Column = Column { format: "name", ..text("Name", "Unique among those of its kind.") };
const AGE: Column = text("Age", "How long ago it was made.");
const CONTAINERS: Column = wide("Containers", "The names of its containers.");
const IMAGES: Column = wide("Images", "What its containers are made from.");
const SELECTOR: Column = wide("Selector", "The labels of the pods that belong to it.");
const DESIRED: Column = integer("Desired", "How many pods there shall be.");
const CURRENT: Column = integer("Current", "How many pods there are.");

const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { priority: 1, ..text(name, description) }
}

const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { kind: "integer", ..text(name, description) }
}

const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column { kind: "boolean", ..text(name, description) }
}

const fn kind(
    group: &'static str,
    plural: &'static str,
    columns: &'static [Column],
    cells: fn(&Cells<'_>) -> Vec<Value>,
) -> Kind {
    Kind { group, plural, columns, cells }
}

const EVENT: &[Column] = &[
    text("Last Seen", "How long ago it happened last."),
    text("Type", "Whether it is worth a look: Normal, Warning."),
    text("Reason", "Why, in one word."),
    text("Object", "What it is about."),
    wide("Subobject", "Which part of that."),
    wide("Source", "Who tells it."),
    text("Message", "What happened."),
    wide("First Seen", "How long ago it happened first."),
    Column { priority: 1, ..integer("Count", "How often it happened.") },
    Column { priority: 1, ..NAME },
];
const REPLICAS: &[Column] = &[
    NAME,
    DESIRED,
    CURRENT,
    integer("Ready", "How many pods are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const BINDING: &[Column] = &[
    NAME,
    text("Role", "What is allowed."),
    AGE,
    wide("Users", "To which users."),
    wide("Groups", "To which groups."),
    wide("ServiceAccounts", "To which service accounts."),
];
const WEBHOOKS: &[Column] = &[NAME, integer("Webhooks", "How many are called."), AGE];
const POLICY_BINDING: &[Column] = &[
    NAME,
    text("PolicyName", "Which policy is in force."),
    text("ParamRef", "What the policy is given."),
    AGE,
];
const PARAM_KIND: Column = text("ParamKind", "Of what kind its parameters are.");
const STORAGE_CLASS: Column = text("StorageClass", "The class of storage it is of.");
const ATTRIBUTES_CLASS: Column =
    text("VolumeAttributesClass", "The class of attributes its volume has.");
const ACCESS: Column = text("Access Modes", "How many may mount it, and how.");
const VOLUME_MODE: Column = wide("VolumeMode", "Filesystem or Block.");

static KINDS: &[Kind] = &[
    kind(
        "",
        "pods",
        &[
            NAME,
            text("Ready", "How many of its containers are ready, and how many there are."),
            text("Status", "What it is doing, or what keeps it from that."),
            text("Restarts", "How often its containers were restarted, and when last."),
            AGE,
            wide("IP", "Its address."),
            wide("Node", "Where it runs."),
            wide("Nominated Node", "Where it will run when there is room."),
            wide("Readiness Gates", "How many of its further conditions hold."),
        ],
        pod::cells,
    ),
    kind(
        "",
        "namespaces",
        &[NAME, text("Status", "Active, or Terminating."), AGE],
        cells::namespace,
    ),
    kind(
        "",
        "nodes",
        &[
            NAME,
            text("Status", "Whether it is ready, and takes pods."),
            text("Roles", "What it is for."),
            AGE,
            text("Version", "Of its kubelet."),
            wide("Internal-IP", "Its address in the cluster's network."),
            wide("External-IP", "Its address in other networks."),
            wide("OS-Image", "Its operating system."),
            wide("Kernel-Version", "Of its kernel."),
            wide("Container-Runtime", "What runs its containers, and of which version."),
        ],
        cells::node,
    ),
    kind(
        "",
        "services",
        &[
            NAME,
            text("Type", "From where it can be reached."),
            text("Cluster-IP", "Its address within the cluster."),
            text("External-IP", "Its addresses elsewhere."),
            text("Port(s)", "Where it listens, also on the nodes."),
            AGE,
            wide("Selector", "The labels of the pods behind it."),
        ],
        cells::service,
    ),
    kind(
        "",
        "endpoints",
        &[NAME, text("Endpoints", "Who answers, ready to."), AGE],
        cells::endpoints,
    ),
    kind(
        "",
        "configmaps",
        &[NAME, integer("Data", "How many entries it has."), AGE],
        cells::config_map,
    ),
    kind(
        "",
        "secrets",
        &[NAME, text("Type", "What it is for."), integer("Data", "How many entries it has."), AGE],
        cells::secret,
    ),
    kind(
        "",
        "serviceaccounts",
        &[NAME, integer("Secrets", "How many secrets it may use."), AGE],
        cells::service_account,
    ),
    kind("", "events", EVENT, cells::event),
    kind("events.k8s.io", "events", EVENT, cells::event),
    kind(
        "",
        "persistentvolumes",
        &[
            NAME,
            text("Capacity", "How much it holds."),
            ACCESS,
            text("Reclaim Policy", "What becomes of it when its claim goes."),
            text("Status", "Whether it is claimed."),
            text("Claim", "By whom."),
            STORAGE_CLASS,
            ATTRIBUTES_CLASS,
            text("Reason", "Why it is as it is."),
            AGE,
            VOLUME_MODE,
        ],
        cells::persistent_volume,
    ),
    kind(
        "",
        "persistentvolumeclaims",
        &[
            NAME,
            text("Status", "Whether it has a volume."),
            text("Volume", "Which."),
            text("Capacity", "How much that holds."),
            ACCESS,
            STORAGE_CLASS,
            ATTRIBUTES_CLASS,
            AGE,
            VOLUME_MODE,
        ],
        cells::claim,
    ),
    kind("", "replicationcontrollers", REPLICAS, cells::replication_controller),
    kind(
        "",
        "podtemplates",
        &[
            NAME,
            Column { priority: 0, ..CONTAINERS },
            Column { priority: 0, ..IMAGES },
            text("Pod Labels", "What its pods are labelled with."),
        ],
        cells::pod_template,
    ),
    kind(
        "",
        "resourcequotas",
        &[
            NAME,
            text("Request", "What is used of what may be asked for."),
            text("Limit", "What is used of what limits may come to."),
            AGE,
        ],
        cells::resource_quota,
    ),
    kind(
        "",
        "componentstatuses",
        &[
            NAME,
            text("Status", "Whether it is well."),
            text("Message", "What it says."),
            text("Error", "What ails it."),
        ],
        cells::component_status,
    ),
    kind(
        "apps",
        "deployments",
        &[
            NAME,
            text("Ready", "How many of its pods are ready, and how many there shall be."),
            integer("Up-to-date", "How many are of the newest template."),
            integer("Available", "How many have been ready for long enough."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells::deployment,
    ),
    kind("apps", "replicasets", REPLICAS, cells::replica_set),
    kind(
        "apps",
        "statefulsets",
        &[
            NAME,
            text("Ready", "How many of its pods are ready, and how many there shall be."),
            AGE,
            CONTAINERS,
            IMAGES,
        ],
        cells::stateful_set,
    ),
    kind(
        "apps",
        "daemonsets",
        &[
            NAME,
            integer("Desired", "How many nodes shall run a pod of it."),
            integer("Current", "How many do."),
            integer("Ready", "How many pods are ready."),
            integer("Up-to-date", "How many are of the newest template."),
            integer("Available", "How many have been ready for long enough."),
            text("Node Selector", "The labels of the nodes it is for."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells::daemon_set,
    ),
    kind(
        "apps",
        "controllerrevisions",
        &[
            NAME,
            text("Controller", "Whose it is."),
            integer("Revision", "Which one it is of those."),
            AGE,
        ],
        cells::controller_revision,
    ),
    kind(
        "batch",
        "jobs",
        &[
            NAME,
            text("Status", "How it goes."),
            text("Completions", "How many pods have succeeded, and how many shall."),
            text("Duration", "How long it took so far."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells::job,
    ),
    kind(
        "batch",
        "cronjobs",
        &[
            NAME,
            text("Schedule", "When it runs, in the words of crontab(5)."),
            text("Timezone", "By whose clock."),
            text("Suspend", "Whether it rests."),
            integer("Active", "How many jobs of it run."),
            text("Last Schedule", "How long ago it ran."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cells::cron_job,
    ),
    kind(
        "coordination.k8s.io",
        "leases",
        &[NAME, text("Holder", "Who has it."), AGE],
        cells::lease,
    ),
    kind("rbac.authorization.k8s.io", "rolebindings", BINDING, cells::role_binding),
    kind("rbac.authorization.k8s.io", "clusterrolebindings", BINDING, cells::role_binding),
    kind(
        "discovery.k8s.io",
        "endpointslices",
        &[
            NAME,
            text("AddressType", "IPv4, IPv6 or FQDN."),
            text("Ports", "Where they listen."),
            text("Endpoints", "Their addresses."),
            AGE,
        ],
        cells::endpoint_slice,
    ),
    kind(
        "networking.k8s.io",
        "ingresses",
        &[
            NAME,
            text("Class", "Who serves it."),
            text("Hosts", "Under which names."),
            text("Address", "Where."),
            text("Ports", "On which ports."),
            AGE,
        ],
        cells::ingress,
    ),
    kind(
        "networking.k8s.io",
        "ingressclasses",
        &[
            NAME,
            text("Controller", "Who serves it."),
            text("Parameters", "What that is told."),
            AGE,
        ],
        cells::ingress_class,
    ),
    kind(
        "networking.k8s.io",
        "networkpolicies",
        &[NAME, text("Pod-Selector", "The labels of the pods it is for."), AGE],
        cells::network_policy,
    ),
    kind(
        "networking.k8s.io",
        "ipaddresses",
        &[NAME, text("ParentRef", "Whose address it is.")],
        cells::ip_address,
    ),
    kind(
        "networking.k8s.io",
        "servicecidrs",
        &[NAME, text("CIDRs", "From where services get addresses."), AGE],
        cells::service_cidr,
    ),
    kind(
        "policy",
        "poddisruptionbudgets",
        &[
            NAME,
            text("Min Available", "How many pods must stay."),
            text("Max Unavailable", "How many pods may go."),
            integer("Allowed Disruptions", "How many may go now."),
            AGE,
        ],
        cells::disruption_budget,
    ),
    kind(
        "storage.k8s.io",
        "storageclasses",
        &[
            NAME,
            text("Provisioner", "Who makes its volumes."),
            text("ReclaimPolicy", "What becomes of a volume when its claim goes."),
            text("VolumeBindingMode", "When a volume is made."),
            boolean("AllowVolumeExpansion", "Whether volumes can grow."),
            AGE,
        ],
        cells::class_of_storage,
    ),
    kind(
        "storage.k8s.io",
        "volumeattachments",
        &[
            NAME,
            text("Attacher", "Who attaches it."),
            text("PV", "Which volume."),
            text("Node", "To which node."),
            boolean("Attached", "Whether it is."),
            AGE,
        ],
        cells::volume_attachment,
    ),
    kind(
        "storage.k8s.io",
        "csidrivers",
        &[
            NAME,
            boolean("AttachRequired", "Whether volumes must be attached before they are mounted."),
            boolean("PodInfoOnMount", "Whether it is told about the pod."),
            boolean("StorageCapacity", "Whether it tells how much is free."),
            text("TokenRequests", "For whom it gets tokens of the pod's service account."),
            boolean("RequiresRepublish", "Whether it is called again and again."),
            text("Modes", "For how long its volumes live."),
            AGE,
        ],
        cells::csi_driver,
    ),
    kind(
        "storage.k8s.io",
        "csinodes",
        &[NAME, integer("Drivers", "How many drivers run there."), AGE],
        cells::csi_node,
    ),
    kind(
        "storage.k8s.io",
        "csistoragecapacities",
        &[NAME, text("StorageClassName", "Of which class."), text("Capacity", "How much is free.")],
        cells::csi_capacity,
    ),
    kind(
        "storage.k8s.io",
        "volumeattributesclasses",
        &[NAME, text("DriverName", "Whose attributes they are."), AGE],
        cells::attributes_class,
    ),
    kind(
        "scheduling.k8s.io",
        "priorityclasses",
        &[
            NAME,
            integer("Value", "Higher goes first."),
            boolean("Global-Default", "Whether pods are of it that do not say."),
            AGE,
            text("PreemptionPolicy", "Whether others must go for its pods."),
        ],
        cells::priority_class,
    ),
    kind(
        "node.k8s.io",
        "runtimeclasses",
        &[NAME, text("Handler", "What runs its pods."), AGE],
        cells::runtime_class,
    ),
    kind(
        "certificates.k8s.io",
        "certificatesigningrequests",
        &[
            NAME,
            AGE,
            text("SignerName", "Who shall sign it."),
            text("Requestor", "Who asks."),
            text("RequestedDuration", "For how long it shall be good."),
            text("Condition", "What was decided."),
        ],
        cells::signing_request,
    ),
    kind(
        "autoscaling",
        "horizontalpodautoscalers",
        &[
            NAME,
            text("Reference", "What it scales."),
            text("Targets", "What is measured, and what it shall be."),
            text("MinPods", "No fewer than these."),
            integer("MaxPods", "No more than these."),
            integer("Replicas", "How many there are."),
            AGE,
        ],
        cells::autoscaler,
    ),
    kind(
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        WEBHOOKS,
        cells::webhooks,
    ),
    kind(
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        WEBHOOKS,
        cells::webhooks,
    ),
    kind(
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
        &[NAME, integer("Validations", "How many rules it has."), PARAM_KIND, AGE],
        |own| cells::policy(own, "/spec/validations"),
    ),
    kind(
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicies",
        &[NAME, integer("Mutations", "How many changes it makes."), PARAM_KIND, AGE],
        |own| cells::policy(own, "/spec/mutations"),
    ),
    kind(
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
        POLICY_BINDING,
        cells::policy_binding,
    ),
    kind(
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
        POLICY_BINDING,
        cells::policy_binding,
    ),
    kind(
        "apiregistration.k8s.io",
        "apiservices",
        &[NAME, text("Service", "Who serves it."), text("Available", "Whether that answers."), AGE],
        cells::api_service,
    ),
    kind(
        "flowcontrol.apiserver.k8s.io",
        "flowschemas",
        &[
            NAME,
            text("PriorityLevel", "Which level its requests are of."),
            integer("MatchingPrecedence", "Lower is asked first."),
            text("DistinguisherMethod", "What makes two flows of them."),
            AGE,
            text("MissingPL", "Whether there is no such level."),
        ],
        cells::flow_schema,
    ),
    kind(
        "flowcontrol.apiserver.k8s.io",
        "prioritylevelconfigurations",
        &[
            NAME,
            text("Type", "Whether it has limits."),
            text("NominalConcurrencyShares", "Its part of what can be done at once."),
            text("Queues", "How many queues it has."),
            text("HandSize", "How many of them a flow may use."),
            text("QueueLengthLimit", "How many requests wait in each."),
            AGE,
        ],
        cells::priority_level,
    ),
    kind(
        "resource.k8s.io",
        "resourceclaims",
        &[NAME, text("State", "Whether it has what it asks for."), AGE],
        cells::resource_claim,
    ),
    kind("resource.k8s.io", "resourceclaimtemplates", &[NAME, AGE], cells::name_and_age),
    kind("resource.k8s.io", "deviceclasses", &[NAME, AGE], cells::name_and_age),
    kind(
        "resource.k8s.io",
        "resourceslices",
        &[
            NAME,
            text("Node", "Where the devices are."),
            text("Driver", "Whose they are."),
            text("Pool", "Which pool they are part of."),
            AGE,
        ],
        cells::resource_slice,
    ),
];

#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    KINDS.iter().map(|kind| (kind.group, kind.plural))
}
