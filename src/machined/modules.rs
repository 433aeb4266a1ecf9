//! `machine.kernel.modules`: what the configuration wants in the kernel.
//!
//! A module that cannot be had is told, and the boot goes on: a node that boots can be corrected.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use orlop_config::machine::KernelModule;
use orlop_rt::Chain;
use tracing::{info, warn};

/// `MODULE_INIT_COMPRESSED_FILE` of `finit_module(2)`, which nix does not name: the kernel unpacks it.
const COMPRESSED: u32 = 4;

/// Where modules and what the kernel says of them are.
struct Places<'a> {
    /// `/sys/module`
    loaded: &'a Path,
    /// `/lib/modules/RELEASE`
    files: &'a Path,
}

/// Why one is not there as it should be.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "it is not loaded, and {} has no file of it: take it out of machine.kernel.modules if this \
         kernel has it built in, else use an image that has it",
        folder.display()
    )]
    Absent { folder: PathBuf },
    #[error("{} is not signed with a key of this kernel", path.display())]
    Untrusted { path: PathBuf },
    #[error("load {}", path.display())]
    Load { path: PathBuf, source: io::Error },
    #[error("it was there already, and does not take {parameter:?} any more")]
    Parameter { parameter: String, source: io::Error },
}

/// What is done about one.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It is in the kernel: only its parameters are set.
    Set,
    /// These files are loaded in this order, the parameters are the last one's.
    Load(Vec<String>),
    Absent,
}

/// Loads those that are not there. May wait for a device.
pub(crate) fn load(modules: &[KernelModule]) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let files = Path::new("/lib/modules").join(release.trim());
    let places = Places { loaded: Path::new("/sys/module"), files: &files };
    for module in modules {
        match places.provide(module) {
            Ok(()) => info!(module = module.name, "the module of the configuration is there"),
            Err(error) => warn!(
                module = module.name,
                error = %Chain(&error),
                "a module of the configuration is missing"
            ),
        }
    }
}

impl Places<'_> {
    fn provide(&self, module: &KernelModule) -> Result<(), Error> {
        let read = |name: &str| fs::read_to_string(self.files.join(name)).unwrap_or_default();
        let name = plain(&module.name);
        let there = self.loaded.join(&name).exists();
        match plan(&name, there, &read("modules.builtin"), &read("modules.dep")) {
            Plan::Set => self.set(&name, &module.parameters),
            Plan::Load(files) => {
                let parameters = line(&module.parameters);
                let last = files.len() - 1;
                for (i, file) in files.iter().enumerate() {
                    let parameters = if i == last { parameters.as_str() } else { "" };
                    insert(&self.files.join(file), parameters)?;
                }
                Ok(())
            }
            Plan::Absent => Err(Error::Absent { folder: self.files.to_owned() }),
        }
    }

    /// Sets parameters of a module that is in the kernel.
    fn set(&self, name: &str, parameters: &[String]) -> Result<(), Error> {
        let folder = self.loaded.join(name).join("parameters");
        for parameter in parameters {
            // A switch is named without a value.
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, "1"));
            let file = folder.join(plain(key));
            let has = fs::read_to_string(&file).is_ok_and(|now| is_same(now.trim(), value));
            // Never makes one: a name that leads elsewhere finds nothing to write to.
            let write = || {
                File::options()
                    .write(true)
                    .open(&file)
                    .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            };
            if !has {
                write()
                    .map_err(|source| Error::Parameter { parameter: parameter.clone(), source })?;
            }
        }
        Ok(())
    }
}

/// Decides by what the kernel has and what depmod(8) wrote.
fn plan(name: &str, there: bool, builtin: &str, dep: &str) -> Plan {
    if there || builtin.lines().any(|file| of_file(file) == name) {
        return Plan::Set;
    }
    let line = dep.lines().find_map(|line| {
        let (file, needs) = line.split_once(':')?;
        (of_file(file) == name).then_some((file, needs))
    });
    let Some((file, needs)) = line else { return Plan::Absent };
    // Each needs those after it.
    let files: Vec<_> = needs.split_whitespace().rev().chain([file]).map(str::to_owned).collect();
    let outside = |file: &String| file.split('/').any(|part| matches!(part, "" | "." | ".."));
    if files.iter().any(outside) { Plan::Absent } else { Plan::Load(files) }
}

/// The kernel's name of the module in a file.
fn of_file(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or_default();
    plain(base.split(".ko").next().unwrap_or_default())
}

fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Parameters as one line; values with blanks in quotes (`parse_args()` of the kernel).
fn line(parameters: &[String]) -> String {
    let quoted = |parameter: &String| match parameter.split_once('=') {
        Some((key, value)) if value.contains(' ') && !value.starts_with('"') => {
            format!("{key}=\"{value}\"")
        }
        _ => parameter.clone(),
    };
    parameters.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Whether a parameter that reads as `now` is what is wanted; switches read as `Y` and `N`.
fn is_same(now: &str, wanted: &str) -> bool {
    now == wanted
        || match now {
            "Y" => matches!(wanted, "1" | "y" | "on"),
            "N" => matches!(wanted, "0" | "n" | "off"),
            _ => false,
        }
}

fn insert(path: &Path, parameters: &str) -> Result<(), Error> {
    let failed = |source| Error::Load { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let parameters = std::ffi::CString::new(parameters)
        .map_err(|_| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let packed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = ModuleInitFlags::from_bits_retain(if packed { COMPRESSED } else { 0 });
    match finit_module(file, &parameters, flags) {
        // udevd was faster, or another one needed it.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(Errno::EKEYREJECTED | Errno::ENOKEY | Errno::EBADMSG) => {
            Err(Error::Untrusted { path: path.to_owned() })
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn module(name: &str, parameters: &[&str]) -> KernelModule {
        let parameters = parameters.iter().map(|text| (*text).to_owned()).collect();
        KernelModule { name: name.to_owned(), parameters }
    }

    #[test]
    fn what_is_there_is_not_loaded_and_what_is_needed_comes_first() {
        let builtin = "kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme/host/nvme-core.ko\n";
        let dep = "kernel/net/br-netfilter.ko.zst: kernel/net/bridge.ko.zst kernel/net/stp.ko.zst\n\
                   kernel/net/bridge.ko.zst: kernel/net/stp.ko.zst\n\
                   ../out.ko:\n/etc/passwd.ko:\nno line\n";
        let plan = |name| plan(name, false, builtin, dep);
        assert_eq!(plan("nvme_core"), Plan::Set);
        let all =
            ["kernel/net/stp.ko.zst", "kernel/net/bridge.ko.zst", "kernel/net/br-netfilter.ko.zst"];
        assert_eq!(plan("br_netfilter"), Plan::Load(all.map(str::to_owned).to_vec()));
        for name in ["nvme", "out", "passwd", "no line", ""] {
            assert_eq!(plan(name), Plan::Absent, "{name}");
        }
        assert_eq!(super::plan("anything", true, "", ""), Plan::Set);
    }

    #[test]
    fn parameters_of_what_is_there_are_set_or_told() {
        let home = tempfile::tempdir().unwrap();
        let (loaded, files) = (home.path().join("module"), home.path().join("none"));
        let folder = loaded.join("br_netfilter/parameters");
        fs::create_dir_all(&folder).unwrap();
        for (name, now) in [("debug_level", "0\n"), ("switch", "Y\n")] {
            fs::write(folder.join(name), now).unwrap();
        }
        let places = Places { loaded: &loaded, files: &files };
        places.provide(&module("br-netfilter", &["debug-level=7", "switch=1", "switch"])).unwrap();
        assert_eq!(fs::read_to_string(folder.join("debug_level")).unwrap().trim(), "7");
        assert_eq!(fs::read_to_string(folder.join("switch")).unwrap(), "Y\n", "left alone");
        let error = places.provide(&module("br_netfilter", &["other=1"])).unwrap_err().to_string();
        assert_eq!(error, "it was there already, and does not take \"other=1\" any more");
        assert!(!folder.join("other").exists());
        let error = places.provide(&module("dummy", &[])).unwrap_err().to_string();
        assert!(error.contains("/none has no file of it: take it out of"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_module_is_told_with_its_path() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("modules.dep"), "a.ko:\n").unwrap();
        let places = Places { loaded: Path::new("/nowhere"), files: home.path() };
        let error = places.provide(&module("a", &[])).unwrap_err();
        assert!(error.to_string().starts_with("load /"), "{error}");
    }

    #[test]
    fn values_with_blanks_are_quoted() {
        let parameters =
            ["a=1".to_owned(), "b=x y".to_owned(), "c=\"x y\"".to_owned(), "d".to_owned()];
        assert_eq!(line(&parameters), "a=1 b=\"x y\" c=\"x y\" d");
    }
}
