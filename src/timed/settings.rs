//! What timed goes by: the operator's section, and what the network's DHCP servers gave; both may
//! change while it runs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use orlop_config::machine::{Time, TimeServer};
use tokio::io::unix::AsyncFd;

use crate::Error;

/// Asked when neither the configuration nor the network names anybody (spec §6.3).
pub const DEFAULT_SERVER: &str = "pool.ntp.org";
/// So many of the network's servers are asked: more tell nothing new.
const GIVEN: usize = 5;

/// Everything that was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Never empty but in tests.
    pub(crate) servers: Vec<TimeServer>,
    /// Whom to trust when keys are exchanged, PEM; empty: the system's roots.
    pub(crate) nts_ca: String,
    /// How long others wait for the right time.
    pub(crate) boot_timeout: Duration,
}

impl Settings {
    /// Reads the operator's section in `config` and the network's servers in `given`; either may be
    /// absent.
    pub(crate) fn read(config: &Path, given: &Path) -> Result<Self, Error> {
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        };
        Ok(Self::of(&Time::parse(&read(config)?)?, &read(given)?))
    }

    /// The operator's servers, else those of the network (an address or a name on each line), else the
    /// default.
    fn of(time: &Time, given: &str) -> Self {
        let mut servers: Vec<_> =
            time.servers.iter().filter_map(|text| text.parse().ok()).collect();
        if servers.is_empty() {
            let ntp = |server: &TimeServer| matches!(server, TimeServer::Ntp(_));
            let named = given.lines().filter_map(|line| line.parse().ok()).filter(ntp);
            servers = named.take(GIVEN).collect();
        }
        if servers.is_empty() {
            servers.push(TimeServer::Ntp(DEFAULT_SERVER.to_owned()));
        }
        let boot_timeout = time.boot_timeout.unwrap_or_default();
        Self { servers, nts_ca: time.nts_ca.clone(), boot_timeout }
    }
}

/// Says when somebody wrote one of these files, `inotify(7)`.
pub(crate) struct Watch {
    inotify: Inotify,
    /// The same descriptor.
    ready: AsyncFd<File>,
    files: Vec<PathBuf>,
}

impl Watch {
    pub(crate) fn new(files: Vec<PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let same = inotify.as_fd().try_clone_to_owned()?;
        let ready = orlop_sys::watch_readable(File::from(same))?;
        let new = Self { inotify, ready, files };
        new.look()?;
        Ok(new)
    }

    /// A file that is replaced is seen by its folder, one that is bound into a container by itself.
    /// What is watched already is not watched twice.
    fn look(&self) -> io::Result<()> {
        let written = AddWatchFlags::IN_CLOSE_WRITE;
        let placed = written | AddWatchFlags::IN_MOVED_TO;
        for file in &self.files {
            let folder = file.parent().map(|folder| (folder, placed));
            for (path, events) in folder.into_iter().chain([(file.as_path(), written)]) {
                match self.inotify.add_watch(path, events) {
                    Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    /// Waits until one may have changed. Cancel-safe.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            let mut any = false;
            loop {
                match self.inotify.read_events() {
                    Ok(events) => any |= !events.is_empty(),
                    Err(Errno::EAGAIN | Errno::EINTR) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
            ready.clear_ready();
            if any {
                return self.look();
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn servers(config: &str, given: &str) -> Vec<String> {
        let settings = Settings::of(&Time::parse(config).unwrap(), given);
        settings.servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_configuration_comes_before_the_network_and_that_before_the_default() {
        let given = "192.0.2.1\n2001:db8::1\n";
        let config = "servers: [nts://a.example.org, /dev/ptp0]\n";
        assert_eq!(servers(config, given), ["nts://a.example.org", "/dev/ptp0"]);
        assert_eq!(servers("bootTimeout: 1s\n", given), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(servers("", ""), [DEFAULT_SERVER]);
        // What networkd never writes.
        let odd = "a b\nntp.example.org\n/dev/ptp0\nnts://a.org";
        assert_eq!(servers("", odd), ["ntp.example.org"]);
        assert_eq!(servers("", &given.repeat(50)).len(), GIVEN);
    }

    #[test]
    fn what_is_absent_says_nothing_and_what_is_wrong_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (config, given) = (folder.path().join("timed.yaml"), folder.path().join("servers"));
        assert_eq!(Settings::read(&config, &given).unwrap().servers.len(), 1);
        std::fs::write(&config, "servers: [a b]\n").unwrap();
        assert!(matches!(Settings::read(&config, &given), Err(Error::Settings(_))));
    }

    #[tokio::test]
    async fn a_file_that_is_written_replaced_or_made_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("sub/other"));
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(&one, "a").unwrap();
        let watch = Watch::new(vec![one.clone(), other.clone()]).unwrap();
        std::fs::write(&one, "b").unwrap();
        watch.changed().await.unwrap();
        std::fs::write(&other, "c").unwrap();
        watch.changed().await.unwrap();
        let part = folder.path().join("part");
        std::fs::write(&part, "d").unwrap();
        std::fs::rename(&part, &other).unwrap();
        watch.changed().await.unwrap();
    }
}
