//! Says when somebody who wrote to a block device has closed it, `inotify(7)`: there may be another
//! file system on it now, and the kernel does not say so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// The block devices that are watched.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Inotify,
    /// The same descriptor, for the runtime.
    ready: AsyncFd<File>,
    watched: BTreeMap<String, (WatchDescriptor, String)>,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let same = inotify.as_fd().try_clone_to_owned()?;
        let ready = orlop_sys::watch_readable(File::from(same))?;
        Ok(Self { inotify, ready, watched: BTreeMap::new() })
    }

    /// Watches the node of a device, by its id.
    pub(crate) fn add(&mut self, id: &str, node: &Path, devpath: &str) -> io::Result<()> {
        match self.inotify.add_watch(node, AddWatchFlags::IN_CLOSE_WRITE) {
            Ok(watch) => drop(self.watched.insert(id.to_owned(), (watch, devpath.to_owned()))),
            // Gone since.
            Err(Errno::ENOENT) => self.remove(id),
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: &str) {
        if let Some((watch, _)) = self.watched.remove(id) {
            // The kernel has done so itself when the node went.
            let _ = self.inotify.rm_watch(watch);
        }
    }

    /// Waits until devices were written to, and returns their paths. Cancel-safe.
    pub(crate) async fn next(&self) -> io::Result<Vec<String>> {
        loop {
            let mut ready = self.ready.readable().await?;
            let events = match self.inotify.read_events() {
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    ready.clear_ready();
                    continue;
                }
                events => events?,
            };
            let written: Vec<_> = self
                .watched
                .values()
                .filter(|(watch, _)| {
                    events.iter().any(|event| {
                        event.wd == *watch && event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE)
                    })
                })
                .map(|(_, devpath)| devpath.clone())
                .collect();
            if !written.is_empty() {
                return Ok(written);
            }
        }
    }
}
