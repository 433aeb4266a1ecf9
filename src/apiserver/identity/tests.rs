//! Folders of laptops, and the files a node is handed.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use clap::Parser;
use orlop_pki::certificate;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options(line: &[&str]) -> Options {
    let line = std::iter::once("apiserver").chain(line.iter().copied());
    Line::try_parse_from(line).expect("a sound line").options
}

fn load(folder: &Path, options: &Options, now: SystemTime) -> Result<Identity, Error> {
    let service = "10.96.0.1".parse().expect("an address");
    let server = "https://127.0.0.1:6443";
    let place = Place { data_dir: folder, server, host_name: "laptop", service };
    Identity::load(options, &place, now)
}

fn text(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).expect("it is there")
}

#[test]
fn a_laptop_gets_all_it_needs_once_and_for_its_owner_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let (folder, now) = (folder.path(), SystemTime::now());
    let first = load(folder, &options(&[]), now).expect("made");
    let names = ["authority.pem", "ca.crt", "serving.pem", "admin.pem", "service-account.key"];
    let paths = names.map(|name| format!("pki/{name}"));
    let all = || paths.each_ref().map(|name| text(folder, name));
    let before = all();
    for path in paths.iter().map(String::as_str).chain(["kubeconfig"]) {
        let mode = fs::metadata(folder.join(path)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
    let (dns, ips) = certificate::names(&text(folder, "pki/serving.pem")).expect("a certificate");
    assert!(
        dns.contains(&"kubernetes.default.svc".to_owned()) && dns.contains(&"laptop".to_owned())
    );
    assert_eq!(ips.len(), 3);
    assert_eq!(first.kubeconfig.as_deref(), Some(&*folder.join("kubeconfig")));
    let kubeconfig = text(folder, "kubeconfig");
    assert!(kubeconfig.contains("server: https://127.0.0.1:6443\n"), "{kubeconfig}");
    assert!(!text(folder, "pki/ca.crt").contains("PRIVATE"));
    assert_eq!(first.root_ca, text(folder, "pki/ca.crt"));

    let again = load(folder, &options(&[]), now + DAY).expect("kept");
    assert_eq!(all(), before);
    assert_eq!(text(folder, "kubeconfig"), kubeconfig);
    assert!(!again.is_stale(now + DAY));
    assert_eq!(again.settings.accounts.keys(), first.settings.accounts.keys());
}

#[test]
fn certificates_are_renewed_after_two_thirds_of_their_life_and_for_a_new_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (folder, now) = (folder.path(), SystemTime::now());
    let identity = load(folder, &options(&[]), now).expect("made");
    let serving = || text(folder, "pki/serving.pem");
    let first = serving();
    assert!(!identity.is_stale(now + 243 * DAY));
    assert!(identity.is_stale(now + 244 * DAY));
    load(folder, &options(&[]), now + 244 * DAY).expect("renewed");
    let (second, kubeconfig) = (serving(), text(folder, "kubeconfig"));
    assert_ne!(first, second);
    assert!(identity.is_stale(now), "the file is another");
    let named = options(&["--tls-san", "api.example.org", "--tls-san", "192.0.2.7"]);
    load(folder, &named, now + 244 * DAY).expect("renewed");
    assert_ne!(second, serving());
    assert_eq!(text(folder, "kubeconfig"), kubeconfig, "it does not depend on that");
    // One cut short, as no crash of ours leaves it, is no reason to stand still.
    fs::write(folder.join("pki/serving.pem"), &second[..second.len() / 2]).expect("written");
    load(folder, &options(&[]), now + 244 * DAY).expect("made anew");
}

#[test]
fn what_cannot_be_used_is_told_with_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let (folder, now) = (folder.path(), SystemTime::now());
    load(folder, &options(&[]), now).expect("made");
    let told = |options: &Options, now| {
        let error = load(folder, options, now).expect_err("it cannot be");
        orlop_rt::Chain(&error).to_string().replace(&folder.display().to_string(), "DIR")
    };
    assert_eq!(
        told(&options(&[]), now + 3651 * DAY),
        "DIR/pki/authority.pem has expired; take the folder away to have everything in it made anew"
    );
    let absent = folder.join("absent");
    let absent = absent.to_str().expect("a path");
    let error = told(&options(&["--token-auth-file", absent]), now);
    assert!(error.starts_with("read DIR/absent (--token-auth-file): No such file"), "{error}");
    fs::write(folder.join("pki/service-account.key"), "garbage").expect("written");
    let error = told(&options(&[]), now);
    assert!(error.starts_with("use DIR/pki/service-account.key; take the folder away"), "{error}");
}

#[test]
fn a_node_is_handed_files_and_nothing_is_made() {
    let (made, own) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let now = SystemTime::now();
    load(made.path(), &options(&[]), now).expect("made");
    let at = |name: &str| made.path().join("pki").join(name).display().to_string();
    let (serving, ca, key) = (at("serving.pem"), at("ca.crt"), at("service-account.key"));
    let line = [
        "--tls-cert-file",
        &serving,
        "--tls-private-key-file",
        &serving,
        "--client-ca-file",
        &ca,
        "--service-account-signing-key-file",
        &key,
        "--service-account-issuer",
        "https://x",
        "--anonymous-auth=false",
    ];
    let identity = load(own.path(), &options(&line), now).expect("read");
    assert_eq!(fs::read_dir(own.path()).expect("a folder").count(), 0);
    assert_eq!(
        (identity.kubeconfig.as_ref(), identity.settings.accounts.issuer()),
        (None, "https://x")
    );
    assert_eq!(identity.settings.anonymous, Anonymous::Refused);
    assert!(!identity.is_stale(now + 1000 * DAY), "who made them renews them");
    orlop_rt::replace(Path::new(&ca), 0o600, b"other").expect("written");
    assert!(identity.is_stale(now));
}
