//! `orlop-qemu run`: one control-plane node under QEMU in the foreground, for `make run`.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use orlop_qemu::accel::Accel;
use orlop_qemu::serve::Server;
use orlop_qemu::{Boot, Cluster, Console, Forward, Machine, Operator, READY, out};
use regex_lite::Regex;
use serde_yaml::Value;

/// Boots nodes under QEMU.
#[derive(Debug, Parser)]
#[command(name = "orlop-qemu")]
enum Options {
    /// Boot one control-plane node, show its memory, keep it until Ctrl-C.
    Run {
        /// Shut down as soon as the node has answered.
        #[arg(long)]
        oneshot: bool,
        /// The first of four ports on 127.0.0.1, in the order apid, trustd, API server, curator, instead
        /// of those of the node.
        #[arg(long)]
        port_base: Option<u16>,
    },
    /// Print the guest accelerator that is used here.
    Accel,
}

fn main() -> ExitCode {
    let result = match Options::parse() {
        Options::Run { oneshot, port_base } => run(oneshot, port_base),
        Options::Accel => Accel::from_environment().map(|accel| println!("{accel}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(oneshot: bool, port_base: Option<u16>) -> Result<()> {
    let started = Instant::now();
    let (up, interrupts) = catch_interrupts()?;
    let accel = Accel::from_environment()?;
    let forwards = forwards(port_base)?;
    let apid = forwards[0].host;
    let cluster = Cluster::in_folder(&out())?;
    cluster.set_endpoint(&endpoint(apid))?;
    let config = Server::of("controlplane.yaml", cluster.controlplane()?)?;
    let log = out().join("console.log");
    println!("booting a control-plane node ({accel}); its console: {}", shown(&log));

    let mut node = Boot::node(accel)?
        .argument(format!("talos.config={}", config.url()))
        .argument("talos.hostname=orlop")
        .network(&forwards)
        .log(log.clone())
        .start()?;
    let progress = Progress::start(node.console(), started);
    let ready = node.console().wait(READY, BOOT_LIMIT);
    progress.end();
    ready?;
    let operator = Operator::new(&cluster, apid);
    let memory = operator.run(&["memory"])?;
    println!("healthy after {:.1} s\n\n{memory}", started.elapsed().as_secs_f64());
    let kubeconfig = write_kubeconfig(&operator, forwards[2].host)?;
    show_namespaces(&operator, &kubeconfig)?;
    up.store(true, Ordering::Relaxed);

    if !oneshot {
        println!("apid      127.0.0.1:{apid}");
        println!("console   {}", shown(&log));
        println!(
            "talk to   {} orlopctl --talosconfig {} services",
            shown(&out().join("orlop")),
            shown(&cluster.talosconfig())
        );
        println!("          KUBECONFIG={} kubectl get namespaces", shown(&kubeconfig));
        println!("Ctrl-C shuts the node down");
        match stay(&node, &interrupts) {
            End::Off => {
                println!("the node went off; its console: {}", shown(&log));
                return Ok(());
            }
            End::Interrupted => println!("\nshutting down (Ctrl-C again pulls the plug)"),
        }
        up.store(false, Ordering::Relaxed);
    }
    operator.run(&["shutdown"])?;
    node.wait_off(SHUTDOWN_LIMIT)?;
    println!("the node is off; its console: {}", shown(&log));
    Ok(())
}

/// The node's kubeconfig for this machine, where the API server is behind `port` of 127.0.0.1.
fn write_kubeconfig(operator: &Operator, port: u16) -> Result<PathBuf> {
    let mut document: Value = serde_yaml::from_str(&operator.run(&["kubeconfig", "-"])?)?;
    let server = document
        .get_mut("clusters")
        .and_then(|clusters| clusters.get_mut(0)?.get_mut("cluster")?.get_mut("server"))
        .context("the kubeconfig names no server")?;
    *server = format!("https://127.0.0.1:{port}").into();
    let (path, text) = (out().join("kubeconfig"), serde_yaml::to_string(&document)?);
    // It has a key in it. One that is there may be anybody's to read.
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())
    };
    write().with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Has kubectl ask the node's API server, as soon as that is ready.
fn show_namespaces(operator: &Operator, kubeconfig: &Path) -> Result<()> {
    let Some(kubectl) = std::env::var_os("ORLOP_KUBECTL") else {
        println!(
            "skipped: kubectl get namespaces: ORLOP_KUBECTL names no kubectl; make run gets one\n"
        );
        return Ok(());
    };
    let deadline = Instant::now() + APISERVER_LIMIT;
    loop {
        let services = operator.rows(&["services"])?;
        let server = services.iter().find(|row| row.text("service") == "apiserver");
        let server = server.context("the node has no service apiserver")?;
        if server.text("health") == "OK" {
            break;
        }
        ensure!(Instant::now() < deadline, "the API server is not ready: {server:?}");
        thread::sleep(Duration::from_millis(250));
    }
    let mut command = Command::new(kubectl);
    command.args(["--request-timeout=30s", "get", "namespaces", "--kubeconfig"]).arg(kubeconfig);
    let output = command.output().context("start kubectl")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl get namespaces: {}", told.trim_end());
    println!("$ kubectl get namespaces\n{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// What ended the stay in the foreground.
enum End {
    Off,
    Interrupted,
}

fn stay(node: &Machine, interrupts: &Receiver<()>) -> End {
    loop {
        if interrupts.recv_timeout(Duration::from_millis(200)).is_ok() {
            return End::Interrupted;
        }
        if node.console().wait_for_end(Duration::ZERO) {
            return End::Off;
        }
    }
}

/// From here on SIGINT and SIGTERM come to a thread of their own. While the flag is set, one is passed
/// on; otherwise they end the program (and QEMU with it, which has asked the kernel for that).
fn catch_interrupts() -> Result<(Arc<AtomicBool>, Receiver<()>)> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("take over the interrupts")?;
    let up = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = mpsc::sync_channel(1);
    let is_up = Arc::clone(&up);
    // Ends with the program.
    thread::spawn(move || {
        while signals.wait().is_ok() {
            if !is_up.load(Ordering::Relaxed) || sender.try_send(()).is_err() {
                exit(130);
            }
        }
    });
    Ok((up, receiver))
}

fn forwards(port_base: Option<u16>) -> Result<Vec<Forward>> {
    let at = |(i, guest): (u16, u16)| {
        let host = match port_base {
            Some(base) => base.checked_add(i).context("PORT_BASE is too high")?,
            None => guest,
        };
        Ok(Forward { host, guest: (std::net::Ipv4Addr::UNSPECIFIED, guest) })
    };
    (0..).zip(PORTS).map(at).collect()
}

/// As the operator types it: the port only where it is not apid's own.
fn endpoint(apid: u16) -> String {
    if apid == PORTS[0] { "127.0.0.1".to_owned() } else { format!("127.0.0.1:{apid}") }
}

/// A path as short as it can be typed from here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

/// Where the boot is: a line that changes on a terminal, a line for each phase elsewhere.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn start(console: &Console, started: Instant) -> Self {
        let style = ProgressStyle::with_template("{spinner} [{elapsed:>4}] {wide_msg}");
        let bar = ProgressBar::new_spinner()
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
            .with_message("firmware");
        bar.enable_steady_tick(Duration::from_millis(120));
        let (console, shown) = (console.clone(), bar.clone());
        // Ends with the boot, or with the guest.
        thread::spawn(move || {
            let phases: Vec<(Regex, &str)> = PHASES
                .iter()
                .filter_map(|(text, name)| Some((Regex::new(text).ok()?, *name)))
                .collect();
            let mut phase = 0;
            console.each_line(|line| {
                let reached = phases.iter().rposition(|(marker, _)| marker.is_match(&line.text));
                if let Some(reached) = reached.filter(|reached| *reached >= phase) {
                    phase = reached + 1;
                    let seconds = line.at.duration_since(started).as_secs_f64();
                    if shown.is_hidden() {
                        println!("[{seconds:6.1} s] {}", phases[reached].1);
                    }
                    shown.set_message(phases[reached].1);
                }
                phase < phases.len() && !shown.is_finished()
            });
        });
        Self { bar }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// The first sign of each phase of a boot, in order.
const PHASES: [(&str, &str); 6] = [
    ("Booting from|Linux version", "kernel"),
    (r"init: |\[init\] ", "init: mounting the root"),
    (r"machined: |\[machined\] ", "machined: getting the machine ready"),
    (r" service\[containerd\]\(Running\): Health", "containerd is ready"),
    (r" service\[apid\]", "starting the other services"),
    (READY, "every service is healthy"),
];
/// apid, trustd, the API server, the curator.
const PORTS: [u16; 4] = [50000, 50001, 6443, 7835];
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// From a healthy node to an API server that is ready; emulated, its start takes seconds.
const APISERVER_LIMIT: Duration = Duration::from_secs(120);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
