//! Where the configuration comes from, and when it is another (spec/ambassador §5.4): a folder with a file for each
//! part (a ConfigMap volume is one), a ConfigMap object in a file, or one file with all parts.
//!
//! What changes is noticed by inotify on the folder the name is in, so that it does not matter how a file is replaced.
//! A file that is read while it is being written may be wrong for a moment: it is read again with the next change.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use orlop_config::Problems;
use orlop_rt::Chain;
use orlop_sys::watch_readable;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};
use tracing::{info, warn};

use crate::configuration::{self, Configuration, Loaded, PARTS};

/// The largest file that is read, in bytes: what etcd, and so a ConfigMap, can hold.
const MAX_FILE: u64 = 2 << 20;
/// Changes that come together are read together.
const SETTLE: Duration = Duration::from_millis(20);
/// Bytes of events that are read at once; one has at most 16 and a name of 256.
const EVENTS: usize = 4096;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is wrong.
    #[error("{0}")]
    Wrong(Problems),
    /// Changes cannot be noticed.
    #[error("watch {}", path.display())]
    Watch {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Reads what is at `path` now.
///
/// # Errors
/// [`Error::Read`], [`Error::Wrong`].
pub fn load(path: &Path) -> Result<Loaded, Error> {
    let text = |path: &Path| {
        let read = fs::metadata(path).and_then(|meta| {
            if meta.len() > MAX_FILE {
                return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
            }
            fs::read_to_string(path)
        });
        read.map_err(|source| Error::Read { path: path.to_owned(), source })
    };
    let name = path.display().to_string();
    let loaded = if path.is_dir() {
        let mut texts = Vec::new();
        for part in PARTS {
            let file = path.join(part);
            if file.exists() {
                texts.push((part, file.display().to_string(), text(&file)?));
            }
        }
        let parts: Vec<_> =
            texts.iter().map(|(part, file, text)| (*part, file.clone(), text.as_str())).collect();
        configuration::parts(&parts)
    } else {
        let text = text(path)?;
        if configuration::is_config_map(&text) {
            configuration::config_map(&name, &text)
        } else {
            configuration::inline(&name, &text)
        }
    };
    loaded.map_err(Error::Wrong)
}

/// Watches `path` and says what it became. What is wrong is logged, and what was before stays.
///
/// # Errors
/// [`Error::Watch`]; nothing else ends it.
pub async fn follow(path: &Path, told: &watch::Sender<Arc<Configuration>>) -> Result<(), Error> {
    let watching = |source| Error::Watch { path: path.to_owned(), source };
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .map_err(|errno| watching(errno.into()))?;
    let descriptor = inotify.as_fd().try_clone_to_owned().map_err(watching)?;
    let events = watch_readable(descriptor.into()).map_err(watching)?;
    let mut last = String::new();
    loop {
        // Before it is read: what changes from here on is noticed. A folder that was replaced is another one.
        add(&inotify, path).map_err(|errno| watching(errno.into()))?;
        match load(path) {
            Ok(loaded) => {
                last.clear();
                become_configured(loaded, told);
            }
            Err(error) => {
                let text = Chain(&error).to_string();
                if text != last {
                    warn!("the configuration stays as it was: {text}");
                    last = text;
                }
            }
        }
        events.async_io(Interest::READABLE, drain).await.map_err(watching)?;
        sleep(SETTLE).await;
        // Those of the meantime are read with it.
        let _ = drain(events.get_ref());
    }
}

/// Takes all events there are.
fn drain(mut events: &File) -> io::Result<()> {
    let mut buffer = [0; EVENTS];
    let mut taken = false;
    loop {
        match events.read(&mut buffer) {
            Ok(_) => taken = true,
            Err(error) if taken && error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Watches the path itself if it is a folder, and the folder it is in: either may be replaced. To watch again changes
/// nothing.
fn add(inotify: &Inotify, path: &Path) -> nix::Result<()> {
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_ONLYDIR;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    };
    let mut added = Err(Errno::ENOENT);
    for folder in [parent, path] {
        match inotify.add_watch(folder, flags) {
            Ok(_) => added = Ok(()),
            // A file, or not there yet.
            Err(Errno::ENOTDIR | Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    added
}

/// Tells a configuration if it is another.
fn become_configured(loaded: Loaded, told: &watch::Sender<Arc<Configuration>>) {
    let Loaded { configuration, warnings } = loaded;
    let changed = told.send_if_modified(|known| {
        let other = **known != configuration;
        if other {
            *known = Arc::new(configuration);
        }
        other
    });
    if changed {
        for warning in &warnings {
            warn!("{warning}; it is left out");
        }
        let now = told.borrow();
        let (trenches, streams, flows) = (now.trenches.len(), now.streams.len(), now.flows.len());
        info!(trenches, streams, flows, "configured");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn trench(name: &str) -> String {
        format!("trench: {{name: {name}}}\n")
    }

    async fn until(seen: &mut watch::Receiver<Arc<Configuration>>, name: &str) {
        let named = |configuration: &Arc<Configuration>| {
            configuration.trenches.first().is_some_and(|trench| trench.name == name)
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), seen.wait_for(named)).await;
        waited.expect("in time").expect("followed");
    }

    /// Follows `path` while `check` runs.
    async fn followed(path: &Path, check: impl AsyncFnOnce(watch::Receiver<Arc<Configuration>>)) {
        let (sender, receiver) = watch::channel(Arc::default());
        tokio::select! {
            ended = follow(path, &sender) => panic!("{ended:?}"),
            () = check(receiver) => {}
        }
    }

    #[tokio::test]
    async fn a_file_may_be_written_or_replaced_and_what_is_wrong_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nsp.yaml");
        fs::write(&path, trench("a")).expect("written");
        followed(&path, async |mut seen| {
            until(&mut seen, "a").await;
            fs::write(&path, "trench: [").expect("written");
            fs::write(folder.path().join("new"), trench("b")).expect("written");
            fs::rename(folder.path().join("new"), &path).expect("replaced");
            until(&mut seen, "b").await;
            fs::remove_file(&path).expect("removed");
            fs::write(&path, trench("c")).expect("written");
            until(&mut seen, "c").await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_config_map_volume_is_swapped_as_a_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config");
        let put = |version: &str, name: &str| {
            let data = path.join(version);
            fs::create_dir_all(&data).expect("a folder");
            fs::write(data.join("trench"), format!("name: {name}\n")).expect("written");
            symlink(version, path.join("..tmp")).expect("a link");
            fs::rename(path.join("..tmp"), path.join("..data")).expect("swapped");
        };
        put("..1", "a");
        symlink("..data/trench", path.join("trench")).expect("a link");
        followed(&path, async |mut seen| {
            until(&mut seen, "a").await;
            put("..2", "b");
            until(&mut seen, "b").await;
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_not_there_may_come() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nsp.yaml");
        followed(&path, async |mut seen| {
            fs::write(&path, trench("a")).expect("written");
            until(&mut seen, "a").await;
        })
        .await;
    }

    #[test]
    fn problems_name_the_file_and_the_line() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("vips"), "items:\n- {name: v, address: x}\n")
            .expect("written");
        let problem = load(folder.path()).expect_err("a bad address").to_string();
        assert!(problem.contains("/vips:2:"), "{problem}");
    }
}
