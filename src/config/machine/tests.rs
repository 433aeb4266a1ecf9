//! Golden files: each document of `testdata/good`, and each example we ship, is read, written and read
//! again; each of `testdata/bad` has its problems in the `.txt` beside it. `BLESS=1` rewrites those.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn documents(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn good_documents_survive_being_written() {
    let good = [documents("testdata/good"), documents("../../config/examples")].concat();
    for (path, text) in good {
        let read = parse("machine.yaml", &text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let written = read.to_yaml();
        assert_eq!(parse("written.yaml", &written), Ok(read), "{path:?} as written:\n{written}");
    }
}

/// Each document of a folder, and what is said about it.
fn told(folder: &str, read: impl Fn(&str) -> Result<MachineConfig, Problems>) {
    for (path, text) in documents(folder) {
        let problems = read(&text).unwrap_err().to_string() + "\n";
        let expected = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &problems).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(problems, expected, "{}", path.display());
    }
}

#[test]
fn bad_documents_have_exactly_these_problems() {
    told("testdata/bad", |text| parse("machine.yaml", text));
}

#[test]
fn a_node_of_metal_misses_exactly_this() {
    told("testdata/metal", |text| parse_for(Mode::Metal, "machine.yaml", text));
}

#[test]
fn every_key_of_a_full_document_arrives() {
    let all = documents("testdata/good")
        .into_iter()
        .find(|(path, _)| path.ends_with("all.yaml"))
        .unwrap()
        .1;
    let config = parse("machine.yaml", &all).unwrap();
    let network = &config.machine.network;
    assert_eq!(network.interfaces[0].cidr, Some("192.168.1.5/24".parse().unwrap()));
    assert_eq!((network.interfaces[0].mtu, network.interfaces[3].mtu), (Some(9000), None));
    let bond = network.interfaces[4].bond.as_ref().unwrap();
    assert_eq!((bond.mode.unwrap() as u8, bond.xmit_hash_policy.unwrap() as u8), (4, 1));
    assert_eq!(config.machine.sysctls["net.ipv4.ip_forward"], "1");
    assert_eq!(config.machine.kubelet.extra_args["v"], "4");
    assert_eq!(config.machine.files[1].permissions.0, 0o644);
    assert_eq!(config.machine.disks[0].partitions[0].size.0, 100_000_000_000);
    assert_eq!(config.cluster.admin_kubeconfig.cert_lifetime.unwrap().as_secs(), 5400);
    assert!(config.machine.kind.is_control_plane() && config.persist && config.debug);
}

#[test]
fn absent_and_old_types_are_workers() {
    for kind in ["{}", "{type: join}", "{type: ''}", "{type: worker}", "{type: }"] {
        let text = format!("machine: {kind}\ncluster: {{controlPlane: {{endpoint: 'https://a'}}}}");
        assert_eq!(parse("m", &text).unwrap().machine.kind, MachineType::Worker, "{kind}");
    }
}

fn good(name: &str) -> MachineConfig {
    let documents = documents("testdata/good");
    let text = &documents.iter().find(|(path, _)| path.ends_with(name)).unwrap().1;
    parse(name, text).unwrap()
}

/// The secrets of `all.yaml`; those of its proxy's address and of a header among them.
const SECRETS: [&str; 6] =
    ["0123456789abcdef", "hunter2", "open sesame", "MDEyMzQ1", "1234567", "somebody:pass"];

#[test]
fn debug_output_shows_no_secrets() {
    let shown = format!("{:?}", good("all.yaml"));
    // An address is no secret by its type; nobody logs `env`.
    for secret in SECRETS.into_iter().filter(|secret| *secret != "somebody:pass") {
        assert!(!shown.contains(secret), "{secret}");
    }
}

#[test]
fn what_is_displayed_shows_no_secrets() {
    let config = good("all.yaml");
    let (written, shown) = (config.to_yaml(), config.redacted_yaml());
    for secret in SECRETS {
        assert!(written.contains(secret) && !shown.contains(secret), "{secret}:\n{shown}");
    }
    assert_eq!(written.lines().count(), shown.lines().count() + 1, "a content of several lines");
    assert!(shown.contains("http_proxy: http://[redacted]@proxy.example.org:3128"), "{shown}");
    let pairs = good("controlplane.yaml").redacted_yaml();
    assert_eq!(pairs.matches("key: '[redacted]'").count(), 4, "{pairs}");
    assert!(pairs.contains("crt: LS0t"), "{pairs}");
}

#[test]
fn a_difference_names_changed_secrets_without_showing_them() {
    let old = good("all.yaml");
    assert_eq!(old.diff(&old), "");
    let mut new = old.clone();
    new.machine.network.hostname = Some("node-2".to_owned());
    new.machine.token = Some(orlop_pki::Secret::new("zzzzzz.zzzzzzzzzzzzzzzz"));
    let expected = "--- running\n+++ new\n@@ -3,7 +3,7 @@\n persist: true\n machine:\n   type: \
        controlplane\n-  token: '[redacted]'\n+  token: '[redacted, changed]'\n   certSANs:\n   - \
        10.0.0.9\n   - api.example.org\n@@ -21,7 +21,7 @@\n       - rw\n     registerWithFQDN: \
        true\n   network:\n-    hostname: node-1.example.org\n+    hostname: node-2\n     \
        interfaces:\n     - interface: eth0\n       cidr: 192.168.1.5/24\n";
    assert_eq!(old.diff(&new), expected);
}

#[test]
fn an_expired_certificate_is_a_warning() {
    let config = good("controlplane.yaml");
    let at = |years: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(years * 365 * 86_400);
    assert_eq!(config.warnings(at(80)), [""; 0]);
    let expected = |what: &str| {
        ["machine.ca", "cluster.ca", "cluster.etcd.ca"].map(|ca| format!("{ca}.crt: {what}"))
    };
    assert_eq!(config.warnings(at(200)), expected("the certificate has expired"));
    assert_eq!(config.warnings(at(1)), expected("the certificate is not valid yet"));
    let mut worker = config;
    worker.machine.kind = MachineType::Worker;
    assert_eq!(
        worker.warnings(at(80))[0],
        "machine.ca.key: a worker needs no authority's key; take it out"
    );
}

#[test]
fn each_mode_asks_for_what_it_needs() {
    let worker = |install: &str| {
        format!(
            "machine: {{token: 0123ab.0123456789abcdef{install}}}\n\
             cluster: {{token: 0123ab.0123456789abcdef, controlPlane: {{endpoint: 'https://a'}}}}"
        )
    };
    for mode in ["cloud", "container", "metal"] {
        let mode: Mode = mode.parse().unwrap();
        let without_disk = parse_for(mode, "m", &worker(""));
        assert_eq!(without_disk.is_ok(), mode != Mode::Metal, "{mode}");
        parse_for(mode, "m", &worker(", install: {disk: /dev/sda}")).unwrap();
        parse_for(mode, "m", &good("controlplane.yaml").to_yaml()).unwrap();
    }
    assert!("bare".parse::<Mode>().is_err());
}

#[test]
fn an_api_counts_the_problems() {
    let problems = parse("m", "machine: {type: x}\ncluster: {}\n").unwrap_err();
    let expected = "2 errors occurred:\n\
        \t* 1:11: machine.type: `x` is unknown; known are init, controlplane, join, worker\n\
        \t* 2:1: cluster.controlPlane.endpoint: cluster controlplane endpoint is required\n\n";
    assert_eq!(problems.counted(), expected);
    let problems = parse("m", "a: 1\n").unwrap_err();
    assert_eq!(problems.counted(), "1 error occurred:\n\t* 1:1: config not found\n\n");
}

#[test]
fn an_example_of_any_length_is_sound() {
    for lines in [26, 27, 100, 2000] {
        let text = example_of_lines(lines);
        assert_eq!(text.lines().count(), lines);
        parse("m", &text).unwrap_or_else(|problems| panic!("{lines}: {problems}"));
    }
}

#[test]
fn the_network_section_stands_alone() {
    assert_eq!(Network::parse(""), Ok(Network::default()));
    let network = Network::parse("interfaces:\n- interface: eth0\n  cidr: 10.0.0.5/24\n").unwrap();
    assert_eq!(Network::parse(&network.to_yaml()), Ok(network));
    let problems = Network::parse("interfaces:\n- interface: eth0\n  mtu: 67\n").unwrap_err();
    let expected = "networkd.yaml:3:3: interfaces[0].mtu: 67 is out of range 68..=65535";
    assert_eq!(problems.to_string(), expected);
}

#[test]
fn no_more_problems_are_listed_than_one_can_read() {
    let keys: String = (0..200).map(|i| format!("  k{i}: 1\n")).collect();
    let problems = parse("m", &format!("machine:\n{keys}cluster: {{}}\n")).unwrap_err();
    assert_eq!(problems.list.len(), 50);
}

/// Every way to nest and repeat with few bytes.
#[test]
fn hostile_documents_end_in_an_error() {
    let deep = "machine: ".to_owned() + &"[".repeat(100_000);
    let laughs: String =
        (1..30).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1)).collect();
    let laughs = format!("a0: &a0 lol\n{laughs}machine: *a29\n");
    let list = "x, ".repeat(50_000);
    let aliases = "*a, ".repeat(1000);
    let wide = format!("a: &a [{list}]\nmachine: {{env: [{aliases}]}}\n");
    let long = format!("a: &a {}\nmachine: [{aliases}]\n", "x".repeat(1 << 20));
    let nulls: String = (0..30_000).map(|i| format!("    - {{mtu: , k{i}: }}\n")).collect();
    let nulls = format!("machine:\n  network:\n    interfaces:\n{nulls}cluster:\n");
    let blocks = format!("machine:\n  {}x", "- ".repeat(1 << 18));
    let commas = format!("machine: [{}]", ",".repeat(4 << 20));
    let documents = "---\n".repeat(1 << 20);
    let merges: String =
        (0..400).map(|i| format!("k{i}: &a{} {{<<: *a{i}, x{i}: 1}}\n", i + 1)).collect();
    let merges = format!("a: &a0 {{x: 1}}\n{merges}machine: *a400\n");
    let few = ["machine: &a [*a]", "? machine\n? cluster", "machine: !!binary x", "\0", "%YAML 9"];
    let many = [deep, laughs, wide, long, nulls, blocks, commas, documents, merges];
    for text in few.map(str::to_owned).into_iter().chain(many) {
        let start: String = text.chars().take(20).collect();
        assert!(parse("m", &text).is_err(), "{start:?}");
    }
}

const GOOD: [&str; 3] = [
    include_str!("../testdata/good/all.yaml"),
    include_str!("../testdata/good/later-keys.yaml"),
    include_str!("../testdata/good/anchors.yaml"),
];

proptest! {
    #[test]
    fn parsing_never_panics(text in "[ \n:\\[\\]{}&*!|>'\"#-]{0,20}(machine|cluster|type|\\PC){0,9}[ \n:\\[\\]{}&*!|>'\"#-]{0,20}") {
        let _ = parse("m", &text);
        let _ = Network::parse(&text);
    }

    /// A good document with some bytes replaced by others that mean something; what is still good is
    /// the same when it is written and read again.
    #[test]
    fn a_damaged_document_never_panics(which in 0..GOOD.len(), damage in proptest::collection::vec((0..4000usize, "[ :\n\\-\\[{'\"#&*0a]"), 1..4)) {
        let mut all = GOOD[which].to_owned();
        for (at, with) in damage {
            let at = at % all.len();
            if all.is_char_boundary(at) && all.is_char_boundary(at + 1) {
                all.replace_range(at..=at, &with);
            }
        }
        if let Ok(config) = parse("m", &all) {
            prop_assert_eq!(config.diff(&config), "");
            prop_assert_eq!(parse("m", &config.to_yaml()), Ok(config));
        }
    }
}
