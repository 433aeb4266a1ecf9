//! `storage.StorageService`: the disks of the machine.

use std::path::Path;

use orlop_proto::storage as proto;
use orlop_proto::storage::disk::DiskType;
use orlop_proto::storage::storage_service_server::StorageService;
use tonic::{Request, Response};

use super::{Answer, blocking};
use crate::disks::{self, Disk, Kind};
use crate::volumes;

#[derive(Debug)]
pub(super) struct Storage;

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
