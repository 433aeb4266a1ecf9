//! The API server as `kubectl` sees it: three generations of it, unchanged, run the scripts of `tests/kube/*.txt`
//! (spec/kube-api §7.1), and what they print is compared with what is written there.
//!
//! A script has lines as a user types them behind `$ ` (continued behind `> `), and below each what is printed, standard
//! error last, and `[exit N]` where that is not 0. A line behind `{1.20}` or `{1.32,1.36}` is of these generations only.
//! What differs from run to run is replaced: see [`plain`]. Each script has a server of its own, for each generation;
//! and a server over an etcd of its own, for each generation of etcd, of which the oldest is driven by the oldest kubectl
//! and so on. All read the same.
//!
//! `ORLOP_KUBECTL` names the programs, with colons between them (`make integration` gets them by `.ci/unpacked
//! tests/kubectl-*.lock`); without it there is nothing to run. `BLESS=1` writes down what is printed instead of
//! comparing it: read it well. `ONLY=k2` runs the scripts whose names begin so. Which etcds there are is told by
//! [`etcd_server::programs`].

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../src/store/tests/etcd_server/mod.rs"]
mod etcd_server;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use regex_lite::Regex;

fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// `orlop apiserver` in a folder of its own, ready; killed with the test.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
    /// Its store, where that is not in its folder.
    _etcd: Option<etcd_server::Server>,
}

impl Server {
    fn start(kubectl: &Kubectl, etcd: Option<&Path>) -> Self {
        let etcd = etcd.map(etcd_server::Server::start);
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("bin")).unwrap();
        symlink(&kubectl.program, at("bin/kubectl")).unwrap();
        let log = fs::File::create(at("server.log")).unwrap();
        let mut child = Command::new(binary())
            .args(["apiserver", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(at("data"))
            .args(etcd.iter().flat_map(|etcd| ["--store".to_owned(), etcd.url()]))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        // It says so when it is ready, not before.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("export KUBECONFIG=")));
        let server = Self { child, folder, _etcd: etcd };
        assert!(ready, "the server ended: {}", server.log());
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Runs a line of a script to its end; what it prints, and its exit code where that is not 0.
    fn run(&self, line: &str) -> String {
        let folder = self.folder.path();
        let mut child = Command::new("timeout")
            .args(["--kill-after=5", &LIMIT.as_secs().to_string(), "sh", "-c", line])
            .env_clear()
            .env("PATH", format!("{}/bin:/usr/bin:/bin", folder.display()))
            .env("HOME", folder)
            .env("KUBECONFIG", folder.join("data/kubeconfig"))
            .env("INPUT", INPUT)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().flush().unwrap();
        let output = child.wait_with_output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &String::from_utf8_lossy(&output.stderr);
        let mut text = plain(&text, folder);
        match output.status.code() {
            Some(0) => {}
            Some(code) => writeln!(text, "[exit {code}]").unwrap(),
            None => text += "[killed]\n",
        }
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The scripts and what they use.
const INPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kube");
/// Nothing a script does takes this long, on however slow a machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What is printed, without what differs from run to run: `UID`, `RV` (a resource version), `TIME`, `AGE`, `DIGEST`,
/// `SERVER`, `HOME`, `INPUT`; colours and empty lines go, and columns are two blanks apart.
fn plain(text: &str, folder: &Path) -> String {
    static REPLACED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let replaced = [
            (r"\x1b\[[0-9;]*m", ""),
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+\d\d:\d\d)", "TIME"),
            (r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "TIME"),
            (r#"(resourceVersion"?: ?)"\d+""#, "${1}\"RV\""),
            (r"[0-9a-f]{64}", "DIGEST"),
            (r"kubectl-edit-\w+", "kubectl-edit-NAME"),
            (r"https://127\.0\.0\.1:\d+", "SERVER"),
            (r"\b(\d+m)?\d+s\b", "AGE"),
            (r"(\S) {2,}", "$1  "),
            (r" +$", ""),
        ];
        replaced.map(|(pattern, with)| (Regex::new(pattern).unwrap(), with)).to_vec()
    });
    let mut plain = String::new();
    let text = text.replace(&folder.display().to_string(), "HOME").replace(INPUT, "INPUT");
    for line in text.lines() {
        let mut line = line.replace('\t', "  ");
        for (pattern, with) in REPLACED.iter() {
            line = pattern.replace_all(&line, *with).into_owned();
        }
        if !line.trim().is_empty() {
            plain += &line;
            plain.push('\n');
        }
    }
    plain
}

/// One generation.
#[derive(Clone, Debug)]
struct Kubectl {
    program: PathBuf,
    /// `1.36`, as scripts name it.
    generation: String,
}

/// All that are there, oldest first; none is told.
fn kubectls() -> Vec<Kubectl> {
    let Ok(programs) = std::env::var("ORLOP_KUBECTL") else {
        println!("skipped: ORLOP_KUBECTL names no kubectl; make integration gets three of them");
        return Vec::new();
    };
    let version = Regex::new(r#"(?:GitVersion:"|gitVersion": ")v((\d+\.\d+)[^"]*)"#).unwrap();
    let kubectl = |program: &str| {
        let output = Command::new(program).args(["version", "--client", "-o", "json"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let found = version.captures(&text).unwrap_or_else(|| panic!("{program}: {text}"));
        println!("kubectl {}", &found[1]);
        Kubectl { program: program.into(), generation: found[2].to_owned() }
    };
    programs.split(':').map(kubectl).collect()
}

/// A line to type, and what must come.
#[derive(Debug, Default)]
struct Step {
    comments: String,
    line: Line,
    expected: Vec<Line>,
}

/// A line of a script, of some generations only.
#[derive(Clone, Debug, Default)]
struct Line {
    of: Option<String>,
    text: String,
}

impl Line {
    fn parse(line: &str) -> Self {
        let some = line.strip_prefix('{').and_then(|rest| rest.split_once("} "));
        match some.filter(|(of, _)| of.bytes().all(|byte| b"0123456789.,".contains(&byte))) {
            Some((of, text)) => Self { of: Some(of.to_owned()), text: text.to_owned() },
            None => Self { of: None, text: line.to_owned() },
        }
    }

    fn is_of(&self, generation: &str) -> bool {
        self.of.as_ref().is_none_or(|of| of.split(',').any(|one| one == generation))
    }

    fn written(&self) -> String {
        self.of.as_ref().map_or_else(|| self.text.clone(), |of| format!("{{{of}}} {}", self.text))
    }
}

fn steps(script: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut comments = String::new();
    for line in script.lines() {
        if line.is_empty() || line.starts_with('#') {
            comments += &format!("{line}\n");
            continue;
        }
        let Line { of, text } = Line::parse(line);
        if let Some(typed) = text.strip_prefix("$ ") {
            let line = Line { of, text: typed.to_owned() };
            steps.push(Step {
                comments: std::mem::take(&mut comments),
                line,
                expected: Vec::new(),
            });
            continue;
        }
        let step = steps.last_mut().expect("a script begins with a line to type");
        match text.strip_prefix("> ").filter(|_| step.expected.is_empty()) {
            Some(more) => step.line.text += &format!("\n{more}"),
            None => step.expected.push(Line { of, text }),
        }
    }
    steps
}

/// What each step of a script printed, where it was of the generation, and the server's log.
type Played = (Vec<Option<String>>, String);

/// Runs a script.
fn play(kubectl: &Kubectl, etcd: Option<&Path>, steps: &[Step]) -> Played {
    let server = Server::start(kubectl, etcd);
    let run =
        |step: &Step| step.line.is_of(&kubectl.generation).then(|| server.run(&step.line.text));
    let told = steps.iter().map(run).collect();
    (told, server.log())
}

#[test]
fn three_generations_of_kubectl_read_as_the_golden_scripts() {
    let kubectls = kubectls();
    if kubectls.is_empty() {
        return;
    }
    let folder = Path::new(INPUT);
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".txt") && name.starts_with(&only))
        .collect();
    names.sort();
    let scripts: Vec<_> = names
        .iter()
        .map(|name| (name, steps(&fs::read_to_string(folder.join(name)).unwrap())))
        .collect();
    // What is compared tells no back end from another, so it is written by one.
    let bless = std::env::var_os("BLESS").is_some();
    let etcds = if bless { Vec::new() } else { etcd_server::programs() };
    let embedded = kubectls.iter().map(|kubectl| (kubectl, None));
    let over_etcd = etcds.iter().zip(kubectls.iter().cycle());
    for etcd in &etcds {
        let output = Command::new(etcd).arg("--version").output().unwrap().stdout;
        println!("{}", String::from_utf8_lossy(&output).lines().next().unwrap_or_default());
    }
    let runs: Vec<_> =
        embedded.chain(over_etcd.map(|(etcd, kubectl)| (kubectl, Some(&**etcd)))).collect();
    // Each by itself, beside the others.
    let played: Vec<Vec<Played>> = std::thread::scope(|scope| {
        let play_all =
            |(kubectl, etcd)| scripts.iter().map(|(_, steps)| play(kubectl, etcd, steps)).collect();
        let players: Vec<_> = runs.iter().map(|run| scope.spawn(move || play_all(*run))).collect();
        players.into_iter().map(|player| player.join().unwrap()).collect()
    });
    let mut wrong = String::new();
    for (at, (name, steps)) in scripts.iter().enumerate() {
        if bless {
            let told = kubectls.iter().zip(&played).map(|(one, all)| (one, &all[at]));
            fs::write(folder.join(name), blessed(steps, &told.collect::<Vec<_>>())).unwrap();
            continue;
        }
        for ((kubectl, etcd), all) in runs.iter().zip(&played) {
            let (told, log) = &all[at];
            let before = wrong.len();
            for (step, told) in steps.iter().zip(told) {
                let Some(told) = told else { continue };
                let expected = step.expected.iter().filter(|line| line.is_of(&kubectl.generation));
                let expected: String = expected.map(|line| format!("{}\n", line.text)).collect();
                if expected != *told {
                    let Step { line: Line { text, .. }, .. } = step;
                    let generation = &kubectl.generation;
                    let over = etcd.map(|etcd| format!(" over {}", etcd.display()));
                    let over = over.unwrap_or_default();
                    let _ = writeln!(
                        wrong,
                        "\n{name}, kubectl {generation}{over}: $ {text}\n--- expected\n{expected}--- printed\n{told}"
                    );
                }
            }
            if wrong.len() > before {
                let _ = writeln!(wrong, "--- the server's log\n{log}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A script with what was printed: lines of all generations once, others for those they are of.
fn blessed(steps: &[Step], told: &[(&Kubectl, &Played)]) -> String {
    let mut script = String::new();
    for (at, step) in steps.iter().enumerate() {
        script += &step.comments;
        let typed = Line { of: step.line.of.clone(), text: format!("$ {}", step.line.text) };
        script += &typed.written().replace('\n', "\n> ");
        script.push('\n');
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut order = Vec::new();
        for (kubectl, (told, _)) in told {
            if let Some(told) = &told[at] {
                let group = groups.entry(told).or_default();
                if group.is_empty() {
                    order.push(told);
                }
                group.push(&kubectl.generation);
            }
        }
        for text in &order {
            let of = (order.len() > 1).then(|| groups[text.as_str()].join(","));
            for line in text.lines() {
                script += &Line { of: of.clone(), text: line.to_owned() }.written();
                script.push('\n');
            }
        }
    }
    script
}
