//! The machine: looks at devices, and does what was decided. Every function here blocks.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::stat::{major, minor};
use orlop_rt::{Beside, Chain};
use tracing::{debug, error, info, warn};

use crate::database::Record;
use crate::links::Step;
use crate::modules::{self, Modules};
use crate::partitions::{self, Table};
use crate::policy::{Access, Decision, Facts, decide};
use crate::probe::{Content, probe};
use crate::rules::{self, Rules};
use crate::sysfs::{Device, Mounted, Sysfs as _};
use crate::uevent::{Action, Devnum, Uevent};

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) sys: PathBuf,
    pub(crate) dev: PathBuf,
    pub(crate) database: PathBuf,
    /// Of the running kernel; may be missing.
    pub(crate) modules: PathBuf,
    pub(crate) firmware: PathBuf,
    pub(crate) index: Modules,
    pub(crate) predictable_names: bool,
    /// The owner's.
    pub(crate) rules: Rules,
}

/// What became of an event.
#[derive(Debug)]
pub(crate) enum Outcome {
    Decided(Decision),
    /// Somebody is partitioning the disk: nothing that is read now means anything.
    Locked,
}

/// Why something could not be done to a device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{doing} {}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "load module {}: its signature is not of a key this kernel trusts; take the module from the \
         build of the running kernel", path.display()
    )]
    Untrusted { path: PathBuf },
}

impl Host {
    /// Finds out about the device of an event, loads its driver, decides.
    pub(crate) fn examine(&self, event: &Uevent) -> Outcome {
        let sysfs = Mounted(self.sys.clone());
        let device = Device::new(&sysfs, &event.devpath);
        let appears = event.action == Action::Add;
        if let Some(modalias) = event.get("MODALIAS").filter(|_| appears) {
            self.load_modules(modalias);
        }
        if let Some(name) =
            event.get("FIRMWARE").filter(|_| appears && event.subsystem == "firmware")
        {
            report("give a driver its firmware", self.give_firmware(&event.devpath, name));
        }
        let mut facts = Facts {
            event,
            device,
            content: Content::Unknown,
            table: None,
            predictable_names: self.predictable_names,
        };
        if event.block() && event.action != Action::Remove && readable(device) {
            match self.look_inside(event, device) {
                Ok(None) => return Outcome::Locked,
                Ok(Some((content, table))) => (facts.content, facts.table) = (content, table),
                // An empty drive answers so, a device that has gone since, a broken disk.
                Err(error) => debug!(node = event.devname(), %error, "cannot be read"),
            }
        }
        let mut decision = decide(&facts);
        if event.action != Action::Remove {
            self.rules.apply(event, device, &mut decision);
        }
        Outcome::Decided(decision)
    }

    /// `None`: somebody else holds the disk's lock (systemd's BLOCK_DEVICE_LOCKING).
    fn look_inside(
        &self,
        event: &Uevent,
        device: Device<'_>,
    ) -> io::Result<Option<(Content, Option<Table>)>> {
        let node = self.open(event.devname(), event.devnum())?;
        let partition = event.get("DEVTYPE") == Some("partition");
        let whole = if partition { device.parent() } else { None };
        let whole =
            whole.map(|disk| self.open_device(disk).map(|file| (disk, file))).transpose()?;
        let (disk, file) = whole.as_ref().map_or((device, &node), |(disk, file)| (*disk, file));
        // device-mapper keeps locks of its own.
        if disk.text("dm/name").is_none() {
            match file.try_lock_shared() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
                Ok(()) => {}
            }
        }
        let content = probe(&mut |at, length| read(&node, at, length))?;
        let sectors = disk.number("size").unwrap_or(0);
        let sector_bytes = disk.number("queue/logical_block_size").unwrap_or(512);
        let sector_bytes = usize::try_from(sector_bytes).map_err(io::Error::other)?;
        let find = |file| {
            partitions::find(&mut |at, length| read(file, at, length), sectors, sector_bytes)
        };
        Ok(Some((content, find(file)?)))
    }

    fn open_device(&self, device: Device<'_>) -> io::Result<File> {
        let text = device.text("uevent").unwrap_or_default();
        let says =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let number = |key| says(key)?.parse().ok();
        let devnum = number("MAJOR").zip(number("MINOR"));
        self.open(says("DEVNAME"), devnum.map(|(major, minor)| Devnum { major, minor }))
    }

    /// Opens a node without waiting for a medium, and only if it is still the device that is meant.
    fn open(&self, name: Option<&str>, devnum: Option<Devnum>) -> io::Result<File> {
        let path = self.dev.join(name.ok_or(io::ErrorKind::NotFound)?);
        let file =
            OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        let metadata = file.metadata()?;
        let same = metadata.file_type().is_block_device() && Some(number(&metadata)) == devnum;
        if same { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// The modules that drive a device, those they need first.
    fn load_modules(&self, modalias: &str) {
        for file in self.index.wanted(modalias) {
            if self.sys.join("module").join(modules::name(file)).exists() {
                continue;
            }
            match self.load_module(file) {
                Ok(()) => info!(module = %modules::name(file), modalias, "module loaded"),
                // The others would only miss this one.
                Err(error) => {
                    return warn!(error = %Chain(&error), "a device stays without its driver");
                }
            }
        }
    }

    fn load_module(&self, file: &str) -> Result<(), Error> {
        let path = self.modules.join(file);
        let failed =
            |source: io::Error| Error::File { doing: "load module", path: path.clone(), source };
        let module = File::open(&path).map_err(failed)?;
        let packed = path.extension().is_some_and(|extension| extension != "ko");
        let flags = if packed {
            // The kernel unpacks it (MODULE_INIT_COMPRESSED_FILE).
            ModuleInitFlags::from_bits_retain(4)
        } else {
            ModuleInitFlags::empty()
        };
        match finit_module(module, c"", flags) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(Errno::EKEYREJECTED | Errno::ENOKEY | Errno::EBADMSG) => {
                Err(Error::Untrusted { path })
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Answers a driver that asks user space for a file (`Documentation/driver-api/firmware`).
    fn give_firmware(&self, devpath: &str, name: &str) -> Result<(), Error> {
        let device = self.sys.join(devpath.trim_start_matches('/'));
        let write = |attribute: &str, bytes: &[u8]| {
            let path = device.join(attribute);
            fs::write(&path, bytes).map_err(|source| Error::File { doing: "write", path, source })
        };
        let path = self.firmware.join(name);
        let inside = !Path::new(name).components().any(|part| part.as_os_str() == "..");
        let bytes = if inside { fs::read(&path) } else { Err(io::ErrorKind::InvalidInput.into()) };
        match bytes {
            Ok(bytes) => write("loading", b"1")
                .and_then(|()| write("data", &bytes))
                .and_then(|()| write("loading", b"0")),
            Err(source) => {
                write("loading", b"-1")?;
                Err(Error::File { doing: "read", path, source })
            }
        }
    }

    /// Sets who may use a node.
    pub(crate) fn give_access(&self, event: &Uevent, access: Access) -> Result<(), Error> {
        let Some(name) = event.devname() else { return Ok(()) };
        let path = self.dev.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            // It has gone since, and its event is on the way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result,
        };
        let failed =
            |source| Error::File { doing: "set the permissions of", path: path.clone(), source };
        let metadata = metadata.map_err(failed)?;
        let kind = metadata.file_type();
        let same = if event.block() { kind.is_block_device() } else { kind.is_char_device() };
        if !same || Some(number(&metadata)) != event.devnum() {
            return Ok(());
        }
        if (metadata.uid(), metadata.gid()) != (access.owner, access.group) {
            chown(&path, Some(access.owner), Some(access.group)).map_err(failed)?;
        }
        if metadata.mode() & 0o7777 != access.mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(access.mode)).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes, changes or removes a link below `/dev`. Whoever opens it meanwhile finds the old or the
    /// new device, never nothing.
    pub(crate) fn link(&self, step: &Step) -> Result<(), Error> {
        let (Step::Point { link, .. } | Step::Remove { link }) = step;
        let path = self.dev.join(link);
        let found = fs::symlink_metadata(&path).ok();
        if found.as_ref().is_some_and(|found| !found.is_symlink()) {
            // A node of the same name, as device-mapper's own tools make: it leads to the same place.
            debug!(path = %path.display(), "is there, and no link");
            return Ok(());
        }
        let done = match step {
            Step::Point { node, .. } => {
                let target = "../".repeat(link.matches('/').count()) + node;
                if fs::read_link(&path).is_ok_and(|now| now == Path::new(&target)) {
                    return Ok(());
                }
                replace_link(&path, &target)
            }
            Step::Remove { .. } if found.is_none() => Ok(()),
            Step::Remove { .. } => {
                let removed = fs::remove_file(&path);
                // Folders that are empty now; the first that is not ends it.
                let above = path.ancestors().skip(1).take_while(|folder| *folder != self.dev);
                let _ = above.map(fs::remove_dir).take_while(Result::is_ok).count();
                removed
            }
        };
        done.map_err(|source| Error::File { doing: "make or remove the link", path, source })
    }

    /// Writes a device's record in one step.
    pub(crate) fn remember(&self, id: &str, record: &Record) -> Result<(), Error> {
        let path = self.database.join(id);
        // In memory: a burst of thousands would only wait for each other's syncs.
        let write = || {
            let mut file = Beside::new(&path, 0o644)?;
            file.write_all(record.to_text().as_bytes())?;
            file.show()
        };
        write().map_err(|source| Error::File { doing: "write", path: path.clone(), source })
    }

    /// Removes a device's record.
    pub(crate) fn forget(&self, id: &str) -> Result<(), Error> {
        let path = self.database.join(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| Error::File { doing: "remove", path, source }),
        }
    }

    /// A device's record; `None` when there is none.
    pub(crate) fn recall(&self, id: &str) -> Option<Record> {
        fs::read_to_string(self.database.join(id)).ok().map(|text| Record::parse(&text))
    }

    /// All records of an earlier run, each with whether its device is still there.
    pub(crate) fn remembered(&self) -> Vec<(String, Record, bool)> {
        let sysfs = Mounted(self.sys.clone());
        let names = Mounted(self.database.clone()).names("/");
        let ids = names.into_iter().filter(|name| !name.starts_with('.'));
        let interfaces = || {
            let links = sysfs.names("/class/net");
            links.into_iter().filter_map(|name| {
                let index = sysfs.attribute(&format!("/class/net/{name}"), "ifindex")?;
                Some(crate::encode::text(&index))
            })
        };
        let there = |id: &str| match id.split_at_checked(1) {
            Some(("b", number)) => self.sys.join("dev/block").join(number).exists(),
            Some(("c", number)) => self.sys.join("dev/char").join(number).exists(),
            Some(("n", index)) => interfaces().any(|there| there == index),
            _ => false,
        };
        ids.filter_map(|id| Some((id.clone(), self.recall(&id)?, there(&id)))).collect()
    }

    /// Every device there is, those above before those below.
    pub(crate) fn devices(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.sys.join("devices")];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                // Links lead to other devices, and in circles.
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_file() && entry.file_name() == "uevent" => {
                        found.push(folder.clone());
                    }
                    _ => {}
                }
            }
        }
        orlop_rt::sort(&mut found);
        found
    }

    /// Makes the kernel say `action` of a device below `/sys/devices`.
    pub(crate) fn trigger(&self, device: &Path, action: Action) {
        let path = device.join("uevent");
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(action.to_string().as_bytes()));
        match written {
            // It has gone since: its own event says so.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => {}
            Err(error) => warn!(path = %path.display(), %error, "trigger an event"),
            Ok(()) => {}
        }
    }

    /// A block device and its partitions were written to.
    pub(crate) fn look_again(&self, devpath: &str) {
        let device = self.sys.join(devpath.trim_start_matches('/'));
        self.trigger(&device, Action::Change);
        for name in Mounted(self.sys.clone()).names(devpath) {
            if device.join(&name).join("partition").exists() {
                self.trigger(&device.join(name), Action::Change);
            }
        }
    }

    /// The number of the kernel's last event.
    pub(crate) fn last_seqnum(&self) -> u64 {
        let text = fs::read_to_string(self.sys.join("kernel/uevent_seqnum")).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    /// What is known of the device at a path: a node or link below `/dev`, or a folder of sysfs. In
    /// the form of `udevadm info`.
    pub(crate) fn describe(&self, path: &str) -> Result<String, Error> {
        let failed = |source| Error::File { doing: "find the device", path: path.into(), source };
        let path = Path::new(path);
        let below = |root: &str, of: &Path| path.strip_prefix(root).ok().map(|rest| of.join(rest));
        let found = below("/dev", &self.dev).or_else(|| below("/sys", &self.sys));
        let found =
            found.ok_or_else(|| failed(io::Error::other("only /dev/… and /sys/… are known")))?;
        let metadata = fs::metadata(&found).map_err(failed)?;
        let kind = metadata.file_type();
        let folder = if kind.is_dir() {
            found.canonicalize().map_err(failed)?
        } else {
            let class = if kind.is_block_device() { "dev/block" } else { "dev/char" };
            let Devnum { major, minor } = number(&metadata);
            let entry = self.sys.join(class).join(format!("{major}:{minor}"));
            entry.canonicalize().map_err(failed)?
        };
        let root = self.sys.canonicalize().map_err(failed)?;
        let relative =
            folder.strip_prefix(&root).map_err(|error| failed(io::Error::other(error)))?;
        let devpath = format!("/{}", relative.display());
        let sysfs = Mounted(self.sys.clone());
        let device = Device::new(&sysfs, &devpath);
        let says = fs::read_to_string(folder.join("uevent")).map_err(failed)?;
        let subsystem = device.subsystem().unwrap_or_default();
        // The same words as an event's, for the same id.
        let words = says.lines().collect::<Vec<_>>().join("\0");
        let text = format!(
            "change@{devpath}\0ACTION=change\0DEVPATH={devpath}\0SUBSYSTEM={subsystem}\0SEQNUM=0\0{words}"
        );
        let event =
            Uevent::parse(text.as_bytes()).map_err(|error| failed(io::Error::other(error)))?;
        let record = self.recall(&event.id()).unwrap_or_default();
        let mut lines = vec![format!("P: {devpath}")];
        lines.extend(event.devname().map(|name| format!("N: {name}")));
        if record.priority != 0 {
            lines.push(format!("L: {}", record.priority));
        }
        lines.extend(record.links.iter().map(|link| format!("S: {link}")));
        let said =
            event.properties.iter().filter(|(key, _)| !matches!(&***key, "ACTION" | "SEQNUM"));
        lines
            .extend(said.chain(&record.properties).map(|(key, value)| format!("E: {key}={value}")));
        Ok(lines.join("\n") + "\n")
    }
}

/// Reads the index of the kernel's modules; one without any is no news.
pub(crate) fn module_index(folder: &Path) -> Modules {
    let read = |name| match fs::read_to_string(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(folder = %folder.display(), name, %error, "no modules can be loaded");
            String::new()
        }
        text => text.unwrap_or_default(),
    };
    Modules::parse(&read("modules.alias"), &read("modules.dep"))
}

/// Reads the owner's rules. Those that are not understood are told and left out: a node must come up
/// to be told better.
pub(crate) fn rules(path: &Path) -> Result<Rules, io::Error> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    let (rules, problems) = rules::parse(&text);
    for problem in problems {
        error!("{}:{problem}; correct it in machine.udev.rules", path.display());
    }
    Ok(rules)
}

/// Logs what failed: one device less is no reason to stop.
pub(crate) fn report(doing: &str, result: Result<(), Error>) {
    if let Err(error) = result {
        warn!(error = %Chain(&error), "{doing}");
    }
}

/// Whether looking at what a block device holds makes sense, and harms nobody.
fn readable(device: Device<'_>) -> bool {
    let name = device.name();
    let memory = ["ram", "zram", "fd", "mtdblock"].iter().any(|kind| {
        name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    // What is suspended would not answer until it is resumed.
    let suspended = device.text("dm/suspended").as_deref() == Some("1");
    !memory && !suspended && device.number("size").is_some_and(|size| size > 0)
}

fn read(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn number(metadata: &fs::Metadata) -> Devnum {
    let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
    let device = metadata.rdev();
    Devnum { major: number(major(device)), minor: number(minor(device)) }
}

fn replace_link(path: &Path, target: &str) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".#{}", name.display()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &temporary)?;
    fs::rename(&temporary, path)
}

/// The release of the running kernel names the folder of its modules.
pub(crate) fn module_folder(root: &Path) -> PathBuf {
    let mut release = String::new();
    let read = File::open("/proc/sys/kernel/osrelease")
        .and_then(|mut file| file.read_to_string(&mut release));
    if let Err(error) = read {
        warn!(%error, "the kernel does not say its release; no modules can be loaded");
    }
    root.join(release.trim())
}
