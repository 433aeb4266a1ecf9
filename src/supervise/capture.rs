//! What a service writes, from a pipe into its log.

use std::fs::File;
use std::io::{self, Read};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::log::Log;

/// More reads than it takes to empty a pipe of the default size (64 KiB).
const DRAIN_READS: usize = 32;

/// The reading end of a service's output.
#[derive(Debug)]
pub(crate) struct Capture {
    pipe: Receiver,
    log: Log,
    buffer: Box<[u8; 4096]>,
    ended: bool,
}

impl Capture {
    pub(crate) fn new(pipe: Receiver, log: Log) -> Self {
        Self { pipe, log, buffer: Box::new([0; 4096]), ended: false }
    }

    /// Copies until dropped, also when all writers are gone. Cancel-safe: what was read is kept
    /// before the next await.
    pub(crate) async fn run(&mut self) -> std::convert::Infallible {
        loop {
            if self.ended {
                return std::future::pending().await;
            }
            let read = self.pipe.read(&mut *self.buffer).await;
            self.ended = keep(&self.log, &*self.buffer, read);
        }
    }

    /// Copies what is in the pipe. For when the service has ended: somebody else may still write.
    pub(crate) fn drain(self) {
        let Self { pipe, log, mut buffer, .. } = self;
        // Past the runtime, which reads only once it was told that there is something: that may come
        // after the news of the service's end.
        let mut pipe = match pipe.into_nonblocking_fd() {
            Ok(pipe) => File::from(pipe),
            Err(error) => return lost(&log, &error),
        };
        for _ in 0..DRAIN_READS {
            let read = pipe.read(&mut *buffer);
            let empty = matches!(&read, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            if empty || keep(&log, &*buffer, read) {
                return;
            }
        }
    }
}

/// Whether that was the end.
fn keep(log: &Log, buffer: &[u8], read: io::Result<usize>) -> bool {
    match read {
        Ok(0) => true,
        Ok(count) => {
            log.write(&buffer[..count]);
            false
        }
        Err(error) => {
            lost(log, &error);
            true
        }
    }
}

fn lost(log: &Log, error: &io::Error) {
    log.write(format!("(output lost: {error})\n").as_bytes());
}
