//! `orlopctl` where no node is needed: usage, generated files, hints, exit codes.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use support::{Home, Ran};

#[test]
fn a_mistyped_command_is_a_usage_error_with_a_suggestion() {
    let ran = Home::new().run(&["memry"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.stderr.contains("'memory'"), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[test]
fn no_command_prints_the_commands_and_is_a_usage_error() {
    let ran = Home::new().run(&[]);
    assert_eq!(ran.code, Some(64));
    for command in ["memory", "services", "dmesg", "gen", "reboot"] {
        assert!(ran.stderr.contains(command), "{command}: {}", ran.stderr);
    }
}

#[test]
fn help_and_version_are_success() {
    let home = Home::new();
    for args in [&["--help"][..], &["memory", "--help"], &["--version"], &["version", "--client"]] {
        let ran = home.run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert_ne!(ran.stdout, "");
    }
}

#[test]
fn an_endpoint_written_as_a_url_is_corrected() {
    let ran = Home::new().run(&["-e", "https://10.0.0.2:50000", "memory"]);
    assert_eq!(ran.code, Some(64));
    assert!(ran.stderr.contains("try: \"10.0.0.2:50000\""), "{ran:?}");
}

#[test]
fn a_missing_client_configuration_is_explained() {
    let home = Home::new();
    let ran = home.run(&["memory"]);
    assert_eq!(ran.code, Some(78));
    let path = home.path(".talos/config");
    let first = format!("error: there is no client configuration at {}\n", path.display());
    assert!(ran.stderr.starts_with(&first), "{ran:?}");
    assert!(ran.stderr.contains("hint: ") && ran.stderr.contains("orlopctl gen config"), "{ran:?}");
    assert!(!path.exists(), "looking makes no file");
}

#[test]
fn a_mistake_in_the_client_configuration_is_told_by_line() {
    let home = Home::new();
    fs::write(home.path("broken"), "context: a\nendpoints: []\n").unwrap();
    let ran = home.run(&["--talosconfig", "broken", "memory"]);
    assert_eq!(ran.code, Some(78));
    assert!(ran.stderr.starts_with("error: broken:2:1: "), "{ran:?}");
}

fn generated() -> Home {
    let home = Home::new();
    let ran = home.run(&["gen", "config", "trial", "https://10.0.0.2:6443", "-o", "made"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    home
}

#[test]
fn options_that_a_node_would_refuse_make_no_files() {
    let home = Home::new();
    let ran = home.run(&[
        "gen",
        "config",
        "trial",
        "https://10.0.0.2:6443",
        "-o",
        "made",
        "--dns-domain",
        "bad domain",
    ]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.stderr.contains("cluster.network.dnsDomain"), "{ran:?}");
    assert!(!home.path("made").exists(), "{ran:?}");
}

#[test]
fn generated_configurations_are_private_and_name_the_endpoint() {
    let home = Home::new();
    let ran =
        home.run(&["gen", "config", "trial", "https://10.0.0.2:6443", "--output-dir", "made"]);
    let created =
        "created made/controlplane.yaml\ncreated made/worker.yaml\ncreated made/talosconfig\n";
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), created), "{ran:?}");
    for file in ["controlplane.yaml", "worker.yaml", "talosconfig"] {
        assert_eq!(mode(&home.path("made").join(file)), 0o600, "{file}");
    }
    for file in ["controlplane.yaml", "worker.yaml"] {
        let text = fs::read_to_string(home.path("made").join(file)).unwrap();
        assert!(text.contains("https://10.0.0.2:6443"), "{file}");
        orlop_config::machine::parse(file, &text).unwrap();
    }
}

#[test]
fn generated_files_are_overwritten_only_by_force() {
    let home = generated();
    let before = fs::read(home.path("made/controlplane.yaml")).unwrap();
    fs::remove_file(home.path("made/talosconfig")).unwrap();
    let again = ["gen", "config", "trial", "https://10.0.0.2:6443", "-o", "made"];
    let ran = home.run(&again);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("made/controlplane.yaml is there already"), "{ran:?}");
    assert!(ran.stderr.contains("--force"), "{ran:?}");
    assert_eq!(fs::read(home.path("made/controlplane.yaml")).unwrap(), before);
    assert!(!home.path("made/talosconfig").exists(), "either all files are made or none");
    let ran = home.run(&[&again[..], &["--force"]].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_ne!(fs::read(home.path("made/controlplane.yaml")).unwrap(), before);
}

#[test]
fn a_configuration_is_validated_as_a_node_would() {
    let home = generated();
    for file in ["made/controlplane.yaml", "made/worker.yaml"] {
        for mode in ["cloud", "container", "metal"] {
            let ran = home.run(&["validate", "-c", file, "-m", mode]);
            let expected = format!("{file} is valid for {mode} mode\n");
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), &*expected), "{ran:?}");
            assert_eq!(ran.stderr, "");
        }
    }
    let wrong = "machine:\n  type: worker\n  token: 0123ab.0123456789abcdef\n  colour: blue\n\
        cluster:\n  token: 0123ab.0123456789abcdef\n";
    fs::write(home.path("wrong.yaml"), wrong).unwrap();
    let ran = home.run(&["validate", "--config", "wrong.yaml", "--mode", "metal"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(78), ""), "{ran:?}");
    let said: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(said.len(), 4, "{ran:?}");
    assert!(said[0].starts_with("wrong.yaml:1:1: machine.install: "), "{ran:?}");
    assert!(said[1].starts_with("wrong.yaml:4:3: machine.colour: unknown field"), "{ran:?}");
    assert!(said[2].starts_with("wrong.yaml:5:1: cluster.controlPlane.endpoint: "), "{ran:?}");
    assert_eq!(said[3], "error: wrong.yaml is not valid for metal mode");
    let ran = home.run(&["validate", "-c", "none.yaml", "-m", "metal"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let ran = home.run(&["validate", "-c", "wrong.yaml", "-m", "bare"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
}

/// What cannot stand in an example is missing in them, and nothing else is wrong.
#[test]
fn the_examples_we_ship_are_valid_but_for_an_authoritys_secrets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let ran = Home::new().run(&["validate", "-m", "metal", "-c", path.to_str().unwrap()]);
        let missing: Vec<&str> =
            ran.stderr.lines().filter(|line| line.contains(".yaml:")).collect();
        let expected = match path.ends_with("controlplane.yaml") {
            true => (Some(78), 4),
            false => (Some(0), 0),
        };
        assert_eq!((ran.code, missing.len()), expected, "{ran:?}");
        assert!(missing.iter().all(|line| line.contains("a control plane needs it")), "{ran:?}");
    }
}

#[test]
fn a_cluster_is_made_again_of_its_secrets() {
    let home = Home::new();
    let created = |args: &[&str], name: &str| {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stdout.contains(&format!("created {name}\n")), "{ran:?}");
        fs::read_to_string(home.path(name)).unwrap()
    };
    let secrets = created(&["gen", "secrets"], "secrets.yaml");
    assert_eq!(mode(&home.path("secrets.yaml")), 0o600);
    let ran = home.run(&["gen", "secrets"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("hint: --force writes over it"), "{ran:?}");
    let make = |folder: &str| {
        let args = ["gen", "config", "trial", "https://10.0.0.2:6443", "--with-secrets"];
        created(
            &[&args[..], &["secrets.yaml", "-o", folder]].concat(),
            &format!("{folder}/controlplane.yaml"),
        )
    };
    assert_eq!(make("one"), make("other"));
    let from = ["gen", "secrets", "-o", "again", "--from-controlplane-config"];
    assert_eq!(created(&[&from[..], &["one/controlplane.yaml"]].concat(), "again"), secrets);
    let ran = home
        .run(&[&from[..2], &["-o", "-", "--from-controlplane-config", "one/worker.yaml"]].concat());
    assert_eq!(ran.code, Some(64), "{ran:?}");
    fs::write(home.path("secrets.yaml"), "cluster: {}\n").unwrap();
    let ran =
        home.run(&["gen", "config", "x", "https://10.0.0.2", "--with-secrets", "secrets.yaml"]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(ran.stderr.starts_with("error: the secrets have no usable certs.os"), "{ran:?}");
}

#[test]
fn a_cluster_endpoint_that_is_no_url_is_corrected() {
    let ran = Home::new().run(&["gen", "config", "trial", "10.0.0.2"]);
    assert_eq!(ran.code, Some(64));
    assert!(ran.stderr.contains("try: \"https://10.0.0.2:6443\""), "{ran:?}");
}

#[test]
fn an_unknown_context_lists_the_known_ones() {
    let ran =
        generated().run(&["--talosconfig", "made/talosconfig", "--context", "other", "memory"]);
    assert_eq!(ran.code, Some(78));
    assert!(ran.stderr.contains("has no context \"other\""), "{ran:?}");
    assert!(ran.stderr.contains("it has: trial"), "{ran:?}");
}

#[test]
fn the_environment_names_the_client_configuration_too() {
    let home = generated();
    let mut command = home.command(&["--context", "other", "memory"]);
    let ran = command.env("TALOSCONFIG", "made/talosconfig").output().unwrap();
    assert!(String::from_utf8_lossy(&ran.stderr).contains("made/talosconfig has no context"));
}

#[test]
fn a_refused_connection_names_each_endpoint_and_what_to_check() {
    let home = generated();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (first, second) = (free().to_string(), free().to_string());
    let endpoints = format!("{first},{second}");
    let ran = home.run(&["--talosconfig", "made/talosconfig", "-e", &endpoints, "memory"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains(&first) && ran.stderr.contains(&second), "{ran:?}");
    assert!(ran.stderr.to_lowercase().contains("connection refused"), "{ran:?}");
    assert!(ran.stderr.contains("hint: is the node up"), "{ran:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = Home::new();
    let mut command = home.command(&["completion", "bash"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.len()), (Some(0), 0));
    // Nor is anything lost when what is said on stderr is not read.
    let mut child = home.command(&["memory"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(78));
}

#[test]
fn the_client_configuration_is_shown_and_changed() {
    let home = generated();
    let config = |args: &[&str]| {
        let ran = home.run(&[&["--talosconfig", "made/talosconfig", "config"], args].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    config(&["endpoint", "10.0.0.2", "10.0.0.3:50001"]);
    config(&["node", "10.0.0.4"]);
    let table = "CURRENT   NAME    ENDPOINTS                 NODES\n\
                 *         trial   10.0.0.2,10.0.0.3:50001   10.0.0.4\n";
    assert_eq!(config(&["contexts"]), table);
    assert_eq!(mode(&home.path("made/talosconfig")), 0o600);
    let ran = home.run(&["--talosconfig", "made/talosconfig", "config", "context", "other"]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
}

#[test]
fn merging_a_client_configuration_renames_what_exists() {
    let home = generated();
    fs::copy(home.path("made/talosconfig"), home.path("more")).unwrap();
    let ran = home.run(&["--talosconfig", "made/talosconfig", "config", "merge", "more"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stderr, "renamed talosconfig context \"trial\" -> \"trial-1\"\n");
    let ran = home.run(&["--talosconfig", "made/talosconfig", "config", "contexts"]);
    assert!(ran.stdout.contains("\n*         trial-1"), "{ran:?}");
    let ran = home.run(&["config", "merge", "more"]);
    assert_eq!(ran.code, Some(0), "a first configuration is made: {ran:?}");
    assert_eq!((mode(&home.path(".talos")), mode(&home.path(".talos/config"))), (0o700, 0o600));
}

#[test]
fn a_context_is_made_of_files_shown_and_removed() {
    let home = generated();
    let config = orlop_config::client::Configuration::read(&home.path("made/talosconfig")).unwrap();
    let context = &config.contexts["trial"];
    for (file, text) in
        [("ca.crt", &*context.ca), ("a.crt", &*context.crt), ("a.key", context.key.expose())]
    {
        fs::write(home.path(file), text).unwrap();
    }
    let add = ["config", "add", "mine", "--ca", "ca.crt", "--crt", "a.crt", "--key", "a.key"];
    let ran = home.run(&[&add[..], &["-e", "10.0.0.9"]].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = home.run(&["config", "info"]);
    let shown = "Current context:       mine\nNodes:                 not defined\n\
        Endpoints:             10.0.0.9\nRoles:                 os:admin\n\
        Certificate expires:   in 36";
    assert!(ran.stdout.starts_with(shown), "{ran:?}");
    let ran = home.run(&add);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("has a context \"mine\" already\nhint: --force"), "{ran:?}");
    fs::write(home.path("a.key"), "no key").unwrap();
    let ran = home.run(&[&add[..], &["--force"]].concat());
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(ran.stderr.starts_with("error: the files do not make an identity: "), "{ran:?}");
    let ran = home.run(&["config", "remove", "mine", "--dry-run"]);
    assert!(ran.stderr.starts_with("would remove context \"mine\""), "{ran:?}");
    let ran = home.run(&["config", "remove", "mine"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.starts_with("note: \"mine\" was the current context"), "{ran:?}");
    let ran = home.run(&["config", "remove", "mine"]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
}

#[test]
fn keys_and_certificates_are_made_one_by_one() {
    let home = Home::new();
    let made = |args: &[&str], files: &str| {
        let ran = home.run(&[&["gen"], args].concat());
        let said: String = files.split(' ').map(|file| format!("created {file}\n")).collect();
        assert_eq!((ran.code, ran.stdout), (Some(0), said), "{}", ran.stderr);
    };
    let text = |file: &str| fs::read_to_string(home.path(file)).unwrap();
    made(&["ca", "--organization", "me"], "me.crt me.key me.sha256");
    assert_eq!(mode(&home.path("me.key")), 0o600);
    made(&["key", "--name", "node"], "node.key");
    made(&["csr", "--key", "node.key", "--ip", "10.0.0.2,fd00::2"], "node.csr");
    made(&["crt", "--ca", "me", "--csr", "node.csr", "--name", "node"], "node.crt");
    let (_, ips) = orlop_pki::certificate::names(&text("node.crt")).unwrap();
    assert_eq!(ips, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
    made(&["key", "--name", "admin"], "admin.key");
    made(&["csr", "--key", "admin.key", "--role", "os:admin"], "admin.csr");
    made(&["crt", "--ca", "me", "--csr", "admin.csr", "--name", "admin"], "admin.crt");
    // A client with it is let in by a server with the other.
    let client = orlop_pki::tls::client_config(
        &text("me.crt"),
        Some((&text("admin.crt"), &text("admin.key"))),
    );
    let server =
        orlop_pki::tls::server_config(&text("me.crt"), &text("node.crt"), &text("node.key"));
    assert!(client.is_ok() && server.is_ok());
    let der = orlop_pki::encoding::certificates(&text("admin.crt")).unwrap();
    assert_eq!(orlop_pki::certificate::organizations(&der[0]).unwrap(), ["os:admin"]);
    made(&["keypair", "--organization", "alone", "--dns", "a.example"], "alone.crt alone.key");
    let (dns, _) = orlop_pki::certificate::names(&text("alone.crt")).unwrap();
    assert_eq!(dns, ["a.example"]);
    let ran = home.run(&["gen", "key", "--name", "node"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let ran = home.run(&["gen", "crt", "--ca", "node", "--csr", "node.csr", "--name", "x"]);
    assert_eq!(ran.code, Some(1), "a node's certificate is no authority: {ran:?}");
}

#[test]
fn a_machine_configuration_is_patched_into_one_that_a_node_takes() {
    let home = generated();
    let patch = "machine:\n  network:\n    hostname: node-1\n";
    fs::write(home.path("patch.yaml"), patch).unwrap();
    let arguments = ["machineconfig", "patch", "made/worker.yaml", "-p"];
    let operation = r#"[{"op": "replace", "path": "/machine/install/disk", "value": "/dev/vda"}]"#;
    let ran =
        home.run(&[&arguments[..], &["@patch.yaml", "-p", operation, "-o", "n.yaml"]].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(mode(&home.path("n.yaml")), 0o600);
    let text = fs::read_to_string(home.path("n.yaml")).unwrap();
    assert!(text.contains("hostname: node-1") && text.contains("disk: /dev/vda"), "{text}");
    let ran = home.run(&["validate", "-c", "n.yaml", "-m", "metal"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = home.run(&[&arguments[..], &["machine: {colour: blue}"]].concat());
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(64), ""), "{ran:?}");
    assert!(ran.stderr.contains("machine.colour: unknown field"), "{ran:?}");
}

/// Runs a shell; `None` where it is not installed.
fn shell(name: &str, script: &str) -> Option<Ran> {
    let mut command = std::process::Command::new(name);
    match command.args(["-c", script]).output() {
        Ok(output) => Some(output.into()),
        Err(error) => {
            println!("skipped: {name} does not run: {error}");
            None
        }
    }
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let home = Home::new();
    fs::write(home.path("script"), home.run(&["completion", "bash"]).stdout).unwrap();
    let script = home.path("script");
    for (typed, expected) in [
        (&["mem"][..], &["memory"][..]),
        (&["config", "con"], &["contexts", "context"]),
        (&["memory", "-o", ""], &["table", "json", "yaml"]),
        (&["dashboard", "--update"], &["--update-interval"]),
        (&["service", "apid", "rest"], &["restart"]),
        (&["completion", "f"], &["fish"]),
    ] {
        let (last, before) = typed.split_last().unwrap();
        let previous = before.last().unwrap_or(&"orlopctl");
        let words: String = typed.iter().map(|word| format!(" '{word}'")).collect();
        // As bash calls what `complete -F` names; what is not there is no completion.
        let asked = format!(
            "source {}; COMP_WORDS=(orlopctl{words}); COMP_CWORD={}; compopt() {{ :; }}\n\
             complete -p orlopctl >/dev/null || exit 1\n\
             _orlopctl orlopctl '{last}' '{previous}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            typed.len(),
        );
        let Some(ran) = shell("bash", &asked) else { return };
        let mut offered: Vec<_> = ran.stdout.lines().collect();
        let mut expected = expected.to_vec();
        offered.sort_unstable();
        expected.sort_unstable();
        assert_eq!((ran.code, &offered), (Some(0), &expected), "{typed:?}: {ran:?}");
    }
}

#[test]
fn patches_of_all_and_of_each_kind_are_laid_over_what_is_made() {
    let home = Home::new();
    let all = "machine: {sysctls: {vm.swappiness: '1'}}";
    let planes = "machine: {sysctls: {net.core.somaxconn: '99'}}";
    fs::write(home.path("worker.patch"), "machine: {sysctls: {vm.swappiness: '7'}}").unwrap();
    let worker = format!("@{}", home.path("worker.patch").display());
    let mut args = vec!["gen", "config", "trial", "https://10.0.0.2:6443", "-o", "made"];
    args.extend(["--config-patch", all, "--config-patch-control-plane", planes]);
    args.extend(["--config-patch-worker", &worker]);
    let ran = home.run(&args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let sysctls = |file: &str| {
        let text = fs::read_to_string(home.path("made").join(file)).unwrap();
        let lines = text.lines().map(str::trim).filter(|line| line.contains('.'));
        let wanted = |line: &&str| line.starts_with("vm.") || line.starts_with("net.core");
        lines.filter(wanted).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sysctls("controlplane.yaml"), ["vm.swappiness: '1'", "net.core.somaxconn: '99'"]);
    assert_eq!(sysctls("worker.yaml"), ["vm.swappiness: '7'"]);
    // What no node would take is not made.
    let wrong = ["gen", "config", "trial", "https://10.0.0.2:6443", "-o", "other"];
    let ran = home.run(&[&wrong[..], &["--config-patch", "machine: {type: 7}"]].concat());
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert!(!home.path("other").join("worker.yaml").exists());
}

#[test]
fn fish_completes_commands_and_zsh_reads_its_script() {
    let home = Home::new();
    for shell in ["fish", "zsh"] {
        fs::write(home.path(shell), home.run(&["completion", shell]).stdout).unwrap();
    }
    let asked = format!("source {}; complete -C 'orlopctl memo'", home.path("fish").display());
    if let Some(ran) = shell("fish", &asked) {
        assert!(ran.stdout.starts_with("memory\t"), "{ran:?}");
    }
    // As compinit would load it: the function is defined, and its arguments are those of _arguments.
    let asked = format!(
        "_arguments() {{ print -l -- $@ }}; compdef() {{ print compdef $@ }}; state=; \
         source {} && whence -w _orlopctl && _orlopctl",
        home.path("zsh").display()
    );
    if let Some(ran) = shell("zsh", &asked) {
        assert!(ran.stdout.contains("_orlopctl: function"), "{ran:?}");
        assert!(ran.stdout.contains("--talosconfig="), "{ran:?}");
    }
}

/// The permission bits of a file.
fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
