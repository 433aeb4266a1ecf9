//! One function for each format of bytes that come from outside: it must take anything and return.
//!
//! Compiled twice: into the libFuzzer targets (`fuzz_targets/`, `make fuzz` with a nightly compiler)
//! and into `tests/fuzz.rs`, which needs none.

use orlop_netlink::datagram::{self, UdpChecksum};
use orlop_networkd::wire::Reply;
use orlop_udevd::modules::{self, Modules};
use orlop_udevd::policy::Decision;
use orlop_udevd::sysfs::{Device, Mounted};
use orlop_udevd::uevent::Uevent;
use orlop_udevd::{partitions, probe, rules};

/// A format: its name, its function, and bytes that are close to sound to start from.
pub type Target = (&'static str, fn(&[u8]), &'static [&'static [u8]]);

/// All of them.
pub static TARGETS: &[Target] = &[
    ("kernel_arguments", kernel_arguments, &[ARGUMENTS, STATIC_ADDRESS]),
    (
        "machine_configuration",
        machine_configuration,
        &[MACHINE, MORE, b"---\nkind: X\nversion: v1\nspec: {}\n"],
    ),
    ("packed_configuration", packed_configuration, &[GZIP, b"machine: {}\n"]),
    (
        "network_section",
        network_section,
        &[b"interfaces: [{interface: eth0, mtu: 1500, dhcp: true}]\n", LINKS],
    ),
    ("device_selector", device_selector, &[b"0000:00:1f.*\x000000:00:1f.6", b"*a?*b\0xaxxb"]),
    ("client_configuration", client_configuration, &[CLIENT]),
    ("pem_certificates", pem_certificates, &[CERTIFICATE]),
    ("pem_private_key", pem_private_key, &[KEY]),
    ("certificate_request", certificate_request, &[REQUEST]),
    ("owner_files", owner_files, &[KEY, OWNER_KEY, CERTIFICATE]),
    ("udp_in_a_packet", udp_in_a_packet, &[PACKET]),
    ("dhcp_reply", dhcp_reply, &[&DHCP_ACK]),
    ("arp_message", arp_message, &[ARP]),
    ("router_advertisement", router_advertisement, &[ROUTER]),
    ("dhcp6_answer", dhcp6_answer, &[DHCP6]),
    ("dns_message", dns_message, &[DNS_QUESTION, DNS_ANSWER]),
    ("volume_label", volume_label, &[&ISO]),
    ("meta", meta, &[META]),
    ("node_parameters", node_parameters, &[PARAMETERS]),
    ("cel_filter", cel_filter, &[CEL, CEL_MACROS]),
    ("cluster_certificate", cluster_certificate, &[CERTIFICATE]),
    ("cluster_escrow", cluster_escrow, &[ESCROW, OWNER]),
    ("cluster_state", cluster_state, &[CLUSTER_NODE, OWNER, b"\x03operator"]),
    ("socket_table", socket_table, &[SOCKET]),
    ("pod_log", pod_log, &[POD_LOG]),
    ("uevent", uevent, &[UEVENT]),
    ("acpi_event", acpi_event, &[&POWER_BUTTON]),
    ("superblock", superblock, &[&ISO, &DISK]),
    ("udev_rules", udev_rules, &[RULES]),
    ("module_alias", module_alias, &[b"pci:v*d[0-9a-f]*sv?\npci:v00001AF4d1sv0"]),
    ("grpc_path", grpc_path, &[b"/machine.MachineService/Memory"]),
    ("etcd_snapshot", etcd_snapshot, &[SNAPSHOT]),
    ("kube_json", kube_json, &[POD]),
    ("kube_yaml", kube_yaml, &[b"a: &a {b: 1}\nc:\n- <<: *a\n  d: 'x'\n", POD]),
    (
        "kube_media",
        kube_media,
        &[b"application/json;as=Table;v=v1;g=meta.k8s.io, application/*;q=0.5, */*;q=0", GZIP],
    ),
    ("kube_protobuf", kube_protobuf, &[KUBE_POD]),
    ("audit_policy", audit_policy, &[AUDIT_POLICY]),
    ("trench_configuration", trench_configuration, &[TRENCH, TRENCH_MAP]),
    ("kube_selectors", kube_selectors, &[b"app in (a,b),!x,n>3", b"metadata.name=a\\,b"]),
    ("kube_quantity", kube_quantity, &[b"1.5Gi", b"-100m", b"12e-6"]),
    ("kube_strategies", kube_strategies, &[STRATEGY_POD, STRATEGY_DEPLOYMENT, STRATEGY_SERVICE]),
    ("strategic_patch", strategic_patch, &[PATCH]),
    ("kube_static_tokens", kube_static_tokens, &[b"abc,anna,1,\"a,b\"\r\ndef,eve,2\n"]),
    ("kube_signed_token", kube_signed_token, &[SIGNED_TOKEN]),
    ("store_snapshot", store_snapshot, &[STORE_SNAPSHOT]),
    ("handed_over", handed_over, &[HANDED_OVER]),
    ("ntp_answer", ntp_answer, &[NTP_ANSWER]),
    ("nts_key_exchange", nts_key_exchange, &[NTS_KEYS]),
    ("nts_answer", nts_answer, &[NTS_FIELDS]),
    ("answer_to_merge", answer_to_merge, &[b"\x0a\x04\x12\x02ok"]),
    ("framed_messages", framed_messages, &[b"\0\0\0\0\x02ok\x01\0\0\0\0"]),
    (
        "call_targets",
        call_targets,
        &[b"nodes=10.0.0.2\nnodes=[fd00::2]\nnode=worker-1\nproxyfrom="],
    ),
    (
        "frame_heads",
        frame_heads,
        &[b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0\0\0\x01\0\x01\0\0\0\x01x"],
    ),
];

fn pods() -> orlop_apiserver::schema::TypeId {
    orlop_apiserver::schema::SCHEMA.find("core/v1", "Pod").unwrap()
}

pub fn kube_json(bytes: &[u8]) {
    use orlop_apiserver::{json, protobuf};
    let Ok(body) = json::read(bytes, pods()) else { return };
    let again = serde_json::to_vec(&body.object).unwrap();
    let again = json::read(&again, pods()).unwrap();
    assert_eq!((again.object, again.findings.len()), (body.object.clone(), 0));
    let written = protobuf::encode(&body.object, pods());
    protobuf::decode(&written, pods()).unwrap();
}

pub fn kube_yaml(bytes: &[u8]) {
    use orlop_apiserver::yaml;
    let Ok(body) = yaml::parse(bytes) else { return };
    let written = yaml::write(&body.object.clone().into());
    assert_eq!(yaml::parse(written.as_bytes()).unwrap().object, body.object, "{written}");
}

/// What is said about bodies, and bodies in gzip.
pub fn kube_media(bytes: &[u8]) {
    use orlop_apiserver::encoding::{self, Offers, Patch};
    if let Ok(body) = encoding::unpacked(Some("gzip"), bytes.to_vec(), 4096) {
        assert!(body.len() <= 4096, "no more than allowed");
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    for flags in 0..16_u8 {
        let is = |bit: u8| flags >> bit & 1 == 1;
        let offers = Offers { protobuf: is(0), views: is(1), discovery: is(2), watch: is(3) };
        if let Ok(media) = encoding::negotiate(&[text], offers) {
            // What is answered can be asked for.
            assert!(encoding::negotiate(&[&media.content_type()], offers).is_ok(), "{text}");
        }
    }
    drop((encoding::body(Some(text)), encoding::patch(Some(text), &Patch::ALL)));
    let _ = encoding::takes_gzip(&[text]);
}

pub fn kube_protobuf(bytes: &[u8]) {
    use orlop_apiserver::protobuf;
    let Ok(envelope) = protobuf::open(bytes) else { return };
    let Ok(object) = protobuf::decode(envelope.raw, pods()) else { return };
    let written = protobuf::encode(&object, pods());
    let again = protobuf::decode(&written, pods()).unwrap();
    assert_eq!(protobuf::encode(&again, pods()), written, "it settles");
}

const AUDIT_POLICY: &[u8] = b"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: [a], verbs: [get], nonResourceURLs: [/api*, /version]}
- {level: RequestResponse, namespaces: [b], resources: [{group: '', resources: [pods/log, '*/scale'], resourceNames: [x]}]}
";

pub fn audit_policy(bytes: &[u8]) {
    use orlop_apiserver::audit::Policy;
    use orlop_apiserver::authz::Action;
    use orlop_apiserver::object::User;
    use orlop_apiserver::request::info;
    let Ok(text) = str::from_utf8(bytes) else { return };
    let policy = match Policy::parse("policy", text) {
        Ok(policy) => policy,
        Err(problems) => return assert!(!problems.list.is_empty()),
    };
    let user = User { name: "a".into(), ..User::default() };
    for path in ["/apis", "/api/v1/namespaces/b/pods/x/log", "/api/v1/nodes"] {
        let _ = policy.verdict(&Action::of(&user, &info("GET", path, &[]), path));
    }
}

const TRENCH: &[u8] = b"trench: {name: t}
vips: {items: [{name: v, address: 20.0.0.1/32}]}
conduits: {items: [{name: c, destination-port-nats: [{port: 80, target-port: 8080, vips: [v], protocol: tcp}]}]}
streams: {items: [{name: s, conduit: c, max-targets: 2}]}
flows: {items: [{name: f, stream: s, vips: [v], destination-port-ranges: [any], byte-matches: ['tcp[4:2]&0xff=0x10']}]}
";
const TRENCH_MAP: &[u8] =
    b"kind: ConfigMap\ndata: {trench: 'name: t', gateways: 'items: [{name: g, bfd: true, bgp-auth: {key: k}}]'}\n";

pub fn trench_configuration(bytes: &[u8]) {
    use orlop_nsp::configuration::{Loaded, config_map, inline, is_config_map};
    let text = &String::from_utf8_lossy(bytes);
    let read = if is_config_map(text) { config_map("x", text) } else { inline("x", text) };
    match read {
        Err(problems) => assert!(!problems.to_string().is_empty(), "refused without a word"),
        Ok(Loaded { configuration, .. }) => {
            for stream in configuration.flows.iter().filter_map(|flow| flow.stream.as_ref()) {
                assert!(
                    configuration.streams.contains(stream),
                    "a flow of a stream that is not there"
                );
                assert!(stream.max_targets > 0 && stream.conduit.is_some());
            }
        }
    }
}

pub fn kube_selectors(bytes: &[u8]) {
    use orlop_apiserver::selector::{Fields, Labels};
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(labels) = Labels::parse(text) {
        assert_eq!(Labels::parse(&labels.to_string()).as_ref(), Ok(&labels), "{text}");
        labels.fit(|_| Some("a"));
    }
    if let Ok(fields) = Fields::parse(text, |path| path == "metadata.name") {
        fields.fit(|_| None);
    }
}

pub fn kube_quantity(bytes: &[u8]) {
    use orlop_apiserver::quantity::Quantity;
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(amount) = Quantity::parse(text) else { return };
    let written = amount.to_string();
    let again = Quantity::parse(&written).unwrap();
    assert_eq!((again, again.to_string()), (amount, written), "{text}");
    assert!(amount.as_units() <= amount.as_millis() || amount.is_negative(), "{text}");
    assert!(amount.plus(again).minus(again) <= amount || amount.is_negative(), "{text}");
}

pub fn kube_static_tokens(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(tokens) = orlop_apiserver::authn::tokens::Tokens::parse(text) {
        assert!(tokens.find("").is_none(), "nothing at all is no token");
    }
}

pub fn kube_signed_token(bytes: &[u8]) {
    use orlop_apiserver::authn::jwt::Token;
    use orlop_pki::signature::VerifyingKey;
    use std::sync::LazyLock;
    static KEYS: LazyLock<Vec<VerifyingKey>> =
        LazyLock::new(|| VerifyingKey::from_pem(SIGNING_KEY).unwrap());
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Some(token) = Token::parse(text) else { return };
    // Another signature of the same is possible only with the key, which nobody has.
    if token.claims(&KEYS).is_some() {
        let signed = |text: &[u8]| text.rsplitn(2, |byte| *byte == b'.').last().unwrap().to_vec();
        assert_eq!(signed(bytes), signed(SIGNED_TOKEN));
    }
}

/// A byte that names a resource, and an object of it.
pub fn kube_strategies(bytes: &[u8]) {
    use orlop_apiserver::object::{Object, User};
    use orlop_apiserver::resources::RESOURCES;
    use orlop_apiserver::{json, strategy};
    let Some((which, body)) = bytes.split_first() else { return };
    let resource = &RESOURCES[usize::from(*which) % RESOURCES.len()];
    let Ok(body) = json::read(body, resource.schema) else { return };
    let mut object = body.object;
    strategy::default(resource, &mut object);
    let once = object.clone();
    strategy::default(resource, &mut object);
    assert_eq!(object, once, "twice is once");
    strategy::prepare_create(resource, &mut object, &User::apiserver());
    drop(strategy::validate_create(resource, &object));
    let now = time::OffsetDateTime::UNIX_EPOCH;
    for sub in ["", "status", "approval", "finalize", "ephemeralcontainers", "resize"] {
        for old in [&once, &Object::new()] {
            let mut new = once.clone();
            strategy::prepare_update(resource, sub, &mut new, old, now);
            drop(strategy::validate_update(resource, sub, &new, old));
        }
    }
    drop(strategy::deletion(resource, &once, &strategy::DeleteOptions::default(), now));
}

pub fn strategic_patch(bytes: &[u8]) {
    let Ok(serde_json::Value::Object(patch)) = serde_json::from_slice(bytes) else { return };
    let Ok(serde_json::Value::Object(mut pod)) = serde_json::from_slice(POD) else { return };
    // Whatever it is, it is applied or refused.
    drop(orlop_apiserver::strategic::apply(&mut pod, &patch, pods()));
}

/// RFC 7515 appendix A.3, and its key.
const SIGNED_TOKEN: &[u8] = b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
    cGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU\
    1Q";
const SIGNING_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7
6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
";
const POD: &[u8] = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","labels":{"x":"y"},"finalizers":["f"]},
    "spec":{"containers":[{"name":"a","image":"i","ports":[{"containerPort":80}],"env":[{"name":"E"}]}]}}"#;
const STRATEGY_POD: &[u8] = br#"L{"metadata":{"name":"a","deletionTimestamp":"2026-01-01T00:00:00Z"},"spec":{"volumes":
    [{"name":"v","secret":{"secretName":"s"}}],"containers":[{"name":"a","image":"i","env":[{"name":"E"}],"resources":
    {"limits":{"cpu":"1"}},"livenessProbe":{"httpGet":{"port":"http"}},"volumeMounts":[{"name":"v"}]}]}}"#;
const STRATEGY_DEPLOYMENT: &[u8] = br#"[{"metadata":{"name":"a","labels":{"a":"b"}},"spec":{"replicas":1,"selector":
    {"matchLabels":{"a":"b"}},"strategy":{"rollingUpdate":{"maxSurge":"25%"}},"template":{"metadata":{"labels":{"a":"b"}}}}}"#;
const STRATEGY_SERVICE: &[u8] =
    br#"R{"spec":{"type":"NodePort","clusterIP":"10.0.0.1","ports":[{"port":80,"nodePort":30001,
    "targetPort":"http"}],"externalIPs":["1.2.3.4"],"selector":{"a":"b"}}}"#;
const PATCH: &[u8] = br#"{"metadata":{"labels":{"x":null},"$deleteFromPrimitiveList/finalizers":["f"]},"spec":
    {"$setElementOrder/containers":[{"name":"a"},{"name":"b"}],"containers":[{"name":"b","$patch":"delete"},{"name":"a"}]}}"#;
/// A pod of one name in its envelope.
const KUBE_POD: &[u8] = b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x05\x0a\x03\x0a\x01a\x1a\0\"\0";

pub fn store_snapshot(bytes: &[u8]) {
    let Ok(snapshot) = orlop_store::snapshot::parse(bytes) else { return };
    let newest = snapshot.entries.iter().map(|entry| entry.modified).max();
    assert!(newest <= Some(snapshot.revision), "an entry of the future");
}

/// Of one key, without the sum behind it.
const STORE_SNAPSHOT: &[u8] = b"ORLOPKV1\x07\0\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
    \x02\0\0\0\0\0\0\0\x01\0\0\0a\x05\0\0\0value\0";

pub fn nts_key_exchange(bytes: &[u8]) {
    use orlop_timed::nts::records::{LONGEST_COOKIE, response};
    let Ok(Some(agreed)) = response(bytes) else { return };
    assert!(!agreed.cookies.is_empty());
    assert!(agreed.cookies.iter().all(|cookie| (1..=LONGEST_COOKIE).contains(&cookie.len())));
    // A prefix of what is complete is not.
    assert!(!matches!(response(&bytes[..bytes.len() - 1]), Ok(Some(_))));
}

/// Extension fields that a server sends, in the open and encrypted.
pub fn nts_answer(bytes: &[u8]) {
    use orlop_timed::nts::packet::{Association, COOKIES, Chance, Keys, UNIQUE, seal};
    use orlop_timed::wire::{Header, Mode, Timestamp, push_field};
    let chance = Chance { origin: Timestamp(7), unique: [7; 32], nonce: [7; 16] };
    let mut association = Association::new(Keys::new([1; 32], [2; 32]), vec![vec![3; 64]]);
    assert!(association.question(&chance).is_some());
    let header = Header {
        mode: Mode::Server,
        stratum: 1,
        origin: chance.origin,
        ..Header::question(Timestamp(9))
    };
    let mut open = header.encode().to_vec();
    push_field(&mut open, UNIQUE, &chance.unique);
    let mut sealed = open.clone();
    open.extend_from_slice(bytes);
    assert!(association.open(&open, &chance).is_err(), "nobody can prove anything without keys");
    if seal(&[2; 32], &[9; 16], &mut sealed, bytes).is_some() {
        let _ = association.open(&sealed, &chance);
    }
    assert!(association.cookies() <= COOKIES);
}

pub fn ntp_answer(bytes: &[u8]) {
    use orlop_timed::exchange;
    use orlop_timed::wire::{Packet, Timestamp};
    let Ok(packet) = Packet::decode(bytes) else { return };
    assert_eq!(packet.encode(), bytes, "what is written reads differently");
    let departed = packet.header.receive;
    let arrived = Timestamp(departed.0.wrapping_add(1 << 24));
    if let Ok(sample) = exchange::judge(bytes, packet.header.origin, departed, arrived) {
        assert!(sample.offset.is_finite() && sample.delay > 0.0, "{sample:?}");
        assert!((1..16).contains(&sample.stratum), "{sample:?}");
    }
}

pub fn kernel_arguments(bytes: &[u8]) {
    let line = orlop_config::cmdline::parse(&String::from_utf8_lossy(bytes));
    let problems = line.problems();
    assert!(problems.iter().all(|problem| !problem.reason.is_empty()), "refused without a word");
    let _ = orlop_networkd::settings::from_kernel(&line);
}

pub fn machine_configuration(bytes: &[u8]) {
    use orlop_config::machine::parse;
    match parse("machine.yaml", &String::from_utf8_lossy(bytes)) {
        Err(problems) => assert!(!problems.to_string().is_empty(), "refused without a word"),
        Ok(config) => {
            assert_eq!(config.diff(&config), "", "differs from itself");
            let again = parse("written.yaml", &config.to_yaml());
            assert!(again.is_ok_and(|again| again == config), "what is written reads differently");
        }
    }
}

pub fn packed_configuration(bytes: &[u8]) {
    use orlop_config::machine::{UNPACKED_LIMIT, unpack};
    if let Ok(unpacked) = unpack(bytes) {
        assert!(unpacked.len() <= UNPACKED_LIMIT, "more than any configuration has");
    }
}

pub fn network_section(bytes: &[u8]) {
    use orlop_config::machine::Network;
    if let Ok(network) = Network::parse(&String::from_utf8_lossy(bytes)) {
        let again = Network::parse(&network.to_yaml());
        assert!(again.is_ok_and(|again| again == network), "what is written reads differently");
        let mut settings = orlop_networkd::settings::from_kernel(&orlop_config::cmdline::parse(""));
        orlop_networkd::settings::add_config(&mut settings, network);
    }
}

/// A pattern and a text; whatever is, is itself.
pub fn device_selector(bytes: &[u8]) {
    use orlop_networkd::selectors::glob;
    // What names devices is short.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
    let (pattern, text) = text.split_once('\0').unwrap_or((&text, ""));
    let _ = glob(pattern, text);
    assert!(glob(text, text) && glob("*", text), "it does not fit itself");
}

pub fn etcd_snapshot(bytes: &[u8]) {
    use orlop_machined::etcd::snapshot::Check;
    let judged = |piece: usize| {
        let mut check = Check::new();
        bytes.chunks(piece).try_for_each(|piece| check.push(piece))?;
        check.finish()
    };
    assert_eq!(judged(bytes.len().max(1)).ok(), judged(7).ok(), "pieces matter");
}

/// Names and contents of files in turn, a line each.
const HANDED_OVER: &[u8] = b"manifest.json\n{\"ca.crt\":\"00\",\"ca.key\":\"00\"}\nca.crt\nx\n";

pub fn handed_over(bytes: &[u8]) {
    use orlop_machined::handover::{Arrival, assemble};
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let pairs = lines.chunks_exact(2);
    let files = pairs.map(|pair| (String::from_utf8_lossy(pair[0]).into(), pair[1].to_vec()));
    match assemble(&files.collect()) {
        Arrival::Partial(why) | Arrival::Unusable(why) => assert!(!why.is_empty()),
        Arrival::Whole(pki) => {
            let files = pki.files().into_iter();
            let files = files.map(|(name, text)| (name.to_owned(), text.expose().into()));
            assert_eq!(assemble(&files.collect()), Arrival::Whole(pki.clone()));
        }
    }
}

pub fn client_configuration(bytes: &[u8]) {
    if let Ok(configuration) =
        orlop_config::client::parse("talosconfig", &String::from_utf8_lossy(bytes))
    {
        let again = orlop_config::client::parse("talosconfig", &configuration.to_yaml());
        assert!(
            again.is_ok_and(|again| again == configuration),
            "what is written reads differently"
        );
    }
}

pub fn pem_certificates(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = orlop_pki::encoding::certificates(&text);
    let _ = orlop_pki::certificate::validity(&text);
    let _ = orlop_pki::certificate::fingerprint(&text);
    let _ = orlop_pki::certificate::organizations(bytes);
}

pub fn pem_private_key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = orlop_pki::encoding::private_key(&text);
    let _ = orlop_pki::Authority::from_pem(&text, &text);
    let _ = orlop_pki::signature::VerifyingKey::from_pem(&text);
}

pub fn owner_files(bytes: &[u8]) {
    use orlop_pki::cluster::{RawKey, Shown, authority_key};

    let text = String::from_utf8_lossy(bytes);
    if let Ok(key) = RawKey::from_pem(&text) {
        let again = key.to_raw_pem("METROPOLIS INITIAL OWNER PRIVATE KEY");
        assert_eq!(RawKey::from_pem(again.expose()).unwrap(), key);
        assert_eq!(RawKey::from_pem(key.to_plain_pem().expose()).unwrap(), key);
    }
    let certificates = orlop_pki::encoding::certificates(&text).unwrap_or_default();
    for der in certificates.iter().map(AsRef::as_ref).chain([bytes]) {
        let shown = Shown::read(der);
        if let Ok(key) = authority_key(der) {
            assert_eq!(shown.unwrap().public_key, Some(key), "an authority's is a certificate");
        }
    }
}

pub fn certificate_request(bytes: &[u8]) {
    if let Ok(request) = orlop_pki::Request::from_pem(bytes) {
        assert!(!request.common_name.contains(char::is_control), "a line of text no more");
    }
}

pub fn udp_in_a_packet(bytes: &[u8]) {
    for checksum in [UdpChecksum::Verify, UdpChecksum::NotReady] {
        let _ = datagram::parse(bytes, checksum);
    }
}

pub fn dhcp_reply(bytes: &[u8]) {
    let _ = Reply::decode(bytes);
}

pub fn arp_message(bytes: &[u8]) {
    if let Some(message) = orlop_netlink::Arp::decode(bytes) {
        assert_eq!(
            Some(&message.encode()[..]),
            bytes.get(..28),
            "what is written reads differently"
        );
    }
}

pub fn router_advertisement(bytes: &[u8]) {
    use orlop_networkd::advertisement::{Advertisement, Learned};
    if let Some(advertisement) = Advertisement::decode(bytes) {
        let mut learned = Learned::default();
        learned.take(std::time::Duration::ZERO, &advertisement);
        assert!(learned.resolvers().count() <= 8 && learned.search().count() <= 8);
    }
}

pub fn dhcp6_answer(bytes: &[u8]) {
    let _ = orlop_networkd::wire6::Answer::decode(bytes, orlop_netlink::Mac([2, 0, 0, 0, 0, 1]));
}

/// What clients ask and what servers answer, in whatever order they come: nobody is left without an answer.
pub fn dns_message(bytes: &[u8]) {
    use orlop_networkd::resolver::Server;
    use orlop_networkd::resolver::machine::{Action, Event, Known, Resolver};
    use orlop_networkd::resolver::message::{Hosts, Way};
    use std::time::Duration;
    let mut resolver = Resolver::default();
    let mut now = Duration::from_secs(1);
    let mut random = || 1;
    let servers = vec![Server::plain(([192, 0, 2, 1], 53).into())];
    resolver.handle(now, &mut random, Event::Known(&Known { servers, hosts: Hosts::default() }));
    let (mut waiting, mut attempts) = (Vec::new(), Vec::new());
    let take = |actions: Vec<Action>, attempts: &mut Vec<u64>, waiting: &mut Vec<u64>| {
        for action in actions {
            match action {
                Action::Reply { client, message } => {
                    assert!(!message.is_empty() && message.len() <= 65535);
                    waiting.retain(|it| *it != client);
                }
                Action::Ignore(client) => waiting.retain(|it| *it != client),
                Action::Ask { attempt, .. } => attempts.push(attempt),
                Action::Forget(attempt) => attempts.retain(|it| *it != attempt),
            }
        }
    };
    let halves = bytes.split_at(bytes.len() / 2);
    for (client, message) in [(1, bytes), (2, halves.0), (3, DNS_QUESTION)] {
        waiting.push(client);
        let asked = Event::Asked { client, way: Way::Udp, message };
        take(resolver.handle(now, &mut random, asked), &mut attempts, &mut waiting);
    }
    for message in [bytes, halves.1] {
        for attempt in attempts.clone() {
            let answered = Event::Answered { attempt, message };
            take(resolver.handle(now, &mut random, answered), &mut attempts, &mut waiting);
        }
    }
    while let Some(at) = resolver.wake_at() {
        now = now.max(at);
        take(resolver.handle(now, &mut random, Event::TimerFired), &mut attempts, &mut waiting);
    }
    assert!(waiting.is_empty() && attempts.is_empty(), "{waiting:?} {attempts:?}");
}

pub fn volume_label(bytes: &[u8]) {
    let _ = orlop_machined::label::probe(bytes);
}

/// META, and the inside of a block of it: nothing gets there by chance, past its sum.
pub fn meta(bytes: &[u8]) {
    use orlop_machined::meta::{decode, encode, entries, read};
    let _ = read(bytes);
    if let Some(tags) = entries(bytes) {
        let block = encode(&tags, bytes.len() + 64);
        assert!(block.is_ok_and(|block| decode(&block) == Some(tags)), "written differently");
    }
}

/// Whatever somebody asks to see: refused, or evaluated within its steps.
pub fn cel_filter(bytes: &[u8]) {
    use orlop_curator::filter::Filter;
    use orlop_proto::metropolis::proto::api::Node;
    use orlop_proto::metropolis::proto::common::node_labels::Pair;
    use orlop_proto::metropolis::proto::common::{NodeLabels, NodeStatus};
    let Ok(filter) =
        str::from_utf8(bytes).map_err(drop).and_then(|it| Filter::new(it).map_err(drop))
    else {
        return;
    };
    let label = Pair { key: "zone".to_owned(), value: "a".to_owned() };
    let node = Node {
        id: "metropolis-00112233445566778899aabbccddeeff".to_owned(),
        state: 3,
        status: Some(NodeStatus::default()),
        labels: Some(NodeLabels { pairs: vec![label] }),
        ..Node::default()
    };
    // The same twice.
    assert_eq!(filter.keeps(&node), filter.keeps(&node));
}

const CEL: &[u8] = b"node.state == NODE_STATE_UP && !has(node.roles.kubernetes_worker) || \
    node.time_since_heartbeat < duration('6s') && node.id.matches('^metro[a-z]+-') ? true : 1u + 2u in [3u, {'a': 1}.a]";
const CEL_MACROS: &[u8] = b"node.labels.pairs.exists(p, p.key == \"zone\" && [1.5, 2.5, -3.0].map(x, x * 2.0).size() > 1) && \
    timestamp('2026-01-31T08:00:00Z').getHours('+02:00') == 10 && string(int('1')) + r'\\n' != b'\\x00\\377'";

/// And what is sound is the same when it was written again.
pub fn node_parameters(bytes: &[u8]) {
    use orlop_config::parameters::NodeParameters;
    if let Ok(read) = NodeParameters::decode(bytes) {
        assert_eq!(NodeParameters::decode(&read.encode()), Ok(read));
    }
}

/// What a caller of the curator shows: in PEM, or as it comes.
pub fn cluster_certificate(bytes: &[u8]) {
    use orlop_curator::access::{Access, Caller, Rules};
    use orlop_pki::cluster::{self, Shown};
    let text = String::from_utf8_lossy(bytes);
    let shown = match orlop_pki::encoding::certificates(&text) {
        Ok(shown) => shown,
        Err(_) => vec![bytes.to_vec().into()],
    };
    for der in &shown {
        if let Ok(read) = Shown::read(der) {
            assert!(read.node().is_none_or(|id| read.common_name == id));
            let _ = read.self_signed_key();
            let _ = read.is_signed_by(der);
        }
        let _ = cluster::authority_key(der);
        let _ = cluster::revoked(der, der);
    }
    // As if it were its own authority.
    let rules = Rules { authority: &shown[0], book: None, now: std::time::SystemTime::UNIX_EPOCH };
    let _ = rules.admit("/x", Access::Authenticated, &shown);
    let open = rules.admit("/x", Access::Open, &shown).unwrap();
    assert!(matches!(open, Caller::Nobody | Caller::Key(_)));
}

pub fn cluster_escrow(bytes: &[u8]) {
    use orlop_curator::escrow;
    use orlop_proto::metropolis::proto::api::EscrowRequest;
    let key = [7; 32];
    let request = <EscrowRequest as prost::Message>::decode(bytes).ok();
    if let Ok(asked) = escrow::asked(request.as_ref(), Some(&key)) {
        assert_eq!(asked, key);
    }
    assert!(escrow::asked(request.as_ref(), None).is_err());
    if escrow::is_owner(&key, Some(bytes)).is_ok() {
        assert!(bytes.windows(32).any(|window| window == key));
    }
}

/// What lies in the store of a cluster: the first byte says where.
pub fn cluster_state(bytes: &[u8]) {
    use orlop_curator::known::{Book, Shown};
    use orlop_curator::names::{self, CURATOR, NodeId};
    use orlop_curator::state;
    let Some((place, value)) = bytes.split_first() else { return };
    let id = NodeId::of_key(&[7; 32]);
    let paths = [
        names::node(&id),
        names::REGISTER_TICKET.to_owned(),
        names::REVOKED.to_owned(),
        format!("{}otto", names::USERS),
    ];
    let revision = orlop_store::Revision(1);
    let entry = orlop_store::Entry {
        key: CURATOR.key(&paths[usize::from(*place) % paths.len()]).into(),
        value: value.to_vec().into(),
        created: revision,
        modified: revision,
        version: 1,
        lease: None,
    };
    let book = Book::of(value, std::slice::from_ref(&entry), revision);
    assert!(book.waiting() <= 1 && book.waiting_ids().len() == book.waiting());
    assert!(book.ticket(b"") != Shown::Right);
    let _ = book.role("otto");
    if let Some(node) = state::node_of_entry(&entry) {
        assert_eq!(node.value.id, id.as_str());
    }
}

pub fn socket_table(bytes: &[u8]) {
    let line = String::from_utf8_lossy(bytes);
    for protocol in ["tcp", "tcp6"] {
        let _ = orlop_machined::sockets::parse(protocol, &line);
    }
}

/// In two pieces, which must make no difference.
pub fn pod_log(bytes: &[u8]) {
    let read = |pieces: &[&[u8]]| {
        let (mut reader, mut all) = (orlop_machined::podlog::Reader::default(), Vec::new());
        pieces.iter().for_each(|piece| reader.feed(piece, |line| all.extend_from_slice(line)));
        reader.finish(|line| all.extend_from_slice(line));
        all
    };
    let whole = read(&[bytes]);
    let (front, back) = bytes.split_at(bytes.len() / 2);
    assert!(whole == read(&[front, back]), "the cut is seen");
    assert!(whole.len() <= bytes.len(), "more than was there");
}

pub fn uevent(bytes: &[u8]) {
    if let Ok(event) = Uevent::parse(bytes) {
        assert!(Uevent::parse(&event.to_bytes()).is_ok_and(|again| again == event));
        assert!(!event.devpath.contains("/../") && !event.id().is_empty());
    }
}

pub fn acpi_event(bytes: &[u8]) {
    if let Some(event) = orlop_netlink::acpi::event(bytes, 27) {
        assert!(
            event.class.len() + event.bus.len() <= 3 * 35,
            "longer than the fields they are in"
        );
    }
}

/// A device that holds something, and is divided.
pub fn superblock(bytes: &[u8]) {
    let _ = probe::probe(&mut probe::slice(bytes));
    let sectors = bytes.len() as u64 / 512;
    for sector_bytes in [512, 4096] {
        let _ = partitions::find(&mut probe::slice(bytes), sectors, sector_bytes);
    }
}

pub fn udev_rules(bytes: &[u8]) {
    let (rules, _) = rules::parse(&String::from_utf8_lossy(bytes));
    let Ok(event) = Uevent::parse(UEVENT) else { return };
    let nothing = Mounted("/dev/null".into());
    let mut decision = Decision::default();
    rules.apply(&event, Device::new(&nothing, &event.devpath), &mut decision);
    assert!(decision.properties.values().all(|value| !value.contains('\n')));
}

pub fn module_alias(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (pattern, alias) = text.split_once('\n').unwrap_or((&text, ""));
    let _ = modules::matches(pattern, alias);
    let index = Modules::parse(&format!("alias {pattern} m"), &format!("m.ko: {alias}"));
    assert!(index.wanted(alias).iter().all(|file| !file.split('/').any(|part| part == "..")));
}

pub fn grpc_path(bytes: &[u8]) {
    let _ = orlop_rpc::proxy::Method::parse(&String::from_utf8_lossy(bytes));
}

pub fn framed_messages(bytes: &[u8]) {
    // Wherever the stream is cut, the same messages come out.
    let read = |size: usize| {
        let (mut frames, mut messages) = (orlop_apid::merge::Frames::new(4096), Vec::new());
        for chunk in bytes.chunks(size) {
            frames.push(chunk);
            loop {
                match frames.next_message() {
                    Ok(Some(framed)) => messages.push((framed.compressed, framed.message)),
                    Ok(None) => break,
                    Err(_) => return messages,
                }
            }
        }
        messages
    };
    let at_once = read(bytes.len().max(1));
    for (_, message) in &at_once {
        let _ = orlop_apid::merge::mark_message(message, "10.0.0.2");
    }
    assert_eq!(read(1), at_once);
}

/// Lines of metadata.
pub fn call_targets(bytes: &[u8]) {
    use orlop_apid::machine::{Here, Route, Target, Wish, route};
    let (text, mut wish) = (String::from_utf8_lossy(bytes), Wish::default());
    for line in text.split('\n') {
        match line.split_once('=') {
            Some(("nodes", node)) => wish.nodes.push(node.to_owned()),
            Some(("node", node)) => wish.node.push(node.to_owned()),
            _ => wish.routed |= line.starts_with("proxyfrom"),
        }
    }
    let Ok(method) = orlop_rpc::proxy::Method::parse("/machine.MachineService/Memory") else {
        return;
    };
    let dialled = |target: &Target| {
        let again = Target::parse(&target.host);
        assert!(again.is_ok_and(|again| again.host == target.host), "dialled differently");
    };
    for forwards in [true, false] {
        let here = Here { forwards, is_own: &|target| target.host == "10.0.0.1" };
        match route(method, &wish, &here) {
            Ok(Route::Local) | Err(_) => {}
            Ok(Route::One(target)) => dialled(&target),
            Ok(Route::Many(targets)) => {
                assert!(forwards && !wish.routed && targets.len() == wish.nodes.len());
                targets.iter().for_each(dialled);
            }
        }
    }
}

/// Wherever the stream is cut, the same is let through.
pub fn frame_heads(bytes: &[u8]) {
    use orlop_rpc::watch::Watch;
    let now = std::time::Instant::now();
    let passes = |size: usize| {
        let mut watch = Watch::new();
        bytes.chunks(size).all(|bytes| watch.passes(bytes, now).is_ok())
    };
    assert_eq!(passes(bytes.len().max(1)), passes(1), "pieces matter");
}

pub fn answer_to_merge(bytes: &[u8]) {
    let mut merged = Vec::new();
    if orlop_apid::merge::mark_answer(bytes, "10.0.0.2", &mut merged).is_ok() {
        // A shorter length than it came with is possible, no mark is not.
        assert!(
            merged.windows(8).any(|window| window == b"10.0.0.2"),
            "an answer without its mark"
        );
    }
}

const LINKS: &[u8] =
    b"interfaces:\n- {deviceSelector: {driver: 'e*', physical: true}, acceptRA: false}\n\
    - interface: wg0\n  wireguard:\n    privateKey: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n\
    \x20   peers: [{publicKey: zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk=, endpoint: '192.0.2.1:5', \
    persistentKeepaliveInterval: 25s, allowedIPs: [10.0.0.0/8]}]\n\
    - {interface: b, vrf: {interfaces: [eth5], table: 9}, neighbors: [{ip: 10.0.0.9, \
    hardwareAddr: '02:00:00:00:00:09'}], routes: [{network: 10.1.0.0/16, type: blackhole}]}\n\
    rules: [{priority: 5, src: 10.0.0.0/8, fwMark: 1, fwMask: 3, table: 7}]\n";
const META: &[u8] = b"\0\0\0\x07\0\0\0\x05image\0\0\0\x06\0\0\0\x01A\0\0\0\0\0\0\0\0";

/// Of the first node of a cluster, with a static network.
const PARAMETERS: &[u8] =
    b"\x0aB\x0a oooooooooooooooooooooooooooooooo\x1a\x11\x08\x02\x10\x01\x22\x0bexample.org\x22\
    \x0b\x0a\x09\x0a\x04zone\x12\x01a\x22O\x0a/\x0a\x04eth0b\x0b10.1.0.5/24h\xdc\x0br\x17\x0a\
    \x090.0.0.0/0\x12\x0810.1.0.1 \x05\x0a\x0f\x0a\x01v*\x08\x0a\x04eth0\x10\x0cR\x00\x1a\x0b\
    \x0a\x0910.0.0.53";

/// The head of a bbolt database, and no more.
const SNAPSHOT: &[u8] = &{
    let mut bytes = [0; 544];
    let magic = 0xED0C_DAED_u32.to_le_bytes();
    let mut at = 0;
    while at < 4 {
        bytes[16 + at] = magic[at];
        at += 1;
    }
    bytes
};

/// Family 27, a command with one attribute: class, bus, type 0x80, count 1.
const POWER_BUTTON: [u8; 68] = {
    const CLASS: &[u8] = b"button/power";
    const BUS: &[u8] = b"LNXPWRBN:00";
    let mut bytes = [0; 68];
    (bytes[0], bytes[4], bytes[16], bytes[17]) = (68, 27, 1, 1);
    (bytes[20], bytes[22], bytes[60], bytes[64]) = (48, 1, 0x80, 1);
    let mut i = 0;
    while i < CLASS.len() {
        bytes[24 + i] = CLASS[i];
        i += 1;
    }
    i = 0;
    while i < BUS.len() {
        bytes[44 + i] = BUS[i];
        i += 1;
    }
    bytes
};
const ARGUMENTS: &[u8] =
    b"console=ttyS0 talos.platform=metal talos.config=http://10.0.2.2/c talos.hostname=n panic=10";
const STATIC_ADDRESS: &[u8] = b"ip=10.0.0.2::10.0.0.1:255.255.255.0:node:eth0:off:1.1.1.1";
const MACHINE: &[u8] = b"version: v1alpha1\n\
    machine:\n  type: controlplane\n  network:\n    interfaces:\n      - interface: eth0\n        dhcp: true\n\
    cluster:\n  controlPlane:\n    endpoint: https://10.0.0.1:6443\n";
const MORE: &[u8] = b"machine: {token: 0123ab.0123456789abcdef, env: {a: &a 1}, sysctls: {net.ipv4.ip_forward: *a},\n\
    disks: [{device: /dev/sdb, partitions: [{size: 1GB, mountpoint: /var/a}]}],\n\
    files: [{path: /var/a, permissions: 0o644, content: x}], logs: {ringSize: 2MiB}}\n\
    cluster: {controlPlane: {endpoint: 'https://a:6443'}, adminKubeconfig: {certLifetime: 1h}}\n";
/// `machine: {}`
const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xcb\x4d\x4c\xce\xc8\xcc\x4b\xb5\x52\xa8\xae\xe5\x02\x00\x72\x0a\x4e\xa4\x0c\x00\x00\x00";
const CLIENT: &[u8] = b"context: a\ncontexts:\n  a:\n    endpoints: [10.0.0.1]\n    ca: \"\"\n    crt: \"\"\n    key: \"\"\n";
const REQUEST: &[u8] = b"-----BEGIN CERTIFICATE REQUEST-----\n\
MIHOMIGBAgEAMCQxETAPBgNVBAoMCG9zOmFkbWluMQ8wDQYDVQQDDAZub2RlLTEw\n\
KjAFBgMrZXADIQC02kcFXMygJgHxhvEENHzCQzCUiFnkCgmt2qg3p+EF46AqMCgG\n\
CSqGSIb3DQEJDjEbMBkwFwYDVR0RBBAwDoIGbm9kZS0xhwQKAAAHMAUGAytlcANB\n\
AJvW1fk101amoCpU4YMEWa/V2cWYp9ohrQX8j8e82IdTHubq+22OwCKmXncgEZb/\n\
QigHTvz6pnkDwy9F/Prl1Qk=\n\
-----END CERTIFICATE REQUEST-----\n";
/// `parameters { requested_identity_name: "owner", public_key: 7 32 times }`.
const ESCROW: &[u8] = b"\x0a\x29\x0a\x05owner\x12\x20\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
    \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07";
/// `public_key: 7 32 times`.
const OWNER: &[u8] = b"\x0a\x20\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
    \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07";
/// A node with that key, NEW.
const CLUSTER_NODE: &[u8] =
    b"\0\x0a\x20\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
    \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x18\x01";
const CERTIFICATE: &[u8] =
    b"-----BEGIN CERTIFICATE-----\nMIIBODCB66ADAgECAhA=\n-----END CERTIFICATE-----\n";
/// Of RFC 8032 §7.1, TEST 1.
const OWNER_KEY: &[u8] = b"-----BEGIN METROPOLIS INITIAL OWNER PRIVATE KEY-----\n\
    nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2DXWpgBgrEKt9VL/tPJZAc6\n\
    DuFy89qmIyWvAhpo9wdRGg==\n\
    -----END METROPOLIS INITIAL OWNER PRIVATE KEY-----\n";
const KEY: &[u8] = b"-----BEGIN ED25519 PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw\n\
    -----END ED25519 PRIVATE KEY-----\n";
/// An answer of stratum 2 with an extension field of 16 bytes.
const NTS_KEYS: &[u8] = b"\x80\x01\0\x02\0\0\x80\x04\0\x02\0\x0f\0\x05\0\x08a cookie\0\x06\0\x09\
    127.0.0.1\0\x07\0\x02\x2b\x67\x80\0\0\0";
/// A cookie, and a proof that proves nothing.
const NTS_FIELDS: &[u8] = b"\x02\x04\0\x14sixteen of cookie\x04\x04\0\x28\0\x10\0\x10\
    nonce of sixteensealed of sixtee";
const NTP_ANSWER: &[u8] = b"\x24\x02\x06\xe9\x00\x00\x10\x00\x00\x00\x08\x00\x0a\x00\x00\x01\
    \xed\x00\x37\x70\x00\x00\x00\x00\x12\x34\x56\x78\x9a\xbc\xde\xf0\
    \xed\x00\x37\x80\x00\x00\x00\x00\xed\x00\x37\x80\x00\x10\x00\x00\
    \x01\x04\x00\x10\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b";
const SOCKET: &[u8] =
    b"1: 0100007F:C350 00000000:0000 0A 00000000:00000007 00:00000000 00000000 50 0 4711 1 0";
const PACKET: &[u8] =
    b"\x45\0\0\x20\0\0\0\0\x40\x11\0\0\x0a\0\x02\x02\x0a\0\x02\x0f\0\x43\0\x44\0\x0c\0\0abcd";
/// A BOOTP reply with the options message type, lease time, mask and router (RFC 2131, RFC 2132).
const DHCP_ACK: [u8; 280] = {
    const OPTIONS: &[u8] = b"\x63\x82\x53\x63\x35\x01\x05\x33\x04\0\0\x0e\x10\x01\x04\xff\xff\xff\0\x03\x04\x0a\0\x02\x02\x77\x09\x01a\x01b\0\x01c\xc0\0\xff";
    let mut message = [0; 280];
    (message[0], message[1], message[2]) = (2, 1, 6);
    let mut i = 0;
    while i < OPTIONS.len() {
        message[236 + i] = OPTIONS[i];
        i += 1;
    }
    message
};
const ARP: &[u8] =
    b"\0\x01\x08\0\x06\x04\0\x01\x02\0\0\0\0\x01\x0a\0\0\x05\0\0\0\0\0\0\x0a\0\0\x06";
const ROUTER: &[u8] =
    b"\x86\0\0\0\x40\x40\x07\x08\0\0\0\0\0\0\0\0\x19\x03\0\0\0\0\0\x3c\xfd\0\0\0\0\0\0\0\
    \0\0\0\0\0\0\0\x53\x1f\x02\0\0\0\0\0\x3c\x01a\x01b\0\0\0\0";
const DNS_QUESTION: &[u8] =
    b"\0\x01\x01\0\0\x01\0\0\0\0\0\x01\x01a\x03org\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";
const DNS_ANSWER: &[u8] = b"\0\x01\x81\x80\0\x01\0\x02\0\0\0\0\x01a\x03org\0\0\x01\0\x01\
    \xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x04\x01b\xc0\x0e\xc0\x23\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01";
const DHCP6: &[u8] = b"\x07\x01\x02\x03\0\x01\0\x0a\0\x03\0\x01\x02\0\0\0\0\x01\0\x02\0\x05\0\x03\0\x01\x09\
    \0\x03\0\x28\0\0\0\x01\0\0\0\x64\0\0\0\xc8\0\x05\0\x18\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\x01\x2c\0\0\x02\x58\
    \0\x17\0\x10\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x53\0\x18\0\x05\x01a\x01b\0";
const RULES: &[u8] = b"ACTION==\"add|change\", KERNEL==\"vd[a-z]\", ATTRS{a}!=\"0\", \\\n SYMLINK+=\"a/%k%n $env{X}%%\", \
    GROUP=\"6\", MODE=\"0640\", ENV{X}=\"$attr{size}\"\n";
const UEVENT: &[u8] = b"add@/devices/pci0000:00/0000:00:04.0/virtio1/block/vda\0ACTION=add\0\
    DEVPATH=/devices/pci0000:00/0000:00:04.0/virtio1/block/vda\0SUBSYSTEM=block\0MAJOR=254\0\
    MINOR=0\0DEVNAME=vda\0DEVTYPE=disk\0SEQNUM=1201\0";
/// A table of two partitions, the second extended, and the signature of ext2.
static DISK: [u8; 0x800] = {
    const ENTRIES: &[u8] =
        b"\0\0\0\0\x83\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\x05\0\0\0\x01\0\0\0\x02\0\0\0";
    let mut disk = [0; 0x800];
    let mut i = 0;
    while i < ENTRIES.len() {
        disk[446 + i] = ENTRIES[i];
        i += 1;
    }
    (disk[440], disk[510], disk[511]) = (1, 0x55, 0xAA);
    (disk[0x404], disk[0x438], disk[0x439]) = (1, 0x53, 0xEF);
    disk
};
const POD_LOG: &[u8] =
    b"2026-01-02T03:04:05.678Z stdout F whole\n2026-01-02T03:04:06Z stderr P begun \n\
    2026-01-02T03:04:07Z stdout F between\n2026-01-02T03:04:08Z stderr F and ended\nnonsense\n";
/// The primary volume descriptor of a disc, and its label.
static ISO: [u8; 0x8800] = {
    let mut disc = [0; 0x8800];
    (disc[0x8000], disc[0x8001], disc[0x8002], disc[0x8003]) = (1, b'C', b'D', b'0');
    (disc[0x8004], disc[0x8005], disc[0x8028], disc[0x8029]) = (b'0', b'1', b'a', b' ');
    disc
};
