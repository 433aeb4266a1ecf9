//! Golden files: each document of `testdata/good`, and each example we ship, is read, written and read
//! again; each of `testdata/bad` has its problems in the `.txt` beside it. `BLESS=1` rewrites those.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

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

#[test]
fn bad_documents_have_exactly_these_problems() {
    for (path, text) in documents("testdata/bad") {
        let problems = parse("machine.yaml", &text).unwrap_err().to_string() + "\n";
        let expected = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &problems).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(problems, expected, "{}", path.display());
    }
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

#[test]
fn debug_output_shows_no_secrets() {
    let all = documents("testdata/good")
        .into_iter()
        .find(|(path, _)| path.ends_with("all.yaml"))
        .unwrap()
        .1;
    let shown = format!("{:?}", parse("machine.yaml", &all).unwrap());
    for secret in ["0123456789abcdef", "hunter2", "open sesame", "MDEyMzQ1"] {
        assert!(!shown.contains(secret), "{secret}");
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
    for text in [deep, laughs, "machine: &a [*a]".to_owned(), "? machine\n? cluster".to_owned()] {
        assert!(parse("m", &text).is_err());
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "[ \n:\\[\\]{}&*!|>'\"#-]{0,20}(machine|cluster|type|\\PC){0,9}[ \n:\\[\\]{}&*!|>'\"#-]{0,20}") {
        let _ = parse("m", &text);
        let _ = Network::parse(&text);
    }

    /// A good document with some bytes replaced by others that mean something.
    #[test]
    fn a_damaged_document_never_panics(damage in proptest::collection::vec((0..4000usize, "[ :\n\\-\\[{'\"#&*0a]"), 1..4)) {
        let mut all = include_str!("../testdata/good/all.yaml").to_owned();
        for (at, with) in damage {
            let at = at % all.len();
            if all.is_char_boundary(at) && all.is_char_boundary(at + 1) {
                all.replace_range(at..=at, &with);
            }
        }
        if let Ok(config) = parse("m", &all) {
            prop_assert_eq!(parse("m", &config.to_yaml()), Ok(config));
        }
    }
}
