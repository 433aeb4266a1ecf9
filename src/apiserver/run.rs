//! The role: from its command line to a server that answers.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use clap::Parser;
use futures_util::future::try_join_all;
use ipnet::IpNet;
use orlop_rpc::places::{self, Most};
use orlop_rpc::tls;
use orlop_rt::{CancellationToken, Chain};
use orlop_store::{Durability, EtcdTls, Limits, Location, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::authn::Authenticator;
use crate::authz::bootstrap::{self, Repair};
use crate::authz::{Authorizers, Rbac};
use crate::gates::{Behind, Escalation};
use crate::identity::{self, Identity, Place};
use crate::loops;
use crate::object::{Object, User, text};
use crate::registry::{Gate, How, Registry, Target, Writer};
use crate::resources::Resource;
use crate::server::{self, Server};
use crate::status::Status;
use crate::storage::Storage;
use crate::storage::cache::Observer;
use crate::strategy::DeleteOptions;
use crate::strategy::service_ip::{NODE_PORTS, Ranges};
use crate::visit::{self, Visits};

/// Where Kubernetes clients look for it.
const PORT: u16 = 6443;
/// Connections at a time.
const MOST: Most = Most { all: 10_000, each: 2_500 };
/// How often the files it was given are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The Kubernetes API over a store of its own or an etcd.
#[derive(Clone, Debug, Parser)]
#[command(name = "apiserver", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// The folder that is the server's alone
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/orlop/apiserver")]
    pub data_dir: PathBuf,
    /// Where objects are: embedded:///PATH or etcd://HOST:PORT,HOST:PORT; else a file in the data folder
    #[arg(long, value_name = "URL")]
    pub store: Option<Location>,
    /// The authority of etcd's certificates, in PEM
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// The certificate that etcd is shown, in PEM
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Whether a write is on the disk when it is answered (durable), or up to 100 ms later (relaxed)
    #[arg(long, value_name = "HOW", default_value = "durable", value_parser = ["durable", "relaxed"])]
    pub store_durability: String,
    /// Where to listen; [::] takes IPv4 as well, port 0 is any that is free
    #[arg(long, value_name = "ADDRESS", default_value_t = (Ipv6Addr::UNSPECIFIED, PORT).into())]
    pub listen: SocketAddr,
    /// The address other machines reach it by; else its first one
    #[arg(long, value_name = "ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// The addresses of services; the first is the server's own
    #[arg(long, value_name = "NETWORK", default_value = "10.96.0.0/12")]
    pub service_cluster_ip_range: IpNet,
    /// Whether the server does what a kube-controller-manager does while there is none (auto), or never (off)
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub builtin_controllers: loops::Mode,
    /// Who it is and whom it believes
    #[command(flatten)]
    pub identity: identity::Options,
    /// How much is done at a time, and what is kept of it
    #[command(flatten)]
    pub visits: visit::Options,
    /// Log more
    #[arg(long)]
    pub debug: bool,
}

/// Why it stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// The data folder cannot be used.
    #[error("make the data folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificates and keys.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Whom it believes.
    #[error(transparent)]
    Authentication(#[from] crate::authn::Error),
    /// A file of etcd's TLS.
    #[error("read {}", path.display())]
    EtcdTls {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] orlop_store::Error),
    /// What must be there from the start cannot be written.
    #[error("write what every cluster has: {}", .0.message)]
    Bootstrap(Box<Status>),
    /// What is kept of requests.
    #[error(transparent)]
    Visits(#[from] visit::Error),
    /// The port cannot be opened.
    #[error("open the port")]
    Listen(#[source] io::Error),
}

/// The role's entry: options, log, runtime.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options = match orlop_rt::parse::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    orlop_telemetry::to_stderr(options.debug);
    let run = |shutdown: CancellationToken| async move {
        let server = Running::open(options, shutdown.clone()).await?;
        server.announce();
        server.serve().await;
        Ok(())
    };
    orlop_rt::exit("apiserver", orlop_rt::run_daemon(Error::Runtime, run))
}

/// A server whose port is open and whose store is read.
#[derive(Debug)]
pub struct Running {
    server: Arc<Server>,
    listener: TcpListener,
    address: SocketAddr,
    identity: Identity,
    loops: loops::Settings,
    loading: Loading,
    shutdown: CancellationToken,
}

/// What is needed to load an identity again.
#[derive(Clone, Debug)]
struct Loading {
    options: Options,
    /// Where the machine's own clients reach it.
    url: String,
    host_name: String,
}

impl Loading {
    async fn load(&self) -> Result<Identity, Error> {
        let Self { options, url, host_name } = self.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let place = Place {
                data_dir: &options.data_dir,
                server: &url,
                host_name: &host_name,
                service: first(options.service_cluster_ip_range),
            };
            Identity::load(&options.identity, &place, SystemTime::now())
        });
        let loaded = loaded.await.map_err(|error| Error::Runtime(io::Error::other(error)))?;
        Ok(loaded?)
    }
}

impl Running {
    /// Opens the port and the store, and sees to what every cluster has.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(options: Options, shutdown: CancellationToken) -> Result<Self, Error> {
        let visits = Visits::open(&options.visits)?;
        std::fs::create_dir_all(&options.data_dir)
            .map_err(|source| Error::Folder { path: options.data_dir.clone(), source })?;
        let listener = tls::listen(options.listen).await.map_err(Error::Listen)?;
        let address = listener.local_addr().map_err(Error::Listen)?;
        let own: IpAddr = match address.ip() {
            ip if !ip.is_unspecified() => ip,
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        let url = format!("https://{}", SocketAddr::new(own, address.port()));
        let loading = Loading { options: options.clone(), url, host_name: host_name() };
        let mut identity = loading.load().await?;
        let settings = std::mem::take(&mut identity.settings);
        let client_ca = settings.client_ca.clone().unwrap_or_default();

        let location = options
            .store
            .clone()
            .unwrap_or_else(|| Location::Embedded(options.data_dir.join("store")));
        let durability = match &options.store_durability[..] {
            "relaxed" => Durability::Relaxed,
            _ => Durability::Durable,
        };
        let limits = Limits { durability, ..Limits::default() };
        let store = Store::open(&location, etcd_tls(&options)?, limits).await?;
        let rbac = Arc::new(Rbac::default());
        let observers: Box<[Arc<dyn Observer>]> = Box::new([Arc::clone(&rbac) as _]);
        let media = Storage::media(&location);
        let metrics = Arc::clone(&visits.metrics);
        let storage =
            Storage::open(store, media, observers, Arc::clone(&metrics), &shutdown).await?;
        let authorizers = Authorizers(vec![Arc::clone(&rbac) as _]);
        let objects = Arc::clone(storage.cache());
        let authenticator = Authenticator::new(settings, Arc::clone(&objects) as _)?;
        let admission = Admission::new(
            objects,
            Arc::new(Behind(storage.clone())),
            Arc::new(authorizers.clone()),
            metrics,
        );
        let escalation = Escalation { authorizers: authorizers.clone(), rbac };
        let gates: Vec<Box<dyn Gate>> = vec![Box::new(escalation), Box::new(admission)];
        let range = options.service_cluster_ip_range;
        let ranges =
            Ranges { addresses: vec![(range.addr(), range.prefix_len())], ports: NODE_PORTS };
        let registry = Registry::new(storage, gates, ranges);
        prepare(&registry, &client_ca)
            .await
            .map_err(|status| Error::Bootstrap(Box::new(status)))?;

        let advertised = options.advertise_address.unwrap_or(own);
        let loops = loops::Settings {
            mode: options.builtin_controllers,
            server: loops::kubernetes::Server {
                name: loading.host_name.clone(),
                address: advertised,
                port: address.port(),
                service: first(options.service_cluster_ip_range),
                shared: matches!(location, Location::Etcd(_)),
            },
            authority: identity.root_ca.clone(),
        };
        let server = Arc::new(Server {
            registry,
            authenticator: RwLock::new(Arc::new(authenticator)),
            authorizers,
            address: SocketAddr::new(advertised, address.port()).to_string(),
            handshakes: Arc::default(),
            visits,
            shutdown: shutdown.clone(),
        });
        Ok(Self { server, listener, address, identity, loops, loading, shutdown })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server itself, to be asked without a port.
    #[cfg(test)]
    pub(crate) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// What was written for kubectl, where the server made its certificates itself.
    #[must_use]
    pub fn kubeconfig(&self) -> Option<&std::path::Path> {
        self.identity.kubeconfig.as_deref()
    }

    /// Tells a person, or a program that waits for a line, that it is there.
    fn announce(&self) {
        let url = &self.loading.url;
        let mut out = io::stdout().lock();
        let told = match self.kubeconfig() {
            Some(path) => writeln!(
                out,
                "The Kubernetes API is served at {url}. To use it:\n\n    export KUBECONFIG={}\n    kubectl get namespaces\n",
                path.display()
            ),
            None => writeln!(out, "The Kubernetes API is served at {url}."),
        };
        if let Err(error) = told.and_then(|()| out.flush()) {
            // Whoever started it does not listen.
            info!(%error, "nobody reads standard output");
        }
    }

    /// Serves until the shutdown it was opened with.
    pub async fn serve(self) {
        let Self { server, listener, identity, loops, loading, shutdown, .. } = self;
        let looping = tokio::spawn(loops::run(server.registry.clone(), loops, shutdown.clone()));
        let (sender, configs) = watch::channel(Arc::clone(&identity.tls));
        let renewing = Arc::clone(&server);
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            let mut identity = identity;
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                if !identity.is_stale(SystemTime::now()) {
                    continue;
                }
                match loading.load().await {
                    Ok(mut fresh) => {
                        renewing.believe(std::mem::take(&mut fresh.settings));
                        sender.send_replace(Arc::clone(&fresh.tls));
                        identity = fresh;
                        info!("certificates and keys were read again");
                    }
                    Err(error) => {
                        warn!(error = %Chain(&error), "certificates and keys stay as they were");
                    }
                }
            }
        }));
        let tally = Arc::clone(&server.handshakes);
        let incoming = places::admitted(tls::incoming(listener, configs, tally), MOST);
        server::serve(Arc::clone(&server), incoming, shutdown).await;
        // They end with the shutdown, too, and want the store until then.
        drop(looping.await);
        server.registry.storage().store().close().await;
    }
}

/// Sees to what every cluster has from its start: the namespaces, then what is in them, each all at once, so that a
/// new store has it in a few flushes of the disk.
async fn prepare(registry: &Registry, client_ca: &str) -> Result<(), Status> {
    let user = User::apiserver();
    let all = bootstrap::objects(client_ca).into_iter();
    let (namespaces, others): (Vec<_>, Vec<_>) =
        all.partition(|(resource, _)| resource.plural == "namespaces");
    for part in [namespaces, others] {
        let repairs = part.into_iter().map(|(resource, wanted)| {
            let writer = Writer::new(&user);
            async move { repair(registry, writer, resource, &wanted).await }
        });
        try_join_all(repairs).await?;
        // What follows needs it.
        registry.storage().fresh().await?;
    }
    Ok(())
}

async fn repair(
    registry: &Registry,
    writer: Writer<'_>,
    resource: &'static Resource,
    wanted: &Object,
) -> Result<(), Status> {
    let (namespace, name) = (text(wanted, "/metadata/namespace"), text(wanted, "/metadata/name"));
    let target = Target::new(resource, namespace, name);
    let live = registry.storage().get(resource, namespace, name).await?;
    let live: Option<Object> = live.map(|live| live.object);
    let done = match bootstrap::reconcile(live.as_ref(), wanted) {
        Repair::Nothing => Ok(()),
        Repair::Create(object) => registry.create(writer, target, object).await.map(drop),
        Repair::Update(object) => {
            registry.update(writer, target, How::Put, false, |_| Ok(object.clone())).await.map(drop)
        }
        Repair::Recreate(object) => {
            registry.delete(writer, target, &DeleteOptions::default()).await?;
            registry.create(writer, target, object).await.map(drop)
        }
    };
    match done {
        // Another server starts, too.
        Err(status) if status.code == 409 => Ok(()),
        done => done,
    }
}

/// The first address of a network that is a machine's.
fn first(network: IpNet) -> IpAddr {
    network.hosts().next().unwrap_or(network.network())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_lowercase()
}

fn etcd_tls(options: &Options) -> Result<Option<EtcdTls>, Error> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path)
            .map_err(|source| Error::EtcdTls { path: path.clone(), source })
    };
    let Some(authority) = &options.etcd_cafile else { return Ok(None) };
    let identity = match (&options.etcd_certfile, &options.etcd_keyfile) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    Ok(Some(EtcdTls { authority: read(authority)?, identity }))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
    }
}
