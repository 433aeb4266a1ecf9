//! Streams that a thread of their own makes.
//!
//! Files can wait for a device, and a reader can stop reading: neither may hold up PID 1, whose one
//! async thread and few blocking ones belong to all calls. So each stream of files has a thread, there
//! are [`STREAMS`] of them at most, and between a thread and its call lies a queue of a few items. A
//! full queue stops the thread; a call that ends, ends the thread at the next item or folder entry.

use std::sync::Arc;
use std::thread;

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

/// Threads at a time. Each costs its stack and what its work needs: half a MiB for an archive.
const STREAMS: usize = 16;
/// The work has no recursion in it.
const STACK_BYTES: usize = 256 << 10;

/// Starts threads, up to their number.
#[derive(Debug)]
pub(crate) struct Threads {
    free: Arc<Semaphore>,
}

/// Where a thread puts what it makes.
#[derive(Debug)]
pub(super) struct Outlet<T>(mpsc::Sender<Result<T, Status>>);

/// Why a thread ends before its work is done.
#[derive(Debug)]
pub(super) enum Stop {
    /// The call has ended: nobody wants the rest.
    Gone,
    /// The call fails.
    Failed(Status),
}

impl Threads {
    pub(crate) fn new() -> Self {
        Self { free: Arc::new(Semaphore::new(STREAMS)) }
    }

    /// Runs `work` in a thread and returns what it puts into its outlet, of which `ahead` items wait
    /// at most.
    ///
    /// # Errors
    /// `ResourceExhausted` when no further thread can be had; what `work` fails with before its first
    /// item.
    pub(super) async fn stream<T: Send + 'static>(
        &self,
        ahead: usize,
        work: impl FnOnce(&Outlet<T>) -> Result<(), Stop> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<T, Status>> + Send + 'static, Status> {
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{STREAMS} streams of files are being read from this node already; \
                 try again when one of them has ended"
            ))
        })?;
        let (sender, mut items) = mpsc::channel(ahead);
        let run = move || {
            let outlet = Outlet(sender);
            if let Err(Stop::Failed(status)) = work(&outlet) {
                // The call may be gone by now.
                let _ = outlet.0.blocking_send(Err(status));
            }
            drop(permit);
        };
        thread::Builder::new()
            .name("files".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(run)
            .map_err(|error| Status::resource_exhausted(format!("start a thread: {error}")))?;
        // A failure before the first item is the call's, not one in the midst of a stream.
        let first = items.recv().await.transpose()?;
        let rest = stream::poll_fn(move |context| items.poll_recv(context));
        Ok(stream::iter(first.map(Ok)).chain(rest))
    }
}

impl<T> Outlet<T> {
    /// Hands over an item; waits until there is room for it.
    pub(super) fn send(&self, item: T) -> Result<(), Stop> {
        self.0.blocking_send(Ok(item)).map_err(|_| Stop::Gone)
    }

    /// Whether anybody still waits; to be asked in work that yields nothing for long.
    pub(super) fn wanted(&self) -> Result<(), Stop> {
        if self.0.is_closed() { Err(Stop::Gone) } else { Ok(()) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_reader_that_stops_reading_stops_the_thread_and_one_that_goes_ends_it() {
        const AHEAD: usize = 3;
        let threads = Threads::new();
        let made = Arc::new(AtomicUsize::new(0));
        let (ended, end) = tokio::sync::oneshot::channel();
        let count = Arc::clone(&made);
        let work = move |outlet: &Outlet<usize>| {
            let stop = (0..).try_for_each(|item| {
                count.fetch_add(1, Ordering::SeqCst);
                outlet.send(item)
            });
            ended.send(()).unwrap();
            stop
        };
        let mut items = Box::pin(threads.stream(AHEAD, work).await.unwrap());
        for expected in 0..100 {
            assert_eq!(items.next().await.unwrap().unwrap(), expected);
        }
        // The queue, the item kept back as the first, and the one that waits for room.
        assert!(made.load(Ordering::SeqCst) <= 100 + AHEAD + 1);
        drop(items);
        end.await.unwrap();
    }

    #[tokio::test]
    async fn no_more_than_so_many_at_once_and_an_ended_one_makes_room() {
        let threads = Threads::new();
        let endless = |outlet: &Outlet<()>| loop {
            outlet.send(())?;
        };
        let mut held = Vec::new();
        for _ in 0..STREAMS {
            held.push(threads.stream(1, endless).await.unwrap());
        }
        let refused = threads.stream(1, endless).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("16 streams"), "{refused}");
        held.pop();
        // The thread gives its place back when it notices.
        drop(threads.free.acquire().await.unwrap());
        threads.stream(1, endless).await.map(drop).unwrap();
    }

    #[tokio::test]
    async fn a_failure_before_the_first_item_is_the_calls() {
        let threads = Threads::new();
        let fail = |_: &Outlet<()>| Err(Stop::Failed(Status::not_found("gone")));
        assert_eq!(threads.stream(1, fail).await.map(drop).unwrap_err().message(), "gone");
        let late = |outlet: &Outlet<u8>| {
            outlet.send(1)?;
            Err(Stop::Failed(Status::aborted("late")))
        };
        let items: Vec<_> = threads.stream(1, late).await.unwrap().collect().await;
        assert_eq!(items[0].as_ref().unwrap(), &1);
        assert_eq!((items.len(), items[1].as_ref().unwrap_err().message()), (2, "late"));
    }
}
