"""The Python client of Kubernetes against `orlop apiserver`: run by tests/kube_python.rs, with KUBECONFIG set.

Each function is a test; what fails is raised. Nothing here waits but for what the server tells.
"""

import base64
import datetime

from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException

SPACE = "python"


def refused(code, reason, call, *args, **more):
    """The call is refused with this code and reason; returns what was said."""
    try:
        call(*args, **more)
    except ApiException as error:
        body = client.ApiClient().deserialize(Body(error.body), "V1Status")
        assert (error.status, body.reason) == (code, reason), (error.status, error.body)
        return body
    raise AssertionError(f"{call.__name__}{args} was not refused")


class Body:
    def __init__(self, data):
        self.data = data


def config_map(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"app": "x"}), data=data)


def version_and_discovery(core):
    version = client.VersionApi().get_code()
    assert (version.major, version.minor) == ("1", "36"), version
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    assert {"apps", "batch", "coordination.k8s.io"} <= groups, groups
    kinds = {resource.kind for resource in core.get_api_resources().resources}
    assert {"Pod", "Namespace", "ConfigMap"} <= kinds, kinds


def objects_are_made_read_changed_and_deleted(core):
    made = core.create_namespaced_config_map(SPACE, config_map("a", k="v"))
    assert made.metadata.uid and made.metadata.creation_timestamp
    again = refused(409, "AlreadyExists", core.create_namespaced_config_map, SPACE, config_map("a"))
    assert again.message == 'configmaps "a" already exists', again

    # A dictionary is a strategic patch, a list one of RFC 6902.
    patched = core.patch_namespaced_config_map("a", SPACE, {"data": {"k": None, "l": "w"}})
    assert patched.data == {"l": "w"}, patched
    steps = [{"op": "replace", "path": "/data/l", "value": "x"}]
    patched = core.patch_namespaced_config_map("a", SPACE, steps)
    assert patched.data == {"l": "x"}, patched

    made.data = {"stale": "yes"}
    conflict = refused(409, "Conflict", core.replace_namespaced_config_map, "a", SPACE, made)
    assert "the object has been modified" in conflict.message, conflict
    patched.data = {"fresh": "yes"}
    assert core.replace_namespaced_config_map("a", SPACE, patched).data == {"fresh": "yes"}

    dry = core.create_namespaced_config_map(SPACE, config_map("dry"), dry_run="All")
    assert dry.metadata.name == "dry"
    refused(404, "NotFound", core.read_namespaced_config_map, "dry", SPACE)
    core.delete_namespaced_config_map("a", SPACE)
    missing = refused(404, "NotFound", core.read_namespaced_config_map, "a", SPACE)
    assert missing.message == 'configmaps "a" not found', missing


def lists_are_paged_and_selected(core):
    for number in range(7):
        core.create_namespaced_config_map(SPACE, config_map(f"page-{number}", n=str(number)))
    names, token = [], None
    while True:
        page = core.list_namespaced_config_map(SPACE, limit=3, _continue=token, label_selector="app=x")
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert names == [f"page-{number}" for number in range(7)], names
    one = core.list_namespaced_config_map(SPACE, field_selector="metadata.name=page-3").items
    assert [item.data for item in one] == [{"n": "3"}], one
    assert core.list_namespaced_config_map(SPACE, label_selector="app!=x,!app").items is not None
    refused(400, "BadRequest", core.list_namespaced_config_map, SPACE, field_selector="spec.foo=x")
    core.delete_collection_namespaced_config_map(SPACE, label_selector="app=x")
    assert not core.list_namespaced_config_map(SPACE, label_selector="app=x").items


def a_watch_tells_every_change_in_order(core):
    seen = core.list_namespaced_secret(SPACE).metadata.resource_version
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"k": "v"})
    made = core.create_namespaced_secret(SPACE, secret)
    assert base64.b64decode(made.data["k"]) == b"v" and made.type == "Opaque", made
    core.patch_namespaced_secret("s", SPACE, {"metadata": {"labels": {"a": "b"}}})
    core.delete_namespaced_secret("s", SPACE)
    told = []
    stream = watch.Watch()
    for event in stream.stream(
        core.list_namespaced_secret, SPACE, resource_version=seen, timeout_seconds=60
    ):
        told.append((event["type"], event["object"].metadata.labels))
        if event["type"] == "DELETED":
            stream.stop()
    assert told == [("ADDED", None), ("MODIFIED", {"a": "b"}), ("DELETED", {"a": "b"})], told


def typed_objects_get_their_defaults(_core):
    apps = client.AppsV1Api()
    pod = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "w"}),
        spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="i:1")]),
    )
    spec = client.V1DeploymentSpec(selector=client.V1LabelSelector(match_labels={"app": "w"}), template=pod)
    wanted = client.V1Deployment(metadata=client.V1ObjectMeta(name="w"), spec=spec)
    made = apps.create_namespaced_deployment(SPACE, wanted)
    assert (made.spec.replicas, made.spec.strategy.type) == (1, "RollingUpdate"), made.spec
    container = made.spec.template.spec.containers[0]
    assert container.image_pull_policy == "IfNotPresent", container
    scale = apps.patch_namespaced_deployment_scale("w", SPACE, {"spec": {"replicas": 3}})
    assert (scale.kind, scale.api_version, scale.spec.replicas) == ("Scale", "autoscaling/v1", 3), scale
    # By name, containers are merged.
    more = {"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "j:2"}]}}}}
    merged = apps.patch_namespaced_deployment("w", SPACE, more)
    names = {container.name for container in merged.spec.template.spec.containers}
    assert names == {"c", "d"} and merged.spec.replicas == 3, merged.spec
    wanted.metadata.name = "Not A Name"
    invalid = refused(422, "Invalid", apps.create_namespaced_deployment, SPACE, wanted)
    assert any(cause.field == "metadata.name" for cause in invalid.details.causes), invalid
    apps.delete_namespaced_deployment("w", SPACE)


def a_lease_is_held_by_one(_core):
    leases = client.CoordinationV1Api()
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
    spec = client.V1LeaseSpec(holder_identity="a", lease_duration_seconds=15, renew_time=now)
    made = leases.create_namespaced_lease(
        SPACE, client.V1Lease(metadata=client.V1ObjectMeta(name="l"), spec=spec)
    )
    assert made.spec.renew_time == now, made.spec
    first, second = (leases.read_namespaced_lease("l", SPACE) for _ in range(2))
    first.spec.holder_identity, second.spec.holder_identity = "b", "c"
    leases.replace_namespaced_lease("l", SPACE, first)
    refused(409, "Conflict", leases.replace_namespaced_lease, "l", SPACE, second)
    assert leases.read_namespaced_lease("l", SPACE).spec.holder_identity == "b"


def reviews_are_answered(_core):
    attributes = client.V1ResourceAttributes(verb="delete", resource="nodes")
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
    )
    answer = client.AuthorizationV1Api().create_self_subject_access_review(review)
    assert answer.status.allowed, answer


def kinds_are_found_without_being_known(_core):
    found = dynamic.DynamicClient(client.ApiClient())
    maps = found.resources.get(api_version="v1", kind="ConfigMap")
    body = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "dyn"}, "data": {"a": "b"}}
    assert maps.create(body=body, namespace=SPACE).data.a == "b"
    merged = {"metadata": {"name": "dyn"}, "data": {"a": None, "c": "d"}}
    content = "application/merge-patch+json"
    changed = maps.patch(body=merged, namespace=SPACE, content_type=content).to_dict()
    assert changed["data"] == {"c": "d"}, changed
    maps.delete(name="dyn", namespace=SPACE)


def main():
    config.load_kube_config()
    core = client.CoreV1Api()
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=SPACE)))
    for test in (
        version_and_discovery,
        objects_are_made_read_changed_and_deleted,
        lists_are_paged_and_selected,
        a_watch_tells_every_change_in_order,
        typed_objects_get_their_defaults,
        a_lease_is_held_by_one,
        reviews_are_answered,
        kinds_are_found_without_being_known,
    ):
        test(core)
        print(f"ok: {test.__name__}", flush=True)


if __name__ == "__main__":
    main()
