//! Clearing disks and partitions that nobody uses (`storage.StorageService/BlockDeviceWipe`).
//!
//! [`Facts`] are gathered of each device that is asked for, [`Facts::refusal`] decides; only when none is
//! refused, and the kernel has given all of them to us alone, the first byte is written. What is mounted,
//! swapped to or part of an array that runs, the kernel gives to nobody (`O_EXCL`, open(2)).

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

/// How thoroughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// What tells the kind of the device, and of each partition on it.
    Fast,
    /// All of it.
    Zeroes,
}

/// One device that shall be cleared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The kernel's name: `sda`, `sda1`.
    pub(crate) device: String,
    pub(crate) method: Method,
    /// Even if it holds what this node keeps.
    pub(crate) kept_too: bool,
    /// Even if something is built of it: an array, a volume group.
    pub(crate) members_too: bool,
}

/// Why nothing is wiped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no block device {0:?}; orlopctl disks lists disks")]
    None(String),
    #[error("{device} is not wiped: {why}")]
    Refused { device: String, why: String },
    #[error("{operation} {}", path.display())]
    Device { operation: &'static str, path: PathBuf, source: io::Error },
}

/// What is known of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    read_only: bool,
    /// Of it and of its partitions: where they are mounted,
    mounts: Vec<String>,
    /// what is built of them,
    holders: Vec<String>,
    /// what this node keeps on them.
    labels: Vec<String>,
    /// Where its partitions begin, and their lengths, in bytes.
    partitions: Vec<(u64, u64)>,
}

/// Sectors of sysfs, whatever the disk's own are.
const SECTOR_BYTES: u64 = 512;
/// At each end of a device lie superblocks and their copies, and partition tables.
const END_BYTES: u64 = 1 << 20;
/// Zeroed in one go: between two, it is looked whether anybody still waits.
const STEP_BYTES: u64 = 32 << 20;

/// Where the kernel describes its block devices.
const CLASS: &str = "/sys/class/block";

/// A volume of this node: its label, and the kernel's name of its device.
pub(crate) type Kept = (String, String);

/// Clears all of `wishes`, or none. `go_on` is asked now and then, and ends it by an error.
///
/// # Errors
/// Why nothing was wiped, or what went wrong then.
pub(crate) fn wipe<E: From<Error>>(
    wishes: &[Wish],
    kept: &[Kept],
    go_on: impl Fn() -> Result<(), E>,
) -> Result<(), E> {
    let mounts = fs::read_to_string("/proc/mounts").map_err(|source| Error::Device {
        operation: "read",
        path: "/proc/mounts".into(),
        source,
    })?;
    let mut open = Vec::new();
    for wish in wishes {
        let facts = Facts::gather(Path::new(CLASS), &wish.device, &mounts, kept)?;
        if let Some(why) = facts.refusal(wish) {
            return Err(Error::Refused { device: wish.device.clone(), why }.into());
        }
        open.push((wish, claim(&wish.device)?, facts.partitions));
    }
    for (wish, mut device, partitions) in open {
        let failed = |operation| {
            let path = Path::new("/dev").join(&wish.device);
            move |source| Error::Device { operation, path, source }
        };
        let size = device.seek(SeekFrom::End(0)).map_err(failed("read the size of"))?;
        for (start, length) in ranges(wish.method, size, &partitions) {
            let mut done = 0;
            while done < length {
                go_on()?;
                let step = STEP_BYTES.min(length - done);
                zero(&mut device, start + done, step).map_err(failed("write to"))?;
                done += step;
            }
        }
        device.sync_all().map_err(failed("write back"))?;
        if !partitions.is_empty() {
            orlop_sys::reread_partitions(&device).map_err(failed("forget the partitions of"))?;
        }
        tracing::warn!(device = wish.device, method = ?wish.method, "wiped");
    }
    Ok(())
}

impl Facts {
    fn gather(class: &Path, device: &str, mounts: &str, kept: &[Kept]) -> Result<Self, Error> {
        // A name, and none of a path.
        let named = !device.is_empty() && !device.starts_with('.') && !device.contains('/');
        let folder = class.join(device);
        if !(named && folder.is_dir()) {
            return Err(Error::None(device.to_owned()));
        }
        let failed = |source| Error::Device { operation: "look at", path: folder.clone(), source };
        let number = |folder: &Path, name: &str| -> Option<u64> {
            fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        let mut facts = Self { read_only: number(&folder, "ro") == Some(1), ..Self::default() };
        let mut names = vec![device.to_owned()];
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let part = entry.path();
            if let (true, Some(start), Some(size)) =
                (part.join("partition").exists(), number(&part, "start"), number(&part, "size"))
            {
                let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
                facts.partitions.push((bytes(start), bytes(size)));
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        facts.partitions.sort_unstable();
        names[1..].sort_unstable();
        for name in &names {
            let folder = if name == device { folder.clone() } else { folder.join(name) };
            let holders = fs::read_dir(folder.join("holders")).into_iter().flatten().flatten();
            let holders = holders.map(|entry| entry.file_name().to_string_lossy().into_owned());
            facts.holders.extend(holders);
            let its = |line: &&str| line.split(' ').next() == Some(&format!("/dev/{name}"));
            let places = mounts.lines().filter(its).filter_map(|line| line.split(' ').nth(1));
            facts.mounts.extend(places.map(str::to_owned));
            let labels = kept.iter().filter(|(_, device)| device == name);
            facts.labels.extend(labels.map(|(label, _)| label.clone()));
        }
        Ok(facts)
    }

    /// Why it is not wiped, with what would help.
    fn refusal(&self, wish: &Wish) -> Option<String> {
        let Self { read_only, mounts, holders, labels, .. } = self;
        if *read_only {
            return Some("it is read-only".to_owned());
        }
        if !labels.is_empty() && !wish.kept_too {
            return Some(format!(
                "this node keeps {} on it; orlopctl reset wipes what a node keeps",
                labels.join(" and ")
            ));
        }
        if !mounts.is_empty() {
            return Some(format!("it is mounted on {}", mounts.join(" and ")));
        }
        if !holders.is_empty() && !wish.members_too {
            return Some(format!(
                "it is a part of {}; take that apart first",
                holders.join(" and ")
            ));
        }
        None
    }
}

/// Opens a device for us alone.
fn claim(device: &str) -> Result<File, Error> {
    let path = Path::new("/dev").join(device);
    let exclusive = File::options().write(true).custom_flags(OFlag::O_EXCL.bits()).open(&path);
    exclusive.map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => Error::Refused {
            device: device.to_owned(),
            why: "it, or a partition of it, is in use".to_owned(),
        },
        _ => Error::Device { operation: "open", path, source },
    })
}

/// Beginnings and lengths of what is zeroed on a device of `size` bytes.
fn ranges(method: Method, size: u64, partitions: &[(u64, u64)]) -> Vec<(u64, u64)> {
    if method == Method::Zeroes {
        return vec![(0, size)];
    }
    let ends = |(start, length): (u64, u64)| {
        let (start, end) = (start.min(size), start.saturating_add(length).min(size));
        let last = start.max(end.saturating_sub(END_BYTES));
        [(start, END_BYTES.min(end - start)), (last, end - last)]
    };
    // What is told of partitions goes before the partitions do.
    let all = partitions.iter().copied().chain([(0, size)]).flat_map(ends);
    all.filter(|(_, length)| *length > 0).collect()
}

/// The device does it itself, if it can.
fn zero(device: &mut File, start: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
    match fallocate(&*device, flags, offset(start)?, offset(length)?) {
        Ok(()) => return Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; 64 << 10];
    device.seek(SeekFrom::Start(start))?;
    let mut left = length;
    while left > 0 {
        let count = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
        device.write_all(&zeros[..count])?;
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Read as _;
    use std::process::Command;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn wish(device: &str, method: Method) -> Wish {
        Wish { device: device.to_owned(), method, kept_too: false, members_too: false }
    }

    /// `sda` with a partition; `sdb` alone.
    fn class() -> tempfile::TempDir {
        let class = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("sda/ro", "0\n"),
            ("sda/holders/none/x", ""),
            ("sda/queue/x", ""),
            ("sda/sda2/partition", "2\n"),
            ("sda/sda2/start", "8192\n"),
            ("sda/sda2/size", "16384\n"),
            ("sda/sda1/partition", "1\n"),
            ("sda/sda1/start", "2048\n"),
            ("sda/sda1/size", "2048\n"),
            ("sda/sda1/holders/dm-0/x", ""),
            ("sdb/ro", "1\n"),
        ] {
            let file = class.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::remove_dir_all(class.path().join("sda/holders/none")).unwrap();
        class
    }

    #[test]
    fn what_is_known_of_a_disk_is_known_of_its_partitions() {
        let class = class();
        let mounts =
            "/dev/sda2 /var xfs rw 0 0\n/dev/sda22 /x xfs rw 0 0\nproc /proc proc rw 0 0\n";
        let kept = [("EPHEMERAL".to_owned(), "sda2".to_owned())];
        let gather = |device: &str| Facts::gather(class.path(), device, mounts, &kept);
        let facts = gather("sda").unwrap();
        let expected = Facts {
            read_only: false,
            mounts: vec!["/var".to_owned()],
            holders: vec!["dm-0".to_owned()],
            labels: vec!["EPHEMERAL".to_owned()],
            partitions: vec![(MIB, MIB), (4 * MIB, 8 * MIB)],
        };
        assert_eq!(facts, expected);
        assert!(gather("sdb").unwrap().read_only);
        for none in ["sdc", "", ".", "..", "sda/sda1", "/dev/sda"] {
            assert!(matches!(gather(none), Err(Error::None(_))), "{none:?}");
        }
    }

    #[test]
    fn what_is_used_or_kept_is_refused_with_the_reason() {
        let wish = wish("sda", Method::Fast);
        let all = Wish { kept_too: true, members_too: true, ..wish.clone() };
        let some = |text: &str| vec![text.to_owned()];
        let none = Facts::default();
        assert_eq!(none.refusal(&wish), None);
        for (facts, why, helps) in [
            (Facts { read_only: true, ..none.clone() }, "read-only", false),
            (Facts { mounts: some("/var"), ..none.clone() }, "mounted on /var", false),
            (Facts { holders: some("md0"), ..none.clone() }, "a part of md0", true),
            (Facts { labels: some("STATE"), ..none.clone() }, "keeps STATE", true),
        ] {
            let said = facts.refusal(&wish).unwrap();
            assert!(said.contains(why), "{said}");
            assert_eq!(facts.refusal(&all).is_none(), helps, "{said}");
        }
    }

    #[test]
    fn the_ends_of_a_device_and_of_its_partitions_are_wiped() {
        let fast = |size, partitions: &[_]| ranges(Method::Fast, size, partitions);
        assert_eq!(fast(10 * MIB, &[]), [(0, MIB), (9 * MIB, MIB)]);
        assert_eq!(
            fast(100 * MIB, &[(MIB, 10 * MIB)]),
            [(MIB, MIB), (10 * MIB, MIB), (0, MIB), (99 * MIB, MIB)]
        );
        assert_eq!(fast(512, &[]), [(0, 512), (0, 512)]);
        assert_eq!(fast(0, &[]), []);
        // A table that lies.
        assert_eq!(fast(MIB, &[(u64::MAX, 5), (0, u64::MAX)]), [(0, MIB); 4]);
        assert_eq!(ranges(Method::Zeroes, 7 * MIB, &[(0, 1)]), [(0, 7 * MIB)]);
    }

    #[test]
    fn what_no_device_zeroes_itself_is_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 300_000]).unwrap();
        zero(&mut file, 100, 200_000).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 300_000);
        let sevens = bytes.iter().filter(|byte| **byte == 7).count();
        assert_eq!((sevens, bytes[99], bytes[100], bytes[200_100]), (100_000, 7, 0, 7));
    }

    /// A file behind a loop device of its own.
    struct Loop(String);

    impl Loop {
        fn attach(file: &Path) -> Option<Self> {
            let ran = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
            let path = ran.ok().filter(|ran| ran.status.success())?.stdout;
            let path = String::from_utf8(path).unwrap();
            Some(Self(path.trim().strip_prefix("/dev/").unwrap().to_owned()))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ =
                Command::new("losetup").args(["--detach", &format!("/dev/{}", self.0)]).status();
        }
    }

    #[test]
    fn a_device_is_wiped_unless_somebody_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![7; 8 << 20]).unwrap();
        let Some(device) = Loop::attach(&path) else {
            eprintln!("skipped: no loop device can be had here");
            return;
        };
        let wipe = |method| super::wipe(&[wish(&device.0, method)], &[], || Ok::<_, Error>(()));
        let sevens = || {
            let bytes = fs::read(&path).unwrap();
            bytes.iter().filter(|byte| **byte == 7).count() as u64
        };
        let held = claim(&device.0).unwrap();
        let refused = wipe(Method::Zeroes).unwrap_err();
        assert!(refused.to_string().ends_with("is in use"), "{refused}");
        let missing = [wish(&device.0, Method::Fast), wish("no-such-disk", Method::Fast)];
        super::wipe(&missing, &[], || Ok::<_, Error>(())).unwrap_err();
        assert_eq!(sevens(), 8 * MIB, "nothing was touched");
        drop(held);
        wipe(Method::Fast).unwrap();
        assert_eq!(sevens(), 6 * MIB);
        // Nobody waits any more.
        let given_up = || Err(Error::None("given up".to_owned()));
        super::wipe(&[wish(&device.0, Method::Zeroes)], &[], given_up).unwrap_err();
        assert_eq!(sevens(), 6 * MIB);
        wipe(Method::Zeroes).unwrap();
        assert_eq!(sevens(), 0);
    }
}
