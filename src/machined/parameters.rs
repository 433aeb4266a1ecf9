//! Node parameters, the second way in (spec/cluster-api §5.1): where they are looked for, by a child, and what they make
//! of the machine.
//!
//! The kernel argument `node.params=` says where they are; else QEMU's `fw_cfg` has them, else the EFI system partition.
//! A machine that has become a node needs them no more. What follows from them is a machine configuration like any
//! other, which only says less: the network is as they say, and which services run, the cluster decides
//! ([`crate::curator`]).

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use orlop_config::generate;
use orlop_config::machine::{self, Etcd, MachineConfig, Network};
use orlop_config::parameters::{NodeParameters, SIZE_LIMIT};
use orlop_rt::{Chain, Exit};
use orlop_supervise::container::Capability;
use orlop_supervise::process::Privileges;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::acquire::{self, bounded};
use crate::document::Document;
use crate::node::Node;
use crate::source::Source;
use crate::{Error, config, curator, label, services};

/// Where the kernel shows what QEMU was given by `-fw_cfg name=dev.monogon.metropolis/parameters.pb,file=…`, or with
/// the prefix that QEMU asks of names that are not its own (docs/specs/fw_cfg.rst).
const FW_CFG: [&str; 2] = [
    "/sys/firmware/qemu_fw_cfg/by_name/opt/dev.monogon.metropolis/parameters.pb/raw",
    "/sys/firmware/qemu_fw_cfg/by_name/dev.monogon.metropolis/parameters.pb/raw",
];
/// Names of the EFI system partition, or of the file system on it.
const ESP: [&str; 2] = ["ESP", "EFI"];
const ON_ESP: &str = "metropolis/parameters.pb";
const MOUNT_POINT: &str = "/run/orlop/esp";
/// What the child has accepted.
const ACCEPTED: &str = "/run/orlop/parameters.pb";
const COMPLAINTS: &str = "/run/orlop/parameters.log";
/// One try, whatever it waits for.
const TRY_LIMIT: Duration = Duration::from_secs(70);
const RETRY: Duration = Duration::from_secs(5);

/// Look for node parameters and check them (PID 1 runs this as its child).
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// /PATH, file:///PATH or http://…, in place of fw_cfg and the EFI system partition
    #[arg(long)]
    from: Option<String>,
    /// Where they go, if there are any; its mode is 0600
    #[arg(long)]
    to: PathBuf,
}

/// Runs as the child.
pub(crate) fn main(options: &Options) -> ExitCode {
    let found = match &options.from {
        Some(word) => from_word(word).map(Some),
        None => look(&FW_CFG.map(Path::new), from_esp).map_err(|why| (Exit::Failed, why)),
    };
    let bytes = match found {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Exit::Ok.into(),
        Err((exit, why)) => {
            eprintln!("{why}");
            return exit.into();
        }
    };
    match NodeParameters::decode(&bytes).map(|parameters| parameters.network()) {
        Ok(Ok(network)) => {
            for left_out in network.into_iter().flat_map(|(_, left_out)| left_out) {
                eprintln!("node parameters: {left_out}");
            }
        }
        Ok(Err(wrong)) | Err(wrong) => {
            eprintln!("{wrong}");
            return Exit::Config.into();
        }
    }
    match orlop_rt::replace(&options.to, 0o600, &bytes) {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            eprintln!("write {}: {error}", options.to.display());
            Exit::Failed.into()
        }
    }
}

fn from_word(word: &str) -> Result<Vec<u8>, (Exit, String)> {
    let url = if word.starts_with('/') { format!("file://{word}") } else { word.to_owned() };
    let source = match Source::parse(&url, "") {
        Ok(Source::Volume) | Err(_) => {
            let why = format!("node.params={word}: give /PATH, file:///PATH or http://HOST/PATH");
            return Err((Exit::Config, why));
        }
        Ok(source) => source,
    };
    acquire::fetch(&source).map_err(|error| (Exit::Failed, Chain(&error).to_string()))
}

/// What the hypervisor gives, else what is on the EFI system partition.
fn look(
    fw_cfg: &[&Path],
    esp: impl FnOnce() -> Result<Option<Vec<u8>>, String>,
) -> Result<Option<Vec<u8>>, String> {
    if let Some(fw_cfg) = fw_cfg.iter().find(|path| path.exists()) {
        let read = bounded(fw_cfg, SIZE_LIMIT as u64);
        let bytes = read.map_err(|error| format!("read {}: {error}", fw_cfg.display()))?;
        if esp().is_ok_and(|there| there.is_some_and(|there| there != bytes)) {
            eprintln!(
                "node parameters of fw_cfg are taken; those on the EFI system partition differ"
            );
        }
        return Ok(Some(bytes));
    }
    esp()
}

fn from_esp() -> Result<Option<Vec<u8>>, String> {
    let Some(device) = esp().map_err(|error| format!("list the block devices: {error}"))? else {
        return Ok(None);
    };
    let at = |doing: &str, error: &dyn std::fmt::Display| {
        format!("{doing} the EFI system partition {}: {error}", device.display())
    };
    fs::create_dir_all(MOUNT_POINT).map_err(|error| at("make a folder for", &error))?;
    // Left by a child that was killed for being late.
    while umount2(MOUNT_POINT, MntFlags::MNT_DETACH).is_ok() {}
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(&device), MOUNT_POINT, Some("vfat"), flags, None::<&str>)
        .map_err(|error| at("mount", &error))?;
    let path = Path::new(MOUNT_POINT).join(ON_ESP);
    let bytes = match bounded(&path, SIZE_LIMIT as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(&format!("read {ON_ESP} of"), &error)),
    };
    umount2(MOUNT_POINT, MntFlags::MNT_DETACH).map_err(|error| at("unmount", &error))?;
    bytes
}

fn esp() -> io::Result<Option<PathBuf>> {
    for name in ESP {
        if let Some((device, volume)) = label::find(name)?
            && volume.fstype == "vfat"
        {
            return Ok(Some(device));
        }
        if let Some(name) = label::partitions(Path::new("/sys/class/block"), name)?.first() {
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}

/// The document of a machine that is a node, or is told by parameters to become one; none: it came another way.
///
/// # Errors
/// Parameters that are wrong, or what is kept of the node.
pub(crate) async fn load(node: &Node) -> Result<Option<Document>, Error> {
    let enrolled = curator::is_enrolled();
    let word = node.cmdline().node_parameters();
    // Another way was named or gone before, and this one was not.
    let other = node.cmdline().config().is_some() || Path::new(config::KEPT).exists();
    if other && !enrolled && word.is_none() {
        return Ok(None);
    }
    let found = if enrolled && word.is_none() { None } else { find(node, word, enrolled).await? };
    if found.is_none() && !enrolled {
        return Ok(None);
    }
    info!(enrolled, "this machine goes by node parameters");
    hand_over(found.as_deref())?;
    let decoded = found.as_deref().map(NodeParameters::decode).transpose();
    let network = decoded.and_then(|told| told.map_or(Ok(None), |told| told.network()));
    let network = network.map_err(|wrong| {
        error!("{wrong}");
        Error::BadConfiguration
    })?;
    let document = Document::of(configuration(network.map(|(network, _)| network))?);
    node.go_by_roles();
    Ok(Some(document))
}

/// What the child has found. Of a node of a cluster they do not matter any more: what fails is only said.
async fn find(node: &Node, word: Option<&str>, enrolled: bool) -> Result<Option<Vec<u8>>, Error> {
    if word.is_some_and(|word| word.starts_with("http:")) {
        services::start_early_network(node).await?;
    }
    loop {
        match try_once(node, word).await? {
            Ok(found) => return Ok(found),
            Err((_, why)) if enrolled => {
                warn!(why, "node parameters are not there, and not needed any more");
                return Ok(None);
            }
            // Nobody has said that there are any.
            Err((false, why)) if word.is_none() => {
                warn!(why, "there is no looking for node parameters");
                return Ok(None);
            }
            Err((true, why)) => {
                why.lines().for_each(|line| error!("{line}"));
                return Err(Error::BadConfiguration);
            }
            Err((false, why)) => {
                warn!(why, "no node parameters yet; trying on");
                sleep(RETRY).await;
            }
        }
    }
}

/// What was found, if anything; else whether it is for good, and why.
type Found = Result<Option<Vec<u8>>, (bool, String)>;

async fn try_once(node: &Node, word: Option<&str>) -> Result<Found, Error> {
    let run = || {
        fs::create_dir_all("/run/orlop")?;
        match fs::remove_file(ACCEPTED) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut command = Command::new(services::BINARY);
        command
            .args(["machined", "parameters", "--to", ACCEPTED])
            .args(word.iter().flat_map(|word| ["--from", word]))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(COMPLAINTS)?);
        // It reads root's files and devices, and mounts one of them: nothing else.
        let capabilities = vec![Capability::CAP_SYS_ADMIN];
        Privileges { user: (0, 0), capabilities }.confine(&mut command);
        node.reaper().spawn(&mut command)
    };
    let mut child = run().map_err(|source| Error::Acquire { source })?;
    let Ok(status) = timeout(TRY_LIMIT, child.wait()).await else {
        child.signal(Signal::SIGKILL).map_err(|source| Error::Acquire { source })?;
        return Ok(Err((false, format!("no answer in {} s", TRY_LIMIT.as_secs()))));
    };
    let complaints = fs::read_to_string(COMPLAINTS).unwrap_or_default();
    if status.code() != Some(Exit::Ok as i32) {
        let said = if complaints.is_empty() { status.to_string() } else { complaints };
        return Ok(Err((status.code() == Some(Exit::Config as i32), said)));
    }
    complaints.lines().for_each(|line| warn!("{line}"));
    match fs::read(ACCEPTED) {
        Ok(bytes) => Ok(Ok(Some(bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
        Err(source) => Err(Error::file("read", ACCEPTED, source)),
    }
}

/// Places them where the curator reads them, and nobody else: there is a ticket in them.
fn hand_over(parameters: Option<&[u8]>) -> Result<(), Error> {
    let path = Path::new(curator::PARAMETERS);
    let Some(bytes) = parameters else {
        return match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", path, source))
            }
            _ => Ok(()),
        };
    };
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| orlop_rt::replace(path, 0o400, bytes))
        .and_then(|()| chown(path, Some(curator::UID), None))
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o755)))
        .map_err(|source| Error::file("write", path, source))
}

/// The same every time: its authority of Kubernetes is made once, and kept.
fn configuration(network: Option<Network>) -> Result<MachineConfig, Error> {
    let kept = Path::new(curator::MACHINE);
    let mut config = match fs::read_to_string(kept) {
        Ok(text) => machine::parse("machine.yaml", &text).map_err(|problems| {
            error!("{}: {problems}", kept.display());
            Error::BadConfiguration
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = fresh(SystemTime::now()).map_err(|error| {
                error!(error = %Chain(&error), "make the authority of Kubernetes");
                Error::BadConfiguration
            })?;
            if let Some(folder) = kept.parent() {
                fs::create_dir_all(folder)
                    .map_err(|source| Error::file("create the folder", folder, source))?;
            }
            orlop_rt::replace(kept, 0o600, made.to_yaml().as_bytes())
                .map_err(|source| Error::file("write", kept, source))?;
            made
        }
        Err(source) => return Err(Error::file("read", kept, source)),
    };
    if let Some(network) = network {
        config.machine.network = network;
    }
    Ok(config)
}

/// That of a control plane, without what belongs to the other way in: the cluster lets nodes in, and who drives them.
fn fresh(now: SystemTime) -> Result<MachineConfig, generate::Error> {
    let options = generate::Options::default();
    let made = generate::generate("cluster", "https://127.0.0.1:6443", &options, now)?;
    let mut config = made.control_plane;
    config.persist = false;
    config.machine.ca = None;
    config.machine.token = None;
    config.machine.network = Network::default();
    config.cluster.etcd = None::<Etcd>;
    Ok(config)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisors_word_goes_before_the_disks() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        let fw_cfg = [&folder.path().join("absent"), raw.as_path()];
        let on_disk = || Ok(Some(b"disk".to_vec()));
        assert_eq!(look(&fw_cfg, on_disk).unwrap().unwrap(), b"disk");
        assert_eq!(look(&fw_cfg, || Ok(None)).unwrap(), None);
        look(&fw_cfg, || Err("broken".to_owned())).unwrap_err();
        fs::write(&raw, "fw_cfg").unwrap();
        assert_eq!(look(&fw_cfg, on_disk).unwrap().unwrap(), b"fw_cfg");
        assert_eq!(look(&fw_cfg, || Err("broken".to_owned())).unwrap().unwrap(), b"fw_cfg");
        fs::write(&raw, vec![0; SIZE_LIMIT + 1]).unwrap();
        assert!(look(&fw_cfg, on_disk).unwrap_err().contains("larger than"));
    }

    #[test]
    fn a_word_names_a_file_or_a_url() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.pb");
        fs::write(&path, "x").unwrap();
        let word = path.display().to_string();
        assert_eq!(from_word(&word).unwrap(), b"x");
        assert_eq!(from_word(&format!("file://{word}")).unwrap(), b"x");
        for (word, exit) in
            [("metal-iso", Exit::Config), ("x", Exit::Config), ("/absent", Exit::Failed)]
        {
            assert_eq!(from_word(word).unwrap_err().0, exit, "{word}");
        }
    }

    #[test]
    fn the_configuration_has_what_services_by_role_need_and_no_more() {
        let config = fresh(SystemTime::now()).unwrap();
        assert!(config.cluster.ca.as_ref().is_some_and(|ca| ca.key.is_some()));
        assert!(config.machine.ca.is_none() && config.machine.token.is_none() && !config.persist);
        let again = machine::parse("machine.yaml", &config.to_yaml()).unwrap();
        assert_eq!(again, config);
    }
}
