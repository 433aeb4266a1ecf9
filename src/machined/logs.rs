//! The node's logs as the configuration has them: how much is kept in memory and on disk
//! (`machine.logs`), where each line is sent (`machine.logging`), and whether the console has it (`debug`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use orlop_config::machine::{LogDestination, MachineConfig, Network};
use orlop_rt::CancellationToken;
use orlop_supervise::forward::{Endpoint, Transport};
use orlop_supervise::{DiskLimit, Logs};
use orlop_sys::Console;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

/// For the last lines to reach those they are sent to, when the node goes down.
const GRACE: Duration = Duration::from_secs(2);
/// Lines that wait for a slow console: a few screens.
const LINES_AHEAD: usize = 256;

/// Who keeps the logs and sends them on.
#[derive(Debug)]
pub(crate) struct Keeping {
    logs: Logs,
    disk: watch::Sender<DiskLimit>,
    end: CancellationToken,
    /// Ends showing all of them (`debug`). Held for a look.
    shown: Mutex<Option<CancellationToken>>,
    /// Held for a spawn, and to take them.
    tasks: Mutex<JoinSet<()>>,
}

impl Keeping {
    /// Nothing is kept anywhere yet, but in memory.
    pub(crate) fn new(logs: Logs) -> Self {
        let (disk, end) = (watch::Sender::default(), CancellationToken::new());
        Self { logs, disk, end, shown: Mutex::default(), tasks: Mutex::default() }
    }

    /// From now on they are kept in `folder`, and sent.
    pub(crate) fn start(&self, folder: PathBuf) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let logs = self.logs.clone();
        tasks.spawn(logs.keep_in(folder, self.disk.subscribe(), self.end.clone()));
        tasks.spawn(self.logs.clone().forward(self.end.clone(), GRACE));
    }

    /// Does as `config` says, at once.
    pub(crate) fn go_by(&self, config: &MachineConfig) {
        let machine = &config.machine;
        self.logs.resize(usize::try_from(machine.logs.ring_size.0).unwrap_or(usize::MAX));
        self.disk.send_replace(DiskLimit::of_bytes(machine.logs.disk_size.0));
        let mut endpoints = Vec::new();
        for destination in &machine.logging.destinations {
            match endpoint(destination, &machine.network) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(problem) => warn!("logs are not sent to {problem}"),
            }
        }
        self.logs.send_to(endpoints);
        self.show(config.debug);
    }

    /// Whether what services say is on the console as well.
    fn show(&self, wanted: bool) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match (wanted, shown.as_ref()) {
            (true, None) => match console_lines() {
                Ok(each) => {
                    let end = self.end.child_token();
                    let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
                    tasks.spawn(self.logs.clone().show(each, end.clone()));
                    *shown = Some(end);
                }
                Err(error) => warn!(%error, "debug: services' logs are not on the console"),
            },
            (false, Some(end)) => {
                end.cancel();
                *shown = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Keeps and sends what was written so far, and no more. To be called when the services have
    /// ended and before the disks go.
    pub(crate) async fn finish(&self, limit: Duration) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        self.end.cancel();
        let ended = async { while tasks.join_next().await.is_some() {} };
        if timeout(limit, ended).await.is_err() {
            warn!(seconds = limit.as_secs(), "the last lines of the logs are not kept in time");
        }
    }
}

/// What takes lines for the console, which can be slow: a serial line carries a few thousand bytes in
/// a second. What it does not take is dropped, and counted.
fn console_lines() -> io::Result<impl FnMut(&str, &[u8]) + Send> {
    let console = Console::open()?;
    let (lines, waiting) = mpsc::sync_channel::<String>(LINES_AHEAD);
    // Ends with the sender.
    thread::Builder::new().name("console".to_owned()).spawn(move || {
        waiting.iter().for_each(|line| console.write_or_drop(line.as_bytes()));
    })?;
    let mut dropped = 0_u64;
    Ok(move |id: &str, line: &[u8]| {
        let Some(mut text) = shown(id, line) else { return };
        if dropped > 0 {
            text = format!("({dropped} lines more were too many for the console)\n{text}");
        }
        match lines.try_send(text) {
            Ok(()) => dropped = 0,
            Err(_) => dropped += 1,
        }
    })
}

/// A line of a service as the console shows it; none of machined's, whose are there already.
fn shown(id: &str, line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    // Not the console's own words: a service must not steer a terminal.
    let text = text.trim_end().replace(|c: char| c.is_control() && c != '\t', "?");
    (id != "machined").then(|| format!("{id}: {text}\n"))
}

/// PID 1 asks no name server: what one answers would be bytes of a stranger.
fn endpoint(destination: &LogDestination, network: &Network) -> Result<Endpoint, String> {
    let url = destination.endpoint.as_ref().ok_or("nowhere: no endpoint is given")?;
    let name = url.as_str().trim_end_matches('/').to_owned();
    let host = url.host_str().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let known = || {
        let entries = &network.extra_host_entries;
        let entry = entries.iter().find(|entry| entry.aliases.iter().any(|alias| alias == bare))?;
        entry.ip
    };
    let address = match bare.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) if bare == "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        Err(_) => known(),
    };
    let address = address.ok_or_else(|| {
        format!(
            "{name}: write the address of {bare} there, or add it to \
             machine.network.extraHostEntries"
        )
    })?;
    let transport = if url.scheme() == "udp" { Transport::Udp } else { Transport::Tcp };
    let port = url.port().ok_or_else(|| format!("{name}: it has no port"))?;
    Ok(Endpoint { transport, address: SocketAddr::new(address, port), name })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use orlop_supervise::{Definition, Runner, Supervisor};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn config(machine: &str) -> MachineConfig {
        let text = format!(
            "version: v1alpha1\nmachine:\n  type: join\n{machine}cluster:\n  controlPlane:\n    \
             endpoint: https://10.0.0.1:6443\n"
        );
        orlop_config::machine::parse("machine.yaml", &text).unwrap()
    }

    #[test]
    fn a_destination_is_an_address_or_a_name_the_configuration_knows() {
        let of = |text: &str| {
            let machine = config(&format!(
                "  network: {{extraHostEntries: [{{ip: 10.0.0.9, aliases: [collector]}}]}}\n  \
                 logging: {{destinations: [{{endpoint: \"{text}\", format: json_lines}}]}}\n"
            ))
            .machine;
            endpoint(&machine.logging.destinations[0], &machine.network)
                .map(|found| format!("{:?} {} {found}", found.transport, found.address))
        };
        for (given, found) in [
            ("udp://10.0.0.2:5170", "Udp 10.0.0.2:5170 udp://10.0.0.2:5170"),
            ("tcp://[fd00::1]:99/", "Tcp [fd00::1]:99 tcp://[fd00::1]:99"),
            ("tcp://localhost:99", "Tcp 127.0.0.1:99 tcp://localhost:99"),
            ("tcp://collector:99", "Tcp 10.0.0.9:99 tcp://collector:99"),
        ] {
            assert_eq!(of(given).as_deref(), Ok(found));
        }
        let problem = of("tcp://elsewhere:99").unwrap_err();
        assert!(problem.contains("add it to machine.network.extraHostEntries"), "{problem}");
    }

    #[test]
    fn the_console_shows_services_but_not_itself() {
        assert_eq!(shown("apid", b"up \x1b[2J\r").as_deref(), Some("apid: up ?[2J\n"));
        assert_eq!(shown("machined", b"up"), None);
    }

    /// Issue 3: the node's end was told to those who keep logs first, so that a service's last words
    /// were lost.
    #[tokio::test]
    async fn what_services_say_as_they_end_is_on_disk_before_the_disks_go() {
        let folder = tempfile::tempdir().unwrap();
        let (supervisor, handle) = Supervisor::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run());
        let keeping = Keeping::new(handle.logs().clone());
        keeping.start(folder.path().to_owned());
        let log = handle.logs().register("x");
        let runner = Runner::task(move |shutdown| {
            let log = log.clone();
            async move {
                log.write(b"hello\n");
                shutdown.cancelled().await;
                log.write(b"the last words\n");
                Ok(())
            }
        });
        handle.load(Definition::new("x", runner)).await.unwrap();
        handle.start("x").await.unwrap();
        handle.wait_up(&["x"], LIMIT).await.unwrap();
        handle.shutdown(LIMIT).await.unwrap();
        keeping.finish(LIMIT).await;
        let kept = fs::read_to_string(folder.path().join("x.log")).unwrap();
        assert_eq!(kept, "hello\nthe last words\n");
    }

    #[test]
    fn sizes_hold_at_once() {
        let logs = Logs::default();
        let log = logs.register("x");
        let keeping = Keeping::new(logs);
        keeping.go_by(&config("  logs: {ringSize: 16KiB, diskSize: 1MiB}\n"));
        log.write(&[b'x'; 100_000]);
        assert_eq!(log.read(None).available(usize::MAX).len(), 16 << 10);
        assert_eq!(keeping.disk.borrow().file_bytes, 256 << 10);
    }
}
