//! A server that may be killed, and the way its clients take to it.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::binary;

/// The server as a process; killed with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    data: PathBuf,
}

impl Server {
    pub(crate) fn start(data: &Path) -> Self {
        let mut child = Command::new(binary())
            .args(["apiserver", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it says where it is").unwrap();
            if let Some((_, rest)) = line.split_once("https://") {
                break rest.split(". ").next().unwrap().trim_end_matches('.').parse().unwrap();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, data: data.to_owned() }
    }

    /// Ends it at once, whatever it is doing.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Another over the same folder.
    pub(crate) fn again(&mut self) {
        self.kill();
        *self = Self::start(&self.data);
    }

    /// A client that may do everything, by this way or straight.
    pub(crate) async fn client(&self, address: SocketAddr) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.data.join("kubeconfig")).unwrap();
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        config.cluster_url = format!("https://{address}").parse().unwrap();
        Client::try_from(config).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An address that leads to a server, or to none.
pub(crate) struct Way {
    pub(crate) address: SocketAddr,
    leads_to: watch::Sender<Option<SocketAddr>>,
    carrying: JoinHandle<()>,
}

impl Way {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leads_to, follow) = watch::channel(None);
        let carrying = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, follow.clone()));
            }
        });
        Self { address, leads_to, carrying }
    }

    /// Leads elsewhere from here on; connections that are open break off.
    pub(crate) fn leads_to(&self, server: Option<SocketAddr>) {
        self.leads_to.send_replace(server);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

async fn carry(mut near: TcpStream, mut follow: watch::Receiver<Option<SocketAddr>>) {
    let Some(server) = *follow.borrow_and_update() else { return };
    let carried = async {
        let mut far = TcpStream::connect(server).await?;
        tokio::io::copy_bidirectional(&mut near, &mut far).await
    };
    tokio::select! {
        // What breaks is seen by the client.
        _ = carried => {}
        _ = follow.changed() => {}
    }
}
