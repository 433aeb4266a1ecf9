//! A thousand nodes in one process: what an apid asks when one call names them all.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use orlop_pki::{Authority, Usage};
use orlop_proto::machine::machine_service_server::{MachineService, MachineServiceServer};
use orlop_proto::machine::{MemInfo, Memory, MemoryResponse};
use orlop_rpc::tls;
use orlop_rt::CancellationToken;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use crate::{NODES, issue, nth};

/// Serves until it is killed; says `port=`, which is the same on all addresses.
pub(crate) fn serve(secrets: &Path) -> Result<()> {
    let read = |name: &str| fs::read_to_string(secrets.join(name));
    let ca = Authority::from_pem(&read("ca.crt")?, &read("ca.key")?)?;
    let most = NODES.into_iter().max().unwrap_or_default();
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (mut nodes, mut port) = (JoinSet::new(), 0);
        for node in 0..most {
            let pair = issue(&ca, Usage::Server, "", address(node))?;
            let key = pair.key.expose();
            let config = orlop_pki::tls::server_config(&ca.pair().crt, &pair.crt, key)?;
            let listener = tls::listen((address(node), port).into()).await?;
            port = listener.local_addr()?.port();
            nodes.spawn(async move {
                // Kept, so that the configuration never changes.
                let (_config, configs) = watch::channel(config);
                let machine = MachineServiceServer::new(Machine);
                let incoming = tls::incoming(listener, configs, Arc::default());
                orlop_rpc::serve(machine, incoming, CancellationToken::new(), Duration::ZERO).await;
            });
        }
        println!("port={port}");
        while nodes.join_next().await.is_some() {}
        Ok(())
    })
}

/// Of the nth node.
pub(crate) fn address(node: usize) -> Ipv4Addr {
    nth(Ipv4Addr::new(127, 1, 0, 1), u32::try_from(node).unwrap_or(0))
}

/// A node that knows its memory by heart: what it takes to find out is not apid's.
#[derive(Clone, Debug)]
struct Machine;

#[tonic::async_trait]
impl MachineService for Machine {
    async fn memory(&self, _: Request<()>) -> Result<Response<MemoryResponse>, Status> {
        let kib = 2 << 20;
        let meminfo = MemInfo { memtotal: kib, memfree: kib / 2, ..MemInfo::default() };
        let entry = Memory { metadata: None, meminfo: Some(meminfo) };
        Ok(Response::new(MemoryResponse { messages: vec![entry] }))
    }
}
