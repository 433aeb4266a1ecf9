//! The runner's side of a run: what it is told to do, and what it reports.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::log::Log;
use crate::machine::{Event, Run, Step};

/// Held by the task of a run.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) id: Arc<str>,
    pub(crate) run: Run,
    pub(crate) log: Log,
    pub(crate) steps: mpsc::Receiver<Step>,
    pub(crate) reports: mpsc::Sender<(Arc<str>, Event)>,
}

/// The run is to end, at the stage it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Terminate,
    Kill,
}

impl Control {
    /// Waits for the step `awaited`, or an earlier end. Cancel-safe.
    pub(crate) async fn until(&mut self, awaited: Step) -> Result<(), Stop> {
        match self.steps.recv().await {
            Some(step) if step == awaited => Ok(()),
            Some(Step::Terminate) => Err(Stop::Terminate),
            // Nobody tells us any more: there is no supervisor.
            Some(_) | None => Err(Stop::Kill),
        }
    }

    /// Waits until the run is to end. Cancel-safe.
    pub(crate) async fn stop(&mut self) -> Stop {
        loop {
            match self.steps.recv().await {
                Some(Step::Terminate) => return Stop::Terminate,
                Some(Step::Kill) => return Stop::Kill,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Says that all is ready, and waits for the start.
    pub(crate) async fn ready(&mut self) -> Result<(), Stop> {
        self.report(Event::Prepared(self.run)).await;
        self.until(Step::Start).await
    }

    pub(crate) async fn started(&self, message: String, pid: Option<u32>) {
        self.report(Event::Started { run: self.run, message, pid }).await;
    }

    pub(crate) async fn report(&self, event: Event) {
        // Without a supervisor nobody wants to know.
        let _ = self.reports.send((self.id.clone(), event)).await;
    }
}
