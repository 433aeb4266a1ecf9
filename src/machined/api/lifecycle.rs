//! What changes the node as a whole: its configuration, its end. Decisions are [`crate::apply`]'s; here
//! requests of both generations become its words.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream;
use orlop_proto::machine as proto;
use orlop_proto::machine::apply_configuration_request::Mode as ProtoMode;
use orlop_proto::machine::lifecycle_service_server::LifecycleService;
use orlop_proto::machine::reset_request::WipeMode;
use tonic::{Code, Request, Status};

use super::{Streamed, boxed, images};
use crate::Error;
use crate::apply::{self, Mode, Problem};
use crate::etcd::host as etcd;
use crate::meta;
use crate::node::{Ending, Node, Refused};
use crate::plan::{self, Membership, RESET, RESET_AT_ONCE, Sequence, When};
use crate::power::End;
use crate::volumes::{self, EPHEMERAL, LABELS, STATE};

/// How long a configuration is tried when the caller does not say.
const TRY_LIMIT: Duration = Duration::from_secs(60);

/// `ApplyConfiguration`. Generation v0.8 says `no_reboot` and nothing else; its clients mean a reboot
/// when they do not say it, as today's do by `REBOOT`.
pub(super) async fn apply(
    node: &Node,
    request: proto::ApplyConfigurationRequest,
) -> Result<proto::ApplyConfiguration, Status> {
    let mode = mode(&request)?;
    let outcome =
        apply::apply(node, &request.data, mode, request.dry_run).await.map_err(|problem| {
            let code = match &problem {
                Problem::Busy | Problem::Forgetful => Code::FailedPrecondition,
                Problem::Wrong(_) | Problem::OnlyAtOnce => Code::InvalidArgument,
                Problem::Failed(_) => Code::Internal,
            };
            Status::new(code, orlop_rt::Chain(&problem).to_string())
        })?;
    let taken = match mode {
        Mode::Reboot => ProtoMode::Reboot,
        Mode::Live => ProtoMode::NoReboot,
        Mode::Staged => ProtoMode::Staged,
        Mode::Try(_) => ProtoMode::Try,
    };
    Ok(proto::ApplyConfiguration {
        metadata: None,
        warnings: outcome.warnings,
        mode: taken.into(),
        mode_details: outcome.details,
    })
}

fn mode(request: &proto::ApplyConfigurationRequest) -> Result<Mode, Status> {
    if request.no_reboot {
        return Ok(Mode::Staged);
    }
    match ProtoMode::try_from(request.mode) {
        Ok(ProtoMode::Reboot) => Ok(Mode::Reboot),
        Ok(ProtoMode::Auto | ProtoMode::NoReboot) => Ok(Mode::Live),
        Ok(ProtoMode::Staged) => Ok(Mode::Staged),
        Ok(ProtoMode::Try) => {
            let limit = request.try_mode_timeout.map_or(Ok(TRY_LIMIT), Duration::try_from);
            let limit = limit.ok().filter(|limit| !limit.is_zero());
            limit.map(Mode::Try).ok_or_else(|| {
                Status::invalid_argument("try_mode_timeout: a time longer than none is needed")
            })
        }
        Err(_) => Err(Status::invalid_argument(format!("mode {}: unknown", request.mode))),
    }
}

/// `Reset`: which devices are wiped, and how the node ends. Who is to go gracefully, and cannot, stays.
pub(super) async fn reset(node: &Node, request: &proto::ResetRequest) -> Result<(), Status> {
    let devices = wiped(request, |label| volumes::device(label).map_err(|error| internal(&error)))?;
    let end = if request.reboot { End::Reboot } else { node.shutdown_end() };
    let sequence = if request.graceful { &RESET } else { &RESET_AT_ONCE };
    if request.graceful {
        etcd::may_leave().await.map_err(|status| {
            Status::failed_precondition(format!(
                "reset: this node cannot leave etcd: {}; to reset it all the same: --graceful=false",
                status.message()
            ))
        })?;
    }
    node.request_reset(devices, Ending { sequence, end });
    Ok(())
}

/// `Upgrade`: refused before anything is stopped where it cannot be done.
pub(super) async fn upgrade(
    node: &Node,
    request: &proto::UpgradeRequest,
) -> Result<proto::Upgrade, Status> {
    reference(&request.image)?;
    let when = if request.stage { When::NextBoot } else { When::Now };
    let membership = if request.preserve { Membership::Kept } else { Membership::Left };
    change(node, plan::upgrade(when, membership)).await?;
    Ok(proto::Upgrade { metadata: None, ack: "Upgrade request received".to_owned() })
}

/// `Rollback` and the installing methods: as [`upgrade`].
pub(super) async fn change(node: &Node, sequence: &'static Sequence) -> Result<(), Status> {
    let ending = Ending { sequence, end: End::Reboot };
    let asked = node.request_end_after_checks(ending).await;
    asked.map_err(|refused| status(&refused))
}

/// Today's way to install and upgrade.
#[derive(Debug)]
pub(super) struct Lifecycle {
    pub(super) node: Node,
}

#[tonic::async_trait]
impl LifecycleService for Lifecycle {
    async fn install(
        &self,
        request: Request<proto::LifecycleServiceInstallRequest>,
    ) -> Streamed<proto::LifecycleServiceInstallResponse> {
        let request = request.into_inner();
        image(request.source)?;
        if request.destination.unwrap_or_default().disk.is_empty() {
            return Err(Status::invalid_argument("install: no disk is named"));
        }
        change(&self.node, &plan::INSTALL).await?;
        let progress = Some(accepted("Install"));
        let response = proto::LifecycleServiceInstallResponse { progress };
        Ok(boxed(&self.node, stream::iter([Ok(response)])))
    }

    async fn upgrade(
        &self,
        request: Request<proto::LifecycleServiceUpgradeRequest>,
    ) -> Streamed<proto::LifecycleServiceUpgradeResponse> {
        image(request.into_inner().source)?;
        change(&self.node, plan::upgrade(When::Now, Membership::Kept)).await?;
        let progress = Some(accepted("Upgrade"));
        let response = proto::LifecycleServiceUpgradeResponse { progress };
        Ok(boxed(&self.node, stream::iter([Ok(response)])))
    }
}

/// Where the new release comes from.
fn image(source: Option<proto::InstallArtifactsSource>) -> Result<(), Status> {
    reference(&source.unwrap_or_default().image_name)
}

fn reference(image: &str) -> Result<(), Status> {
    if images::full_name(image).is_some() {
        return Ok(());
    }
    let text = format!("{image:?} is no reference of an image: write HOST/NAME:TAG");
    Err(Status::invalid_argument(text))
}

fn accepted(what: &str) -> proto::LifecycleServiceInstallProgress {
    use proto::lifecycle_service_install_progress::Response;
    let message = format!("{what} request received");
    proto::LifecycleServiceInstallProgress { response: Some(Response::Message(message)) }
}

fn status(refused: &Refused) -> Status {
    Status::failed_precondition(orlop_rt::Chain(refused).to_string())
}

/// Those named and marked; without any name, all this node keeps.
fn wiped(
    request: &proto::ResetRequest,
    find: impl Fn(&str) -> Result<Option<PathBuf>, Status>,
) -> Result<Vec<PathBuf>, Status> {
    if request.mode() == WipeMode::UserDisks || !request.user_disks_to_wipe.is_empty() {
        return Err(Status::unimplemented("disks of the user's are not wiped yet"));
    }
    let named = &request.system_partitions_to_wipe;
    if let Some(unknown) = named.iter().find(|spec| !LABELS.contains(&spec.label.as_str())) {
        return Err(Status::invalid_argument(format!(
            "label {:?} is not supported",
            unknown.label
        )));
    }
    if named.is_empty() {
        let all = [STATE, EPHEMERAL].into_iter().map(find);
        return Ok(all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect());
    }
    let mut devices = Vec::new();
    for spec in named {
        let device = find(&spec.label)?.ok_or_else(|| {
            Status::failed_precondition(format!("no volume is labelled {:?}", spec.label))
        })?;
        if spec.wipe {
            devices.push(device);
        }
    }
    Ok(devices)
}

/// A key of META.
pub(super) fn meta_key(key: u32) -> Result<u8, Status> {
    u8::try_from(key)
        .map_err(|_| Status::invalid_argument(format!("key {key}: keys of META are 0 to 255")))
}

/// Why META stays as it was.
pub(super) fn meta_status(error: &meta::Error) -> Status {
    let code = match error {
        meta::Error::Missing | meta::Error::Several(_) | meta::Error::Foreign => {
            Code::FailedPrecondition
        }
        meta::Error::Full { .. } => Code::ResourceExhausted,
        meta::Error::EmptyZero => Code::InvalidArgument,
        meta::Error::NoKey(_) => Code::NotFound,
        meta::Error::Device { .. } => Code::Internal,
    };
    Status::new(code, orlop_rt::Chain(error).to_string())
}

fn internal(error: &Error) -> Status {
    Status::internal(orlop_rt::Chain(error).to_string())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn spec(label: &str, wipe: bool) -> proto::ResetPartitionSpec {
        proto::ResetPartitionSpec { label: label.to_owned(), wipe }
    }

    fn decided(specs: &[proto::ResetPartitionSpec]) -> Result<Vec<PathBuf>, String> {
        let request = proto::ResetRequest {
            system_partitions_to_wipe: specs.to_vec(),
            ..proto::ResetRequest::default()
        };
        let find = |label: &str| Ok((label != "META").then(|| PathBuf::from(label)));
        wiped(&request, find).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_reset_wipes_what_is_named_and_marked_or_all() {
        assert_eq!(decided(&[]), Ok(vec![PathBuf::from(STATE), PathBuf::from(EPHEMERAL)]));
        assert_eq!(decided(&[spec(STATE, true), spec(EPHEMERAL, false)]), Ok(vec![STATE.into()]));
        assert_eq!(decided(&[spec(STATE, false)]), Ok(Vec::new()));
        assert_eq!(decided(&[spec("root", true)]), Err("label \"root\" is not supported".into()));
        assert_eq!(decided(&[spec("META", true)]), Err("no volume is labelled \"META\"".into()));
    }

    #[test]
    fn what_keeps_meta_as_it_was_has_a_code_of_its_own() {
        assert_eq!(meta_key(255).ok(), Some(255));
        assert_eq!(meta_key(256).unwrap_err().code(), Code::InvalidArgument);
        let missing = meta_status(&meta::Error::Missing);
        assert_eq!(missing.code(), Code::FailedPrecondition);
        assert!(missing.message().contains("sgdisk -n 0:0:+1M -c 0:META"), "{missing}");
        let absent = meta_status(&meta::Error::NoKey(12));
        assert_eq!((absent.code(), absent.message()), (Code::NotFound, "key 12 is not in META"));
        let full = meta_status(&meta::Error::Full { used: 2, room: 1 });
        assert_eq!(full.code(), Code::ResourceExhausted);
    }

    #[test]
    fn both_generations_say_when() {
        let request = |no_reboot, mode: ProtoMode| proto::ApplyConfigurationRequest {
            no_reboot,
            mode: mode.into(),
            ..proto::ApplyConfigurationRequest::default()
        };
        for (no_reboot, asked, expected) in [
            (false, ProtoMode::Reboot, Mode::Reboot),
            (true, ProtoMode::Reboot, Mode::Staged),
            (false, ProtoMode::Auto, Mode::Live),
            (false, ProtoMode::NoReboot, Mode::Live),
            (false, ProtoMode::Staged, Mode::Staged),
            (false, ProtoMode::Try, Mode::Try(TRY_LIMIT)),
        ] {
            assert_eq!(mode(&request(no_reboot, asked)).ok(), Some(expected), "{asked:?}");
        }
        let zero = proto::ApplyConfigurationRequest {
            try_mode_timeout: Some(prost_types::Duration::default()),
            ..request(false, ProtoMode::Try)
        };
        assert!(mode(&zero).is_err());
    }
}
