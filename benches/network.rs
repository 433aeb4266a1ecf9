//! networkd beside what others use, each in network namespaces of its own: from a link that is up to an
//! address, beside `udhcpc` and `dhclient` with the same dnsmasq; a thousand links with four addresses and
//! four routes each, beside `ip -batch`; and what it occupies, beside systemd-networkd. Prints a line for
//! each: `network NAME p50_ms=…`, the median of its rounds, or `network NAME mib=…`; benches/figures.rs
//! reads them. What needs a program that is not there is left out, and stderr says so.
//!
//! dhclient and udhcpc take an address without asking whether another host has it, unless udhcpc is given
//! `-a`; networkd asks three times, 60 ms apart. So networkd is measured with and without that, and udhcpc,
//! too.
//!
//! Needs root, `ip`, dnsmasq, and the binary: `ORLOP`, or out/orlop, or else this program itself runs the
//! role, which then has fewer pages than in the binary.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use orlop_netlink::{Changes, Netlink};
use orlop_networkd::figures;

const ROUNDS: usize = 9;
const LINKS: usize = 1000;
const LIMIT: Duration = Duration::from_secs(60);
/// Until a daemon that has its address has done what comes with it, and ours has let go of its start.
const SETTLE: Duration = Duration::from_secs(12);
/// What udhcpc runs when it has an address, in as few words as will do: its own script takes longer.
const SCRIPT: &str = "#!/bin/sh\n\
    [ \"$1\" = bound ] && exec ip address add \"$ip/$mask\" dev \"$interface\"\nexit 0\n";
/// The same for dhclient.
const DHCLIENT_SCRIPT: &str = "#!/bin/sh\n\
    [ \"$reason\" = BOUND ] && exec ip address add \"$new_ip_address/24\" dev \"$interface\"\nexit 0\n";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|role| role == "networkd") {
        return orlop_networkd::main(args);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench: networkd is left out: network namespaces need root");
        return Ok(());
    }
    let orlop = std::env::var("ORLOP")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../out/orlop").to_owned());
    let itself = std::env::current_exe()?.display().to_string();
    let orlop = if Path::new(&orlop).exists() { orlop } else { itself };
    leases(&orlop)?;
    occupied(&orlop)?;
    links()
}

/// A program that keeps an address for `eth0`.
struct Client {
    name: &'static str,
    command: fn(&str, &Path) -> Vec<String>,
}

const CLIENTS: [Client; 5] = [
    Client { name: "lease_networkd", command: |orlop, folder| networkd(orlop, folder, "3") },
    Client {
        name: "lease_networkd_unprobed",
        command: |orlop, folder| networkd(orlop, folder, "0"),
    },
    Client { name: "lease_udhcpc", command: |_, folder| udhcpc(folder, &[]) },
    Client { name: "lease_udhcpc_probed", command: |_, folder| udhcpc(folder, &["-a180"]) },
    Client {
        name: "lease_dhclient",
        command: |_, folder| {
            let path = |name: &str| folder.join(name).display().to_string();
            let files = [path("dhclient.sh"), path("leases"), path("pid")];
            let [script, leases, pid] = &files;
            ["dhclient", "-4", "-d", "-q", "-sf", script, "-lf", leases, "-pf", pid, "eth0"]
                .map(str::to_owned)
                .to_vec()
        },
    },
];

fn udhcpc(folder: &Path, more: &[&str]) -> Vec<String> {
    let script = folder.join("udhcpc.sh").display().to_string();
    let fixed = ["udhcpc", "-f", "-q", "-i", "eth0", "-s", &script];
    fixed.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

fn networkd(orlop: &str, folder: &Path, probes: &str) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut words = vec![orlop.to_owned(), "networkd".to_owned(), "--keep-host-name".to_owned()];
    for (option, value) in [
        ("--socket", path("networkd.sock")),
        ("--config", path("absent.yaml")),
        ("--cmdline", path("cmdline")),
        ("--state", path("state")),
        ("--resolv-conf", path("resolv.conf")),
        ("--time-servers", path("time_servers")),
        ("--hosts", path("hosts")),
        ("--arp-probes", probes.to_owned()),
    ] {
        words.extend([option.to_owned(), value]);
    }
    words
}

/// The time from a link with carrier to an address, for each client in turn, so that all meet the same
/// machine.
fn leases(orlop: &str) -> Result<()> {
    let mut times: [Vec<Duration>; CLIENTS.len()] = std::array::from_fn(|_| Vec::new());
    let usable: Vec<bool> = CLIENTS
        .iter()
        .map(|client| {
            let program = (client.command)(orlop, Path::new("/")).remove(0);
            let there = runs(&program);
            if !there {
                eprintln!("bench: {} is left out: no {program}", client.name);
            }
            there
        })
        .collect();
    if !runs("dnsmasq") {
        eprintln!("bench: leases are left out: no dnsmasq");
        return Ok(());
    }
    for _ in 0..ROUNDS {
        for (at, client) in CLIENTS.iter().enumerate().filter(|(at, _)| usable[*at]) {
            let world = World::new()?;
            times[at].push(world.lease(&(client.command)(orlop, world.folder.path()))?.0);
        }
    }
    for (client, times) in CLIENTS.iter().zip(times) {
        tell(client.name, times);
    }
    Ok(())
}

/// Resident memory with one link that has an address.
fn occupied(orlop: &str) -> Result<()> {
    let world = World::new()?;
    let (_, mut child) = world.lease(&networkd(orlop, world.folder.path(), "0"))?;
    std::thread::sleep(SETTLE);
    resident("networkd", child.id())?;
    child.kill()?;
    child.wait()?;
    let theirs = "/lib/systemd/systemd-networkd";
    if !Path::new(theirs).exists() {
        eprintln!("bench: systemd-networkd is left out: no {theirs}");
        return Ok(());
    }
    let world = World::new()?;
    let etc = world.folder.path().join("network");
    fs::create_dir(&etc)?;
    fs::write(etc.join("1.network"), "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n")?;
    // Folders of its own, so that the machine's stay as they are; and it waits for udev unless `/sys` is
    // read-only, as in containers.
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/netif/links /run/systemd/netif/leases \
         /run/systemd/netif/lldp /run/systemd/network && cp {}/1.network /run/systemd/network && \
         chown -R systemd-network /run/systemd/netif && mount -o bind,remount,ro /sys && \
         exec {theirs}",
        etc.display()
    );
    let words = ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned);
    match world.lease(&words) {
        Ok((_, mut child)) => {
            std::thread::sleep(SETTLE);
            resident("systemd_networkd", child.id())?;
            child.kill()?;
            child.wait()?;
        }
        Err(error) => eprintln!("bench: systemd-networkd is left out: {error}"),
    }
    Ok(())
}

/// All of it, and what is not a file's: a binary's pages are shared with every other role.
fn resident(name: &str, pid: u32) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |key: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|rest| rest.split_whitespace().nth(1)).ok_or("no such line")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    };
    println!("network resident_{name} mib={:.2}", mib("VmRSS")?);
    println!("network resident_{name}_anonymous mib={:.2}", mib("RssAnon")?);
    Ok(())
}

/// Makes a thousand links what they shall be, and looks whether they are.
fn links() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut ours, mut theirs, mut nothing) = (Vec::new(), Vec::new(), Vec::new());
    let (config, batch) = (configuration(), batch());
    let path = folder.path().join("batch");
    fs::write(&path, batch)?;
    for _ in 0..3 {
        many_links(|| {
            let since = Instant::now();
            let done = Command::new("ip").arg("-batch").arg(&path).status()?;
            if !done.success() {
                return Err("ip -batch fails".into());
            }
            theirs.push(since.elapsed());
            Ok(())
        })?;
        many_links(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let turns = runtime.block_on(figures::reconcile(folder.path(), &config, 5))?;
            let [first, again @ ..] = &turns[..] else { return Err("no turn".into()) };
            ours.push(*first);
            nothing.extend(again);
            Ok(())
        })?;
    }
    tell("apply_networkd", ours);
    tell("apply_ip", theirs);
    tell("nothing_to_do", nothing);
    Ok(())
}

fn link_names() -> impl Iterator<Item = (usize, String)> {
    (0..LINKS).map(|number| (number, format!("l{number}")))
}

/// The addresses of a link, and where its routes lead.
fn of_link(number: usize) -> ([String; 4], [String; 4]) {
    let (high, low) = (number / 250, number % 250);
    (
        std::array::from_fn(|at| format!("10.{}.{low}.{}/24", high * 4 + at, at + 1)),
        std::array::from_fn(|at| format!("172.{}.{low}.0/24", 16 + high * 4 + at)),
    )
}

fn configuration() -> String {
    let mut text = String::from("interfaces:\n");
    for (number, name) in link_names() {
        let (addresses, routes) = of_link(number);
        let routes = routes.map(|to| format!("{{network: {to}}}")).join(", ");
        let _ = writeln!(
            text,
            "- {{interface: {name}, addresses: [{}], routes: [{routes}]}}",
            addresses.join(", ")
        );
    }
    text
}

fn batch() -> String {
    let mut text = String::new();
    for (number, name) in link_names() {
        let (addresses, routes) = of_link(number);
        let _ = writeln!(text, "link set {name} up");
        for address in addresses {
            let _ = writeln!(text, "address add {address} broadcast + dev {name}");
        }
        for to in routes {
            let _ = writeln!(text, "route add {to} dev {name} metric 10 proto static");
        }
    }
    text
}

/// Runs it in a namespace with a thousand links.
fn many_links(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> std::result::Result<(), String> {
            // It goes with the thread.
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
            let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            let mut pairs = String::new();
            for number in (0..LINKS).step_by(2) {
                let _ = writeln!(pairs, "link add l{number} type veth peer name l{}", number + 1);
            }
            let made = run_ip_batch(&pairs).and_then(|()| work());
            made.map_err(|error| error.to_string())
        });
        thread.join().map_err(|_| "a bench panicked")?.map_err(Into::into)
    })
}

fn run_ip_batch(text: &str) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    let done = Command::new("ip").arg("-batch").arg(file.path()).status()?;
    if done.success() { Ok(()) } else { Err("ip -batch fails".into()) }
}

fn tell(name: &str, mut times: Vec<Duration>) {
    times.sort();
    if let Some(median) = times.get(times.len() / 2) {
        println!("network {name} p50_ms={:.2}", median.as_secs_f64() * 1e3);
    }
}

fn runs(program: &str) -> bool {
    program.contains('/')
        || ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists())
}

/// A namespace with `eth0`, the one on the other end of it, and dnsmasq there.
struct World {
    folder: tempfile::TempDir,
    name: String,
    server: Child,
}

impl World {
    fn new() -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("bench{}-{count}", std::process::id());
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("cmdline"), "")?;
        for (file, text) in [("udhcpc.sh", SCRIPT), ("dhclient.sh", DHCLIENT_SCRIPT)] {
            let path = folder.path().join(file);
            fs::write(&path, text)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&path, mode)?;
        }
        for words in [
            format!("netns add {name}"),
            format!("netns add {name}s"),
            format!("-n {name} link add eth0 type veth peer name srv0 netns {name}s"),
            format!("-n {name}s address add 10.77.0.1/24 dev srv0"),
            format!("-n {name}s link set srv0 up"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
        ] {
            ip(&words)?;
        }
        let mut server = Command::new("ip")
            .args(["netns", "exec", &format!("{name}s"), "dnsmasq", "--keep-in-foreground"])
            .args(["--conf-file=/dev/null", "--log-facility=-", "--port=0", "--no-ping"])
            .args(["--leasefile-ro", "--user=root", "--pid-file=", "--dhcp-authoritative"])
            .arg("--dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,10m")
            .stderr(Stdio::piped())
            .spawn()?;
        let output = server.stderr.take().ok_or("no log")?;
        let mut lines = BufReader::new(output).lines();
        let ready = lines.by_ref().map_while(std::io::Result::ok).any(|it| it.contains("DHCP, IP"));
        // It must not wait for us to read on.
        std::thread::spawn(move || lines.for_each(drop));
        let world = Self { folder, name, server };
        if ready { Ok(world) } else { Err("dnsmasq does not start".into()) }
    }

    /// Starts a client, and gives the time until `eth0` has an address, and the client.
    fn lease(&self, words: &[String]) -> Result<(Duration, Child)> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        std::thread::scope(|scope| {
            let watched = scope.spawn(|| -> std::result::Result<_, String> {
                setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
                let since = Instant::now();
                // The namespace is that of the thread that starts it.
                let child = Command::new(&words[0])
                    .args(&words[1..])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .map_err(|error| error.to_string())?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| error.to_string())?;
                let result =
                    runtime.block_on(async { tokio::time::timeout(LIMIT, address(since)).await });
                match result {
                    Ok(Ok(took)) => Ok((took, child)),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(format!("{} has no address after {LIMIT:?}", words[0])),
                }
            });
            watched.join().map_err(|_| "a bench panicked")?.map_err(Into::into)
        })
    }
}

/// Returns once `eth0` has an address, with the time that took.
async fn address(since: Instant) -> std::result::Result<Duration, String> {
    let changes = Changes::subscribe().map_err(|error| error.to_string())?;
    let (netlink, connection) = Netlink::open().map_err(|error| error.to_string())?;
    let look = async {
        loop {
            let addresses = netlink.addresses().await.map_err(|error| error.to_string())?;
            let has = |text: &str| text.starts_with("10.77.0.1");
            if addresses.iter().any(|address| has(&address.net.to_string())) {
                return Ok(since.elapsed());
            }
            changes.next().await.map_err(|error| error.to_string())?;
        }
    };
    tokio::select! {
        found = look => found,
        () = connection => Err("the netlink connection ended".to_owned()),
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        for name in [self.name.clone(), format!("{}s", self.name)] {
            // Clients that stayed go with it.
            let pids = Command::new("ip").args(["netns", "pids", &name]).output();
            let pids = pids.map(|output| output.stdout).unwrap_or_default();
            for pid in String::from_utf8_lossy(&pids).lines().filter_map(|pid| pid.parse().ok()) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(words: &str) -> Result<()> {
    let done = Command::new("ip").args(words.split(' ')).status()?;
    if done.success() { Ok(()) } else { Err(format!("ip {words} fails").into()) }
}
