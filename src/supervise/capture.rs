//! What a service writes, from a pipe into its log.

use std::io;

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
            self.keep(read);
        }
    }

    /// Copies what is in the pipe. For when the service has ended: somebody else may still write.
    pub(crate) fn drain(&mut self) {
        for _ in 0..DRAIN_READS {
            match self.pipe.try_read(&mut *self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                read => self.keep(read),
            }
            if self.ended {
                return;
            }
        }
    }

    fn keep(&mut self, read: io::Result<usize>) {
        match read {
            Ok(0) => self.ended = true,
            Ok(count) => self.log.write(&self.buffer[..count]),
            Err(error) => {
                self.log.write(format!("(output lost: {error})\n").as_bytes());
                self.ended = true;
            }
        }
    }
}
