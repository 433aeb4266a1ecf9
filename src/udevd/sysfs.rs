//! Devices as `/sys/devices` shows them, behind a trait: what is decided from it is tested with a few
//! attributes in a map.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;

use crate::encode;

/// What a sysfs says. Paths start with a slash and are relative to where it is mounted.
pub trait Sysfs {
    /// The bytes of an attribute, at most 4 KiB; `None` when it is not there or cannot be read (many
    /// answer so while there is no medium, no link).
    fn attribute(&self, path: &str, name: &str) -> Option<Vec<u8>>;

    /// The last component of where a symbolic link leads.
    fn link(&self, path: &str, name: &str) -> Option<String>;

    /// The names in a folder, sorted.
    fn names(&self, path: &str) -> Vec<String>;
}

/// The kernel's, where it is mounted.
#[derive(Clone, Debug)]
pub struct Mounted(pub PathBuf);

impl Mounted {
    fn path(&self, path: &str, name: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/')).join(name)
    }
}

impl Sysfs for Mounted {
    fn attribute(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let file = self.path(path, name);
        fs::symlink_metadata(&file).ok().filter(fs::Metadata::is_file)?;
        // Some cards do not bear that more of their configuration is read.
        let most = if name == "config" { 64 } else { 4096 };
        let mut bytes = Vec::new();
        File::open(file).ok()?.take(most).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn link(&self, path: &str, name: &str) -> Option<String> {
        let target = fs::read_link(self.path(path, name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path, "")).into_iter().flatten();
        let mut names: Vec<_> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        orlop_rt::sort(&mut names);
        names
    }
}

/// One device.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    sysfs: &'a dyn Sysfs,
    /// `/devices/…`
    pub path: &'a str,
}

impl std::fmt::Debug for Device<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.path).finish()
    }
}

impl<'a> Device<'a> {
    /// The device with this path; it may be gone.
    #[must_use]
    pub fn new(sysfs: &'a dyn Sysfs, path: &'a str) -> Self {
        Self { sysfs, path }
    }

    /// Where everything else is.
    #[must_use]
    pub fn sysfs(&self) -> &'a dyn Sysfs {
        self.sysfs
    }

    /// The kernel's name for it.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// An attribute as bytes.
    #[must_use]
    pub fn bytes(&self, attribute: &str) -> Option<Vec<u8>> {
        self.sysfs.attribute(self.path, attribute)
    }

    /// An attribute without white space around it, unless nothing is left.
    #[must_use]
    pub fn text(&self, attribute: &str) -> Option<String> {
        Some(encode::text(&self.bytes(attribute)?)).filter(|text| !text.is_empty())
    }

    /// A decimal attribute.
    #[must_use]
    pub fn number(&self, attribute: &str) -> Option<u64> {
        self.text(attribute)?.parse().ok()
    }

    /// `block`, `pci`…; folders that are no devices have none.
    #[must_use]
    pub fn subsystem(&self) -> Option<String> {
        self.sysfs.link(self.path, "subsystem")
    }

    /// Whether it has this subsystem.
    #[must_use]
    pub fn is(&self, subsystem: &str) -> bool {
        self.subsystem().is_some_and(|name| name == subsystem)
    }

    /// The nearest device above it.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.above().next()
    }

    /// All devices above it, nearest first.
    pub fn above(&self) -> impl Iterator<Item = Self> + use<'a> {
        let (sysfs, path) = (self.sysfs, self.path);
        path.rmatch_indices('/')
            .map(move |(at, _)| Self { sysfs, path: &path[..at] })
            .take_while(|device| device.path.len() > "/devices".len())
            .filter(|device| device.subsystem().is_some())
    }

    /// The nearest device above it of this subsystem.
    #[must_use]
    pub fn within(&self, subsystem: &str) -> Option<Self> {
        self.above().find(|device| device.is(subsystem))
    }
}

/// A sysfs of a few attributes.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Fake(pub(crate) std::collections::BTreeMap<String, Vec<u8>>);

#[cfg(test)]
impl Fake {
    /// From lines `PATH/NAME=VALUE`; of links, such as `subsystem`, the value is the last component.
    pub(crate) fn new(lines: &[&str]) -> Self {
        let split = |line: &&str| {
            let (path, value) = line.split_once('=').unwrap_or((line, ""));
            (path.to_owned(), value.as_bytes().to_vec())
        };
        Self(lines.iter().map(split).collect())
    }
}

#[cfg(test)]
impl Sysfs for Fake {
    fn attribute(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        self.0.get(&format!("{path}/{name}")).cloned()
    }

    fn link(&self, path: &str, name: &str) -> Option<String> {
        self.attribute(path, name).map(|bytes| encode::text(&bytes))
    }

    fn names(&self, path: &str) -> Vec<String> {
        let inside = format!("{path}/");
        let names = self.0.keys().filter_map(|key| key.strip_prefix(&inside)?.split('/').next());
        names.map(str::to_owned).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }
}
