//! A virtual machine: described by a [`Boot`], running as a [`Machine`].

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tempfile::TempDir;

use crate::accel::Accel;
use crate::agent_link::{self, Agent};
use crate::console::Console;
use crate::monitor::Monitor;
use crate::tester_link::Tester;

/// A port of 127.0.0.1 that leads to a port of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// On the host.
    pub host: u16,
    /// In the guest; 0.0.0.0 is the address user networking's DHCP gives.
    pub guest: (Ipv4Addr, u16),
}

impl Forward {
    /// From a port that is free now to `port` of the guest.
    ///
    /// # Errors
    /// When the host has no free port.
    pub fn from_free(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        Ok(Self { host: listener.local_addr()?.port(), guest: (Ipv4Addr::UNSPECIFIED, port) })
    }
}

/// A machine to be started.
#[derive(Debug)]
pub struct Boot {
    accel: Accel,
    /// None where the firmware finds something to boot by itself.
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    arguments: Vec<String>,
    cards: Vec<Card>,
    memory_mib: u32,
    drives: Vec<String>,
    log: Option<PathBuf>,
    agent: Option<PathBuf>,
    no_reboot: bool,
    /// The host's files are there, by 9P under the name `host`.
    shares_host: bool,
    /// What the real-time clock shows at the start, instead of the time.
    clock: Option<&'static str>,
    pace: Pace,
    complaints: Complaints,
}

/// How time passes in a guest whose instructions are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As on the host: a guest that does not get a processor is late.
    Host,
    /// By the instructions it runs, and as on the host while it waits: it is never late by itself.
    Instructions,
    /// The same, and it does not wait: the next timer is due at once. Only for a guest that waits for
    /// nobody outside.
    Leaps,
}

/// A network card, by what it is connected to.
#[derive(Debug)]
enum Card {
    /// QEMU's user networking.
    User(Vec<Forward>),
    /// A switch within this machine's QEMU, and who else is plugged in there.
    Switch(Vec<Cable>),
    /// Another machine's switch.
    Cable(Cable),
    /// A switch with user networking behind it.
    SwitchedUser(Vec<Forward>),
    /// The switch of the card before.
    Beside,
}

/// One end of a network cable between two machines.
#[derive(Debug)]
pub struct Cable(OwnedFd);

impl Cable {
    /// Both ends of a new one.
    ///
    /// # Errors
    /// When the host has no more sockets.
    pub fn new() -> Result<(Self, Self)> {
        let (one, other) = UnixStream::pair().context("make a network cable")?;
        Ok((Self(one.into()), Self(other.into())))
    }
}

/// What becomes of QEMU's own messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Complaints {
    Shown,
    Dropped,
}

impl Boot {
    /// The node that was built: `out/vmlinuz`, `out/initramfs.img` and the command line of
    /// `initramfs/cmdline`, with 2 processors, 2 GiB and no network card.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn node(accel: Accel) -> Result<Self> {
        let mut boot = Self::kernel(accel)?.node_arguments()?;
        boot.initrd = Some(existing(crate::out().join("initramfs.img"))?);
        Ok(boot)
    }

    /// Adds the node's default kernel arguments, those of `initramfs/cmdline`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn node_arguments(mut self) -> Result<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../initramfs/cmdline");
        let arguments = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        self.arguments.push(arguments.trim().to_owned());
        Ok(self)
    }

    /// Our kernel alone, with no arguments.
    ///
    /// # Errors
    /// When it was not built.
    pub fn kernel(accel: Accel) -> Result<Self> {
        // A translated machine is late at times. The kernel must not panic because its timer did not
        // tick within the moment it is tried for; and were its time stamp counter found unstable, the
        // kernel would exchange code in its tick: see `boot_again_after_int3`.
        let arguments = match accel {
            Accel::Tcg | Accel::TcgThreads => {
                vec!["no_timer_check".to_owned(), "tsc=reliable".to_owned()]
            }
            Accel::Kvm => Vec::new(),
        };
        let kernel = Some(existing(crate::out().join("vmlinuz"))?);
        Ok(Self { kernel, arguments, ..Self::nothing(accel) })
    }

    /// UEFI firmware and the disk that was built, `out/orlop.raw`, which brings kernel and arguments.
    ///
    /// # Errors
    /// When the disk was not built or no firmware is installed.
    pub fn uefi_disk(accel: Accel) -> Result<Self> {
        let firmware = existing(PathBuf::from("/usr/share/OVMF/OVMF_CODE_4M.fd"))
            .or_else(|_| existing(PathBuf::from("/usr/share/OVMF/OVMF_CODE.fd")))?;
        let flash = format!("if=pflash,format=raw,readonly=on,file={}", firmware.display());
        let disk = existing(crate::out().join("orlop.raw"))?;
        Ok(Self { drives: vec![flash], ..Self::nothing(accel) }.scratch_disk(&disk))
    }

    /// Our kernel with `program` (the `tester` of this crate) and the files of this computer; see
    /// [`Machine::tester`].
    ///
    /// # Errors
    /// When the kernel was not built.
    pub fn tester(accel: Accel, program: &Path) -> Result<Self> {
        let boot = Self { shares_host: true, ..Self::kernel(accel)? };
        Ok(boot.argument("console=ttyS0 quiet panic=-1").no_reboot().agent(program))
    }

    fn nothing(accel: Accel) -> Self {
        Self {
            accel,
            kernel: None,
            initrd: None,
            arguments: Vec::new(),
            cards: Vec::new(),
            memory_mib: 2048,
            drives: Vec::new(),
            log: None,
            agent: None,
            no_reboot: false,
            shares_host: false,
            clock: None,
            pace: Pace::Host,
            complaints: Complaints::Shown,
        }
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds a network card: the first is `eth0` on 10.0.2.0/24, the next `eth1` on 10.0.3.0/24, and so
    /// on. The host is .2 of each.
    #[must_use]
    pub fn network(mut self, forwards: &[Forward]) -> Self {
        self.cards.push(Card::User(forwards.to_vec()));
        self
    }

    /// Adds a network card on a switch of the machine's own, into which `cables` are plugged, too.
    #[must_use]
    pub fn switch(mut self, cables: Vec<Cable>) -> Self {
        self.cards.push(Card::Switch(cables));
        self
    }

    /// Adds a network card that `cable` leads away from.
    #[must_use]
    pub fn cable(mut self, cable: Cable) -> Self {
        self.cards.push(Card::Cable(cable));
        self
    }

    /// Adds two network cards on one switch, with user networking behind it.
    #[must_use]
    pub fn network_twice(mut self, forwards: &[Forward]) -> Self {
        self.cards.push(Card::SwitchedUser(forwards.to_vec()));
        self.cards.push(Card::Beside);
        self
    }

    /// Starts the real-time clock at another time than the host's: `2020-01-01T00:00:00`, UTC.
    #[must_use]
    pub fn clock(mut self, time: &'static str) -> Self {
        self.clock = Some(time);
        self
    }

    /// Lets time pass in another way, where instructions are translated.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Another size of memory.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds a read-only disk.
    #[must_use]
    pub fn disk(mut self, image: &Path) -> Self {
        self.drives.push(format!("file={},if=virtio,format=raw,readonly=on", image.display()));
        self
    }

    /// Adds a disk the guest writes to; what it writes is thrown away.
    #[must_use]
    pub fn scratch_disk(mut self, image: &Path) -> Self {
        self.drives.push(format!("file={},if=virtio,format=raw,snapshot=on", image.display()));
        self
    }

    /// Adds a disk the guest writes to; `image` has what it has written.
    #[must_use]
    pub fn kept_disk(mut self, image: &Path) -> Self {
        self.drives.push(format!("file={},if=virtio,format=raw", image.display()));
        self
    }

    /// Puts a disc into a CD-ROM drive.
    #[must_use]
    pub fn disc(mut self, image: &Path) -> Self {
        self.drives.push(format!("file={},media=cdrom,format=raw,readonly=on", image.display()));
        self
    }

    /// Copies the console to `path`.
    #[must_use]
    pub fn log(mut self, path: PathBuf) -> Self {
        self.log = Some(path);
        self
    }

    /// Boots through `program` (the `agent` of this crate), which stays behind for [`Machine::agent`].
    #[must_use]
    pub fn agent(mut self, program: &Path) -> Self {
        self.agent = Some(program.to_owned());
        self
    }

    /// A reboot of the guest ends the machine instead.
    #[must_use]
    pub fn no_reboot(mut self) -> Self {
        self.no_reboot = true;
        self
    }

    pub(crate) fn complaints(mut self, complaints: Complaints) -> Self {
        self.complaints = complaints;
        self
    }

    /// Starts it. Call this on the program's main thread: the machine dies with the thread it was
    /// started on, so that nothing outlives a test run that was killed.
    ///
    /// # Errors
    /// When QEMU, or a file it needs, is not there.
    pub fn start(mut self) -> Result<Machine> {
        let scratch = tempfile::tempdir().context("make a temporary folder")?;
        let agent = scratch.path().join("agent.sock");
        if let Some(program) = &self.agent {
            let real = self.initrd.as_deref();
            self.initrd = Some(agent_link::initrd(program, real, scratch.path())?);
            self.arguments.push(format!("rdinit={}", agent_link::PATH));
        }
        let log = match &self.log {
            Some(path) => {
                Some(File::create(path).with_context(|| format!("create {}", path.display()))?)
            }
            None => None,
        };
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
        ]);
        command.args(["-display", "none", "-machine", "q35", "-smp", "2"]);
        command.arg("-m").arg(self.memory_mib.to_string());
        command.args(self.accel.arguments());
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        command.args(["-device", "virtio-rng-pci"]);
        if let Some(kernel) = &self.kernel {
            command.arg("-kernel").arg(kernel).arg("-append").arg(self.arguments.join(" "));
        }
        if let Some(initrd) = &self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        let mut passed = Vec::new();
        for (i, card) in self.cards.into_iter().enumerate() {
            for network in card.networks(i, &mut passed)? {
                command.arg("-netdev").arg(network);
            }
            let card = format!("virtio-net-pci,id=card{i},netdev=net{i},romfile=");
            command.args(["-device", &card]);
        }
        let (monitor, qemus_end) = UnixStream::pair().context("make QEMU's monitor")?;
        let qemus_end = pass(qemus_end.into(), &mut passed)?;
        command.args(["-chardev", &format!("socket,id=monitor,fd={qemus_end}")]);
        command.args(["-mon", "chardev=monitor,mode=control"]);
        for drive in &self.drives {
            command.args(["-drive", drive]);
        }
        if self.agent.is_some() {
            let socket = format!("socket,id=agent,path={},server=on,wait=off", agent.display());
            command.args(["-chardev", &socket, "-device", "virtio-serial-pci"]);
            command.args(["-device", "virtserialport,chardev=agent,name=agent"]);
        }
        if self.no_reboot {
            command.arg("-no-reboot");
        }
        if self.shares_host {
            let files = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap";
            command.args(["-fsdev", files, "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        }
        let translated = self.accel != Accel::Kvm;
        let leaps = match self.pace {
            Pace::Instructions if translated => Some("on"),
            Pace::Leaps if translated => Some("off"),
            _ => None,
        };
        if let Some(sleeps) = leaps {
            command.args(["-icount", &format!("shift={INSTRUCTION},sleep={sleeps}")]);
        }
        if self.clock.is_some() || leaps.is_some() {
            let base = self.clock.unwrap_or("utc");
            let clock = if leaps.is_some() { "vm" } else { "host" };
            command.args(["-rtc", &format!("base={base},clock={clock}")]);
        }
        // A group of its own: Ctrl-C is for us, not for QEMU, which would stop at once.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut qemu = command.spawn().context("start qemu-system-x86_64 by setpriv")?;
        drop(passed);
        let output = qemu.stdout.take().context("QEMU has no output")?;
        let console = Console::follow(output, log);
        Ok(Machine { console, qemu, agent, monitor: Monitor::new(monitor), _scratch: scratch })
    }
}

impl Card {
    /// What the `i`th card is connected to, as values of `-netdev`; what they refer to joins `passed`.
    fn networks(self, i: usize, passed: &mut Vec<OwnedFd>) -> Result<Vec<String>> {
        Ok(match self {
            Self::User(forwards) => vec![user(&format!("net{i}"), i, &forwards)],
            Self::SwitchedUser(forwards) => vec![
                user("user", i, &forwards),
                format!("hubport,id=users,hubid={i},netdev=user"),
                format!("hubport,id=net{i},hubid={i}"),
            ],
            Self::Beside => vec![format!("hubport,id=net{i},hubid={}", i - 1)],
            Self::Cable(Cable(end)) => vec![format!("socket,id=net{i},fd={}", pass(end, passed)?)],
            Self::Switch(cables) => {
                let mut networks = vec![format!("hubport,id=net{i},hubid={i}")];
                for (n, Cable(end)) in cables.into_iter().enumerate() {
                    networks.push(format!("socket,id=cable{n},fd={}", pass(end, passed)?));
                    networks.push(format!("hubport,id=port{n},hubid={i},netdev=cable{n}"));
                }
                networks
            }
        })
    }
}

/// User networking called `id`, on the `i`th network.
fn user(id: &str, i: usize, forwards: &[Forward]) -> String {
    let mut network = format!("user,id={id},net=10.0.{}.0/24", i + 2);
    for Forward { host, guest: (address, port) } in forwards {
        let address = if address.is_unspecified() { String::new() } else { address.to_string() };
        network += &format!(",hostfwd=tcp:127.0.0.1:{host}-{address}:{port}");
    }
    network
}

/// Lets the next program that is started inherit `file`, under this number.
fn pass(file: OwnedFd, passed: &mut Vec<OwnedFd>) -> Result<RawFd> {
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).context("pass a socket to QEMU")?;
    let number = file.as_raw_fd();
    passed.push(file);
    Ok(number)
}

/// A running machine; dropping it pulls the plug.
#[derive(Debug)]
pub struct Machine {
    console: Console,
    qemu: Child,
    agent: PathBuf,
    monitor: Monitor,
    _scratch: TempDir,
}

impl Machine {
    /// What it says.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The hand inside; only a machine that was started with one has it.
    ///
    /// # Errors
    /// When it does not answer within 30 s.
    pub fn agent(&self) -> Result<Agent> {
        Agent::connect(&self.agent)
    }

    /// The shell inside; only a [`Boot::tester`] has it.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn tester(&self) -> Result<Tester> {
        Tester::connect(&self.agent)
    }

    /// Takes the link from the `n`th network card, or gives it back: the guest sees it.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn set_card(&mut self, n: usize, up: bool) -> Result<()> {
        self.monitor.set_link(&format!("card{n}"), up)
    }

    /// Pulls the `n`th cable out of its switch; nobody at either end is told.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn unplug(&mut self, n: usize) -> Result<()> {
        self.monitor.set_link(&format!("cable{n}"), false)
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn plug(&mut self, n: usize) -> Result<()> {
        self.monitor.set_link(&format!("cable{n}"), true)
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.monitor.power_button()
    }

    /// Presses the reset button: the machine begins anew, in the middle of whatever it does.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub fn reset(&mut self) -> Result<()> {
        self.monitor.reset()
    }

    /// Waits until it has switched itself off.
    ///
    /// # Errors
    /// When it has not within `limit`, with the last 50 lines of the console.
    pub fn wait_off(&mut self, limit: Duration) -> Result<ExitStatus> {
        if !self.console.wait_for_end(limit) {
            bail!("still on after {} s\n{}", limit.as_secs(), self.console.tail());
        }
        self.qemu.wait().context("wait for QEMU")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// An instruction takes this power of two of nanoseconds, where time passes by them.
const INSTRUCTION: u32 = 2;

fn existing(path: PathBuf) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} is not there; make image builds it", path.display());
    }
    Ok(path)
}
