//! The services of the node: what can be asked of them, and what is told.

use orlop_proto::machine as proto;
use orlop_supervise::machine::Entry;
use orlop_supervise::{Handle, Permissions, Service, State};
use tonic::Status;

/// What can be asked for a service.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Start,
    Stop,
    Restart,
}

impl Operation {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
        }
    }

    fn allowed(self, permissions: Permissions) -> bool {
        match self {
            Self::Start => permissions.start,
            Self::Stop => permissions.stop,
            Self::Restart => permissions.restart,
        }
    }

    /// Whether a service in `state` is where this would bring it.
    fn done_in(self, state: State) -> bool {
        let down =
            matches!(state, State::Initialized | State::Finished | State::Failed | State::Skipped);
        match self {
            Self::Start => !down && state != State::Stopping,
            Self::Stop => down,
            Self::Restart => false,
        }
    }
}

/// What is so already succeeds without a permission; restarting what is down starts it.
pub(super) async fn operate(
    supervisor: &Handle,
    id: &str,
    operation: Operation,
) -> Result<String, Status> {
    let service = supervisor.status(id).await.map_err(unsupervised)?;
    if !operation.done_in(service.status.state) {
        let verb = operation.verb();
        if !operation.allowed(service.permissions) {
            return Err(Status::unknown(format!(
                "service \"{id}\" doesn't support {verb} operation via API"
            )));
        }
        match operation {
            Operation::Start => supervisor.start(id).await,
            Operation::Stop => supervisor.stop(id).await,
            Operation::Restart => supervisor.restart(id).await,
        }
        .map_err(unsupervised)?;
    }
    Ok(format!("Service \"{id}\" {}", operation.done()))
}

/// All services, by id.
pub(super) async fn list(supervisor: &Handle) -> Result<proto::ServiceList, Status> {
    let services = supervisor.list().await.map_err(unsupervised)?;
    let services = services.into_iter().map(service_info).collect();
    Ok(proto::ServiceList { metadata: None, services })
}

pub(super) fn unsupervised(error: orlop_supervise::Error) -> Status {
    use orlop_supervise::Error;
    let text = error.to_string();
    match error {
        Error::NotDefined(_) => Status::unknown(text),
        Error::Terminating | Error::Ended => Status::unavailable(text),
        Error::Late(_) => Status::deadline_exceeded(text),
    }
}

fn service_info(service: Service) -> proto::ServiceInfo {
    let status = service.status;
    let events = status.history.into_iter().map(|Entry { state, message, at }| {
        proto::ServiceEvent { msg: message, state: state.to_string(), ts: Some(at.into()) }
    });
    proto::ServiceInfo {
        id: status.id.to_string(),
        state: status.state.to_string(),
        events: Some(proto::ServiceEvents { events: events.collect() }),
        health: Some(proto::ServiceHealth {
            unknown: status.health.healthy.is_none(),
            healthy: status.health.healthy.unwrap_or_default(),
            last_message: status.health.message,
            last_change: Some(status.health.changed.into()),
        }),
    }
}
