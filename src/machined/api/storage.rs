//! `storage.StorageService`: the disks of the machine; [`crate::wipe`] clears them.

use std::path::Path;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use orlop_proto::storage as proto;
use orlop_proto::storage::block_device_wipe_descriptor::Method as ProtoMethod;
use orlop_proto::storage::disk::DiskType;
use orlop_proto::storage::storage_service_server::StorageService;
use orlop_rt::Chain;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use super::threads::{Outlet, Stop, Threads};
use super::{Answer, blocking};
use crate::disks::{self, Disk, Kind};
use crate::volumes;
use crate::wipe::{self, Method, Wish};

#[derive(Debug)]
pub(super) struct Storage {
    threads: Threads,
    /// One wipes at a time.
    wiping: Arc<Semaphore>,
}

impl Storage {
    pub(super) fn new() -> Self {
        Self { threads: Threads::new(), wiping: Arc::new(Semaphore::new(1)) }
    }
}

#[tonic::async_trait]
impl StorageService for Storage {
    async fn disks(&self, _: Request<()>) -> Answer<proto::DisksResponse> {
        // Looking for volumes reads disks, which can take long to answer.
        let list = || disks::list(Path::new("/sys"), &volumes::kept_on()?);
        let disks = blocking("list the disks", list).await?;
        let disks = disks.into_iter().map(disk).collect();
        let messages = vec![proto::Disks { metadata: None, disks }];
        Ok(Response::new(proto::DisksResponse { messages }))
    }

    /// Done when all are; a caller that goes ends it.
    async fn block_device_wipe(
        &self,
        request: Request<proto::BlockDeviceWipeRequest>,
    ) -> Answer<proto::BlockDeviceWipeResponse> {
        let wishes = wishes(request.into_inner())?;
        let turn = Arc::clone(&self.wiping).try_acquire_owned().map_err(|_| {
            Status::failed_precondition("another wipe is under way; try again when it has ended")
        })?;
        let work = move |outlet: &Outlet<()>| {
            // Another one may begin when this thread is through, whoever waits.
            let _turn = turn;
            let kept = volumes::kept()
                .map_err(|error| Stop::Failed(Status::internal(Chain(&error).to_string())))?;
            wipe::wipe(&wishes, &kept, || outlet.wanted())?;
            outlet.send(())
        };
        self.threads.stream(1, work).await?.try_collect::<Vec<_>>().await?;
        let messages = vec![proto::BlockDeviceWipe { metadata: None }];
        Ok(Response::new(proto::BlockDeviceWipeResponse { messages }))
    }
}

impl From<wipe::Error> for Stop {
    fn from(error: wipe::Error) -> Self {
        let code = match error {
            wipe::Error::None(_) => Code::NotFound,
            wipe::Error::Refused { .. } => Code::FailedPrecondition,
            wipe::Error::Device { .. } => Code::Internal,
        };
        Self::Failed(Status::new(code, Chain(&error).to_string()))
    }
}

fn wishes(request: proto::BlockDeviceWipeRequest) -> Result<Vec<Wish>, Status> {
    if request.devices.is_empty() {
        return Err(Status::invalid_argument("no device is named"));
    }
    let wish = |one: proto::BlockDeviceWipeDescriptor| {
        if one.drop_partition {
            return Err(Status::unimplemented(format!(
                "{}: partitions are not taken out of their table yet; wipe the whole disk",
                one.device
            )));
        }
        let method = match ProtoMethod::try_from(one.method) {
            Ok(ProtoMethod::Fast) => Method::Fast,
            Ok(ProtoMethod::Zeroes) => Method::Zeroes,
            Err(_) => {
                let text = format!("{}: method {} is unknown", one.device, one.method);
                return Err(Status::invalid_argument(text));
            }
        };
        let device = one.device.strip_prefix("/dev/").unwrap_or(&one.device).to_owned();
        let (kept_too, members_too) = (one.skip_volume_check, one.skip_secondary_check);
        Ok(Wish { device, method, kept_too, members_too })
    };
    request.devices.into_iter().map(wish).collect()
}

fn disk(disk: Disk) -> proto::Disk {
    let kind = match disk.kind {
        Kind::Unknown => DiskType::Unknown,
        Kind::Ssd => DiskType::Ssd,
        Kind::Hdd => DiskType::Hdd,
        Kind::Nvme => DiskType::Nvme,
        Kind::Sd => DiskType::Sd,
        Kind::Cd => DiskType::Cd,
    };
    proto::Disk {
        size: disk.size_bytes,
        model: disk.model,
        device_name: format!("/dev/{}", disk.device),
        name: disk.name,
        serial: disk.serial,
        modalias: disk.modalias,
        uuid: disk.uuid,
        wwid: disk.wwid,
        r#type: kind.into(),
        bus_path: disk.bus_path,
        system_disk: disk.system,
        subsystem: disk.subsystem,
        readonly: disk.read_only,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_devices_as_people_do() {
        let one = |device: &str, method, drop_partition| proto::BlockDeviceWipeDescriptor {
            device: device.to_owned(),
            method,
            drop_partition,
            ..proto::BlockDeviceWipeDescriptor::default()
        };
        let read = |devices: Vec<_>| wishes(proto::BlockDeviceWipeRequest { devices });
        let asked = read(vec![one("/dev/sda", 0, false), one("sdb1", 1, false)]).unwrap();
        let told: Vec<_> = asked.iter().map(|wish| (wish.device.as_str(), wish.method)).collect();
        assert_eq!(told, [("sda", Method::Fast), ("sdb1", Method::Zeroes)]);
        assert!(!asked[0].kept_too && !asked[0].members_too);
        for (devices, code) in [
            (Vec::new(), Code::InvalidArgument),
            (vec![one("sda", 7, false)], Code::InvalidArgument),
            (vec![one("sda", 0, false), one("sda1", 0, true)], Code::Unimplemented),
        ] {
            assert_eq!(read(devices).unwrap_err().code(), code);
        }
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_told_so_and_the_next_wipe_has_its_turn() {
        let storage = Storage::new();
        for _ in 0..2 {
            let device = "no-such-disk".to_owned();
            let devices = vec![proto::BlockDeviceWipeDescriptor { device, ..Default::default() }];
            let request = Request::new(proto::BlockDeviceWipeRequest { devices });
            let status = storage.block_device_wipe(request).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{status}");
            assert!(status.message().contains("no-such-disk"), "{status}");
            // The thread gives its turn back when it has said so.
            drop(storage.wiping.acquire().await.unwrap());
        }
    }
}
