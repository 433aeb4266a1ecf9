"""A client of the cluster API that is generated from the published interface (proto/metropolis) and otherwise
knows only the specification: every flow, from the founder's key to a node that is forgotten.

    python3 client.py GENERATED ADDRESS OWNER_KEY CA

GENERATED is where protoc wrote the messages. Stubs are made here from the descriptors, as a generator for gRPC does.
TLS is gRPC's own, over OpenSSL; the server's name is the id in its certificate.
"""

import base64
import importlib
import queue
import re
import ssl
import subprocess
import sys
import tempfile

import grpc
from google.protobuf import descriptor_pb2, field_mask_pb2

GENERATED, ADDRESS, OWNER_KEY, CA = sys.argv[1:]
sys.path.insert(0, GENERATED)
LIMIT = 60

aaa = importlib.import_module("metropolis.proto.api.aaa_pb2")
management = importlib.import_module("metropolis.proto.api.management_pb2")
common = importlib.import_module("metropolis.proto.common.common_pb2")
curator = importlib.import_module("metropolis.node.core.curator.proto.api.api_pb2")


class Stub:
    """The methods of a service, as its descriptor has them."""

    def __init__(self, channel, module, service):
        file = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        (found,) = [one for one in file.service if one.name == service]
        types = module.DESCRIPTOR.services_by_name[service].methods_by_name
        for method in found.method:
            kind = {
                (False, False): channel.unary_unary,
                (False, True): channel.unary_stream,
                (True, False): channel.stream_unary,
                (True, True): channel.stream_stream,
            }[method.client_streaming, method.server_streaming]
            answer = types[method.name].output_type._concrete_class
            call = kind(
                f"/{file.package}.{service}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            setattr(self, method.name, call)


def run(*command, data=None):
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def pem(label, data):
    text = base64.encodebytes(data).decode().replace("\n", "")
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


class Key:
    """An Ed25519 key; `openssl` makes what is made of it."""

    def __init__(self, seed=None):
        if seed is None:
            self.pem = run("openssl", "genpkey", "-algorithm", "ed25519").decode()
        else:
            self.pem = pem("PRIVATE KEY", bytes.fromhex("302e020100300506032b657004220420") + seed)
        self.public = run("openssl", "pkey", "-pubout", "-outform", "DER", data=self.pem.encode())[-32:]
        self.id = "metropolis-" + self.public[:16].hex()

    def ephemeral(self):
        """A certificate that says nothing but the key."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(self.pem)
            file.flush()
            made = run("openssl", "req", "-x509", "-new", "-key", file.name, "-subj", "/", "-days", "1")
        return made.decode()


def connect(certificate=None, key=None):
    identity = dict(certificate_chain=certificate.encode(), private_key=key.pem.encode()) if certificate else {}
    credentials = grpc.ssl_channel_credentials(root_certificates=SHOWN.encode(), **identity)
    options = [("grpc.ssl_target_name_override", SERVER)]
    return grpc.secure_channel(ADDRESS, credentials, options)


def refused(code, call, *arguments):
    """The call fails with this code, and says why."""
    try:
        answer = call(*arguments, timeout=LIMIT)
        # Of a stream, the code comes with its end.
        list(answer)
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} instead of {code}: {error.details()}"
        assert error.details(), "no reason is given"
        return
    raise AssertionError(f"it was not refused with {code}")


def nodes(filter=""):
    return {node.id: node for node in OWNER.GetNodes(management.GetNodesRequest(filter=filter), timeout=LIMIT)}


class Talk:
    """A stream in both directions: one message, one answer."""

    def __init__(self, call):
        self.requests = queue.Queue()
        self.answers = call(iter(self.requests.get, None), timeout=LIMIT)

    def say(self, message):
        self.requests.put(message)
        return next(self.answers)

    def end(self):
        self.requests.put(None)
        assert not list(self.answers)


def server():
    """The certificate of the server, which the authority signed, and the id in it.

    It is pinned by itself then: with the authority among what OpenSSL trusts, it would send that along with our own
    certificate, and more than one is refused.
    """
    host, port = ADDRESS.rsplit(":", 1)
    shown = ssl.get_server_certificate((host, int(port)))
    run("openssl", "verify", "-purpose", "sslserver", "-CAfile", CA, data=shown.encode())
    subject = run("openssl", "x509", "-noout", "-subject", data=shown.encode()).decode()
    return shown, re.search(r"CN ?= ?(metropolis-[0-9a-f]{32})", subject).group(1)


def register(key, join, ticket, labels=()):
    labels = common.NodeLabels(pairs=[common.NodeLabels.Pair(key=k, value=v) for k, v in labels])
    request = curator.RegisterNodeRequest(register_ticket=ticket, join_key=join.public, labels=labels)
    return Stub(connect(key.ephemeral(), key), curator, "Curator").RegisterNode(request, timeout=LIMIT)


def commit(key, unlock):
    security = common.NODE_STORAGE_SECURITY_AUTHENTICATED_ENCRYPTED
    request = curator.CommitNodeRequest(cluster_unlock_key=unlock, storage_security=security)
    return Stub(connect(key.ephemeral(), key), curator, "Curator").CommitNode(request, timeout=LIMIT)


SHOWN, SERVER = server()
FLOWS = []


def flow(function):
    FLOWS.append(function)
    return function


@flow
def the_leader_and_the_authority_are_told_to_anybody():
    local = Stub(connect(), curator, "CuratorLocal")
    stream = local.GetCurrentLeader(curator.GetCurrentLeaderRequest())
    first = next(stream)
    assert (first.leader_node_id, first.this_node_id) == (SERVER, SERVER), first
    assert first.leader_host and first.leader_port == int(ADDRESS.rsplit(":", 1)[1]), first
    stream.cancel()
    answer = local.GetCACertificate(curator.GetCACertificateRequest(), timeout=LIMIT)
    assert pem("CERTIFICATE", answer.identity_ca_certificate).split() == open(CA).read().split()
    refused(grpc.StatusCode.UNAUTHENTICATED, Stub(connect(), management, "Management").GetNodes,
            management.GetNodesRequest())


@flow
def the_founders_key_becomes_the_owners_certificate():
    global OWNER, OWNER_CURATOR, OWNER_CERTIFICATE
    text = "".join(line for line in open(OWNER_KEY) if not line.startswith("-"))
    key = Key(base64.b64decode(text)[:32])
    parameters = aaa.EscrowRequest.Parameters(requested_identity_name="owner", public_key=key.public)
    request = aaa.EscrowRequest(parameters=parameters)
    escrow = Stub(connect(key.ephemeral(), key), aaa, "AAA").Escrow
    emitted = set()
    for _ in range(2):
        (answer,) = escrow(iter([request]), timeout=LIMIT)
        (fulfilled,) = answer.fulfilled
        assert fulfilled.kind == aaa.EscrowResponse.ProofRequest.KIND_REFRESH_CERTIFICATE and not answer.needed
        emitted.add(answer.emitted_certificate)
    assert len(emitted) == 1, "the same each time"
    OWNER_CERTIFICATE = pem("CERTIFICATE", emitted.pop())
    channel = connect(OWNER_CERTIFICATE, key)
    OWNER, OWNER_CURATOR = Stub(channel, management, "Management"), Stub(channel, curator, "Curator")
    other = Key()
    parameters.public_key = other.public
    request = aaa.EscrowRequest(parameters=parameters)
    escrow = Stub(connect(other.ephemeral(), other), aaa, "AAA").Escrow
    refused(grpc.StatusCode.PERMISSION_DENIED, escrow, iter([request]))
    parameters.requested_identity_name = "king"
    refused(grpc.StatusCode.UNIMPLEMENTED, escrow, iter([aaa.EscrowRequest(parameters=parameters)]))
    refused(grpc.StatusCode.INVALID_ARGUMENT, escrow, iter([aaa.EscrowRequest()]))


@flow
def the_ticket_and_the_information_are_the_owners():
    global TICKET
    TICKET = OWNER.GetRegisterTicket(management.GetRegisterTicketRequest(), timeout=LIMIT).ticket
    assert len(TICKET) == 34 and TICKET == OWNER.GetRegisterTicket(management.GetRegisterTicketRequest()).ticket
    info = OWNER.GetClusterInfo(management.GetClusterInfoRequest(), timeout=LIMIT)
    assert pem("CERTIFICATE", info.ca_certificate).split() == open(CA).read().split()
    assert info.cluster_configuration.cluster_domain == "python.example", info
    assert info.cluster_configuration.tpm_mode == common.ClusterConfiguration.TPM_MODE_BEST_EFFORT
    (first,) = nodes().values()
    assert (first.id, first.state) == (SERVER, common.NODE_STATE_UP), first
    assert first.roles.HasField("consensus_member") and first.roles.HasField("kubernetes_controller"), first


@flow
def a_node_registers_and_waits_for_approval():
    global NODE, JOIN
    NODE, JOIN = Key(), Key()
    answer = register(NODE, JOIN, TICKET, [("zone", "a"), ("no key!", "x")])
    assert answer.tpm_usage == common.NODE_TPM_USAGE_NOT_PRESENT, answer
    assert answer.recommended_node_storage_security == common.NODE_STORAGE_SECURITY_AUTHENTICATED_ENCRYPTED
    assert register(NODE, JOIN, TICKET, [("zone", "a")]) == answer, "asked again, it is the same"
    (new,) = nodes("node.state == NODE_STATE_NEW").values()
    assert new.id == NODE.id and new.pubkey == NODE.public and new.HasField("roles"), new
    assert [(pair.key, pair.value) for pair in new.labels.pairs] == [("zone", "a")], new
    assert new.health == management.Node.HEALTH_UNKNOWN
    refused(grpc.StatusCode.PERMISSION_DENIED, lambda timeout: register(Key(), Key(), b"x" * 34))
    refused(grpc.StatusCode.PERMISSION_DENIED, lambda timeout: commit(NODE, b"u" * 32))
    refused(grpc.StatusCode.NOT_FOUND, OWNER.ApproveNode, management.ApproveNodeRequest(pubkey=Key().public))
    for _ in range(2):
        OWNER.ApproveNode(management.ApproveNodeRequest(pubkey=NODE.public), timeout=LIMIT)
    assert nodes()[NODE.id].state == common.NODE_STATE_STANDBY


@flow
def a_node_commits_and_joins_again_after_a_reboot():
    global CERTIFICATE, ITSELF
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda timeout: commit(NODE, b"short"))
    answer = commit(NODE, b"u" * 32)
    assert pem("CERTIFICATE", answer.ca_certificate).split() == open(CA).read().split()
    CERTIFICATE = pem("CERTIFICATE", answer.node_certificate)
    assert nodes()[NODE.id].state == common.NODE_STATE_UP
    refused(grpc.StatusCode.FAILED_PRECONDITION, lambda timeout: commit(NODE, b"v" * 32))
    join = Stub(connect(JOIN.ephemeral(), JOIN), curator, "Curator").JoinNode
    for _ in range(2):
        assert join(curator.JoinNodeRequest(), timeout=LIMIT).cluster_unlock_key == b"u" * 32
    refused(grpc.StatusCode.PERMISSION_DENIED, join, curator.JoinNodeRequest(using_sealed_configuration=True))
    ITSELF = connect(CERTIFICATE, NODE)
    refused(grpc.StatusCode.PERMISSION_DENIED, Stub(ITSELF, management, "Management").ApproveNode,
            management.ApproveNodeRequest(pubkey=NODE.public))


@flow
def status_heartbeat_and_watch():
    itself = Stub(ITSELF, curator, "Curator")
    kind = curator.WatchRequest.NodesInCluster()
    watch = itself.Watch(curator.WatchRequest(nodes_in_cluster=kind), timeout=LIMIT)
    known = {}
    for event in watch:
        known.update((node.id, node) for node in event.nodes)
        if event.progress == curator.WatchEvent.PROGRESS_LAST_BACKLOGGED:
            break
    assert set(known) == {SERVER, NODE.id}, known
    status = common.NodeStatus(external_address="10.9.8.7", boot_id=b"b" * 16)
    request = curator.UpdateNodeStatusRequest(node_id=NODE.id, status=status)
    itself.UpdateNodeStatus(request, timeout=LIMIT)
    told = next(node for event in watch for node in event.nodes if node.status.external_address)
    assert told.id == NODE.id and told.status.external_address == "10.9.8.7", told
    watch.cancel()
    request.node_id = SERVER
    refused(grpc.StatusCode.PERMISSION_DENIED, itself.UpdateNodeStatus, request)
    refused(grpc.StatusCode.PERMISSION_DENIED, OWNER_CURATOR.UpdateNodeStatus, request)
    request.node_id, request.status.external_address = NODE.id, "nowhere"
    refused(grpc.StatusCode.INVALID_ARGUMENT, itself.UpdateNodeStatus, request)

    heartbeat = Talk(itself.Heartbeat)
    for _ in range(3):
        heartbeat.say(curator.HeartbeatRequest())
    assert nodes()[NODE.id].health == management.Node.HEALTH_HEALTHY
    # The three expressions of the interface's own documentation.
    assert NODE.id in nodes("node.state == NODE_STATE_UP")
    assert set(nodes("has(node.roles.kubernetes_worker)")) == set()
    heartbeat.say(curator.HeartbeatRequest())
    fresh = nodes("node.time_since_heartbeat < duration('60s')")
    assert NODE.id in fresh and fresh[NODE.id].time_since_heartbeat.seconds < 60, fresh
    heartbeat.end()
    (by_address,) = nodes('node.status.external_address=="10.9.8.7"')
    assert by_address == NODE.id
    for wrong in ["node.state ==", "nobody.state == 1", "node.id", "duration('x') < duration('1s')"]:
        refused(grpc.StatusCode.INVALID_ARGUMENT, OWNER.GetNodes, management.GetNodesRequest(filter=wrong))


@flow
def a_watch_of_one_node_waits_for_it_and_tells_when_it_is_gone():
    key = Key()
    kind = curator.WatchRequest.NodeInCluster(node_id=key.id)
    watch = OWNER_CURATOR.Watch(curator.WatchRequest(node_in_cluster=kind), timeout=LIMIT)
    register(key, Key(), TICKET)
    event = next(event for event in watch if event.nodes)
    assert event.nodes[0].id == key.id and event.nodes[0].state == common.NODE_STATE_NEW, event
    OWNER.DeleteNode(management.DeleteNodeRequest(pubkey=key.public), timeout=LIMIT)
    gone = next(event for event in watch if event.node_tombstones)
    assert gone.node_tombstones[0].node_id == key.id, gone
    watch.cancel()
    refused(grpc.StatusCode.UNIMPLEMENTED, OWNER_CURATOR.Watch, curator.WatchRequest())


@flow
def roles_are_given_and_taken():
    def update(**change):
        OWNER.UpdateNodeRoles(management.UpdateNodeRolesRequest(id=NODE.id, **change), timeout=LIMIT)

    update(kubernetes_worker=True)
    assert list(nodes("has(node.roles.kubernetes_worker)")) == [NODE.id]
    update()
    assert nodes()[NODE.id].roles.HasField("kubernetes_worker"), "unset means unchanged"
    refused(grpc.StatusCode.FAILED_PRECONDITION, OWNER.UpdateNodeRoles,
            management.UpdateNodeRolesRequest(id=NODE.id, kubernetes_controller=True))
    refused(grpc.StatusCode.FAILED_PRECONDITION, OWNER.UpdateNodeRoles,
            management.UpdateNodeRolesRequest(id=SERVER, consensus_member=False))
    refused(grpc.StatusCode.INVALID_ARGUMENT, OWNER.UpdateNodeRoles, management.UpdateNodeRolesRequest())
    members = OWNER_CURATOR.GetConsensusStatus(curator.GetConsensusStatusRequest(), timeout=LIMIT).etcd_member
    full = curator.GetConsensusStatusResponse.EtcdMember.STATUS_FULL
    assert [(member.id, member.status) for member in members] == [(SERVER, full)], members


@flow
def a_worker_gets_its_certificates():
    issue = Stub(ITSELF, curator, "Curator").IssueCertificate
    keys = [Key().public for _ in range(3)]
    worker = curator.IssueCertificateRequest.KubernetesWorker(
        kubelet_pubkey=keys[0], csi_provisioner_pubkey=keys[1], netservices_pubkey=keys[2])
    request = curator.IssueCertificateRequest(kubernetes_worker=worker)
    issued = issue(request, timeout=LIMIT).kubernetes_worker
    assert issued == issue(request, timeout=LIMIT).kubernetes_worker, "the same each time"
    shown = pem("CERTIFICATE", issued.kubelet_client_certificate)
    subject = run("openssl", "x509", "-noout", "-subject", data=shown.encode()).decode()
    assert "system:nodes" in subject and f"system:node:{NODE.id}" in subject, subject
    refused(grpc.StatusCode.PERMISSION_DENIED, OWNER_CURATOR.IssueCertificate, request)
    refused(grpc.StatusCode.INVALID_ARGUMENT, issue, curator.IssueCertificateRequest())


@flow
def networking_of_the_cluster_is_told_by_nodes():
    update = Stub(ITSELF, curator, "Curator").UpdateNodeClusterNetworking
    prefix = common.NodeClusterNetworking.Prefix
    network = common.NodeClusterNetworking(
        wireguard_pubkey=base64.b64encode(b"w" * 32).decode(), prefixes=[prefix(cidr="10.192.5.0/24")])
    update(curator.UpdateNodeClusterNetworkingRequest(clusternet=network), timeout=LIMIT)
    kind = curator.WatchRequest.NodeInCluster(node_id=NODE.id)
    watch = OWNER_CURATOR.Watch(curator.WatchRequest(node_in_cluster=kind), timeout=LIMIT)
    assert next(watch).nodes[0].clusternet == network
    watch.cancel()
    network.prefixes.append(prefix(cidr="192.0.2.0/24"))
    refused(grpc.StatusCode.INVALID_ARGUMENT, update, curator.UpdateNodeClusterNetworkingRequest(clusternet=network))


@flow
def labels_and_configuration_are_changed():
    pair = management.UpdateNodeLabelsRequest.Pair
    change = management.UpdateNodeLabelsRequest(
        id=NODE.id, upsert=[pair(key="rack", value="7"), pair(key="example.org/x", value="")], delete=["zone"])
    OWNER.UpdateNodeLabels(change, timeout=LIMIT)
    labels = {pair.key: pair.value for pair in nodes()[NODE.id].labels.pairs}
    assert labels == {"rack": "7", "example.org/x": ""}, labels
    kept = nodes('node.labels.pairs.exists(p, p.key == "rack" && p.value == "7")')
    assert list(kept) == [NODE.id]
    wrong = management.UpdateNodeLabelsRequest(id=NODE.id, upsert=[pair(key="-", value="")])
    refused(grpc.StatusCode.INVALID_ARGUMENT, OWNER.UpdateNodeLabels, wrong)

    Configuration = common.ClusterConfiguration
    labels = Configuration.Kubernetes.NodeLabelsToSynchronize
    wanted = Configuration(kubernetes=Configuration.Kubernetes(node_labels_to_synchronize=[labels(regexp="^rack$")]))
    mask = field_mask_pb2.FieldMask(paths=["kubernetes.node_labels_to_synchronize"])
    request = management.ConfigureClusterRequest(new_config=wanted, update_mask=mask)
    result = OWNER.ConfigureCluster(request, timeout=LIMIT).resulting_config
    assert result.kubernetes == wanted.kubernetes and result.cluster_domain == "python.example", result
    stale = management.ConfigureClusterRequest(
        base_config=Configuration(kubernetes=Configuration.Kubernetes()), new_config=wanted, update_mask=mask)
    refused(grpc.StatusCode.FAILED_PRECONDITION, OWNER.ConfigureCluster, stale)
    request.update_mask.paths[:] = ["tpm_mode"]
    refused(grpc.StatusCode.INVALID_ARGUMENT, OWNER.ConfigureCluster, request)


@flow
def a_node_is_decommissioned_and_forgotten():
    decommission = management.DecommissionNodeRequest(id=NODE.id)
    delete = management.DeleteNodeRequest(id=NODE.id)
    refused(grpc.StatusCode.FAILED_PRECONDITION, OWNER.DecommissionNode, decommission)
    refused(grpc.StatusCode.FAILED_PRECONDITION, OWNER.DeleteNode, delete)
    roles = management.UpdateNodeRolesRequest(id=NODE.id, kubernetes_worker=False)
    OWNER.UpdateNodeRoles(roles, timeout=LIMIT)
    refused(grpc.StatusCode.FAILED_PRECONDITION, OWNER.DeleteNode, delete)
    for _ in range(2):
        OWNER.DecommissionNode(decommission, timeout=LIMIT)
    assert nodes()[NODE.id].state == common.NODE_STATE_DECOMMISSIONED
    itself = Stub(ITSELF, curator, "Curator")
    kind = curator.WatchRequest.NodeInCluster(node_id=NODE.id)
    watch = itself.Watch(curator.WatchRequest(node_in_cluster=kind), timeout=LIMIT)
    assert next(watch).nodes[0].state == common.NODE_STATE_DECOMMISSIONED, "it sees what became of it"
    watch.cancel()
    refused(grpc.StatusCode.UNAUTHENTICATED, Stub(ITSELF, management, "Management").GetNodes,
            management.GetNodesRequest())
    OWNER.DeleteNode(delete, timeout=LIMIT)
    assert list(nodes()) == [SERVER]
    refused(grpc.StatusCode.NOT_FOUND, OWNER.DeleteNode, delete)
    request = curator.UpdateNodeStatusRequest(node_id=NODE.id, status=common.NodeStatus(external_address="10.9.8.7"))
    refused(grpc.StatusCode.UNAUTHENTICATED, itself.UpdateNodeStatus, request)
    joined = Stub(connect(JOIN.ephemeral(), JOIN), curator, "Curator").JoinNode
    refused(grpc.StatusCode.NOT_FOUND, joined, curator.JoinNodeRequest())
    bypass = management.DeleteNodeRequest(
        id=SERVER,
        safety_bypass_has_roles=management.DeleteNodeRequest.SafetyBypassHasRoles(),
        safety_bypass_not_decommissioned=management.DeleteNodeRequest.SafetyBypassNotDecommissioned())
    refused(grpc.StatusCode.FAILED_PRECONDITION, OWNER.DeleteNode, bypass)


for step in FLOWS:
    try:
        step()
    except Exception:
        print(f"failed: {step.__name__}", flush=True)
        raise
    print(f"ok: {step.__name__}", flush=True)
