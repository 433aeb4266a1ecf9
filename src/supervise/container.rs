//! Services that are containers of containerd, without an image and without a snapshot.
//!
//! A container's root is a directory that holds nothing but mount points; the binary is bound into
//! it. All containers carry one group annotation, so that one shim process serves them all. Output
//! goes through a FIFO per service: the shim's copier blocks when nobody reads, so a stalled reader
//! costs a pipe's content and never the shim.
//!
//! Whatever a crash left behind (a task, a container, a cgroup with members) is cleared when it is
//! in the way of the next start. A container outlives containerd: its end is waited for until
//! containerd, back again, tells it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, KillRequest, StartRequest, WaitRequest, container::Runtime,
};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use orlop_rt::Backoff;
use prost::Message;
use prost_types::Any;
use tokio::net::unix::pipe;
use tokio::sync::OnceCell;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::capture::Capture;
use crate::cgroup;
use crate::control::{Control, Stop};
use crate::oci;
pub use crate::oci::{Bind, Capability, Namespaces, Spec};

/// No single call needs longer, but creating and starting a container on an emulated machine.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// The code of a task that SIGKILL has ended.
const KILLED: u32 = 128 + 9;
/// Tries to reach a containerd that went away under a running container.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Where containers are run, and how. Build it with what differs from [`Options::new`].
#[derive(Clone, Debug)]
pub struct Options {
    /// containerd's socket.
    pub socket: PathBuf,
    /// containerd's namespace; also the group whose containers share a shim.
    pub namespace: String,
    /// The OCI runtime's binary: `crun`, `/bin/runc`. `None` leaves it to containerd.
    pub binary: Option<String>,
    /// The cgroup the shim is put into, below the root of cgroups: `/system/runtime`.
    pub shim_cgroup: Option<String>,
    /// A directory for the FIFOs, made if missing.
    pub fifos: PathBuf,
    /// Where cgroups (version 2) are mounted.
    pub cgroups: PathBuf,
}

impl Options {
    /// The node's own: namespace `system`, FIFOs in `/run/orlop/fifo`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            namespace: "system".to_owned(),
            binary: None,
            shim_cgroup: None,
            fifos: "/run/orlop/fifo".into(),
            cgroups: "/sys/fs/cgroup".into(),
        }
    }
}

/// Why a run of a container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd cannot be reached.
    #[error("connect to containerd at {}", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// containerd refused, or did not answer.
    #[error("{call}: {}", status.message())]
    Call {
        /// What was asked, of what: `create task apid`.
        call: String,
        /// The answer.
        status: Box<Status>,
    },
    /// The root, the FIFO or the cgroup.
    #[error("{what} {}", path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The description of the container cannot be written.
    #[error("describe the container")]
    Spec(#[from] oci::Error),
    /// It ended by itself, and not well.
    #[error("task \"{id}\" failed: exit code {code}")]
    Exited {
        /// Its id.
        id: String,
        /// 128 and more: killed by a signal; 255: unknown.
        code: u32,
    },
    /// It needed more memory than its limit, or the machine, allows.
    #[error("task \"{id}\" was killed: out of memory")]
    OutOfMemory {
        /// Its id.
        id: String,
    },
}

/// A containerd, connected to at first use and again when it was away. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Containerd {
    options: Arc<Options>,
    namespace: MetadataValue<Ascii>,
    channel: Arc<OnceCell<Channel>>,
}

/// `containerd.runc.v1.Options`, as far as we set them.
/// (containerd's `runtime/v2/runc/options/oci.proto`.)
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(bool, tag = "2")]
    no_new_keyring: bool,
    #[prost(string, tag = "3")]
    shim_cgroup: String,
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(bool, tag = "9")]
    systemd_cgroup: bool,
}

pub(crate) async fn run(
    spec: &Spec,
    containerd: &Containerd,
    control: &mut Control,
) -> Result<(), Error> {
    let id = control.id.to_string();
    let client = containerd.client(&id, spec).await?;
    let fifo = client.fifo()?;
    let mut capture = Capture::new(fifo, control.log.clone());
    let mut created = client.create(spec).await;
    if created.is_err() {
        // Most likely something of the same name was left behind.
        client.remove().await?;
        created = client.create(spec).await;
    }
    let ended = match created {
        Ok(()) => client.live(control, &mut capture).await,
        Err(error) => Err(error),
    };
    // The count goes with the task. It began with the cgroup, at the task's creation.
    let starved = cgroup::out_of_memory(&client.cgroup) > 0;
    // Deleting the task waits until its output is copied.
    let removed = client.remove().await;
    capture.drain();
    match ended? {
        0 => removed,
        KILLED if starved => Err(Error::OutOfMemory { id }),
        code => Err(Error::Exited { id, code }),
    }
}

impl Containerd {
    /// Nothing is done before the first container is run.
    ///
    /// # Panics
    /// When the namespace is not visible ASCII.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let namespace = options.namespace.parse().expect("a namespace's name is visible ASCII");
        Self { options: Arc::new(options), namespace, channel: Arc::default() }
    }

    /// The connection, for those who ask containerd other things.
    ///
    /// # Errors
    /// [`Error::Connect`], until it succeeded once; then the channel reconnects by itself.
    pub async fn channel(&self) -> Result<Channel, Error> {
        let socket = &self.options.socket;
        let connect = || containerd_client::connect(socket);
        let channel = self.channel.get_or_try_init(connect).await;
        channel.cloned().map_err(|source| Error::Connect { socket: socket.clone(), source })
    }

    async fn client(&self, id: &str, spec: &Spec) -> Result<Client, Error> {
        let channel = self.channel().await?;
        Ok(Client {
            id: id.to_owned(),
            namespace: self.namespace.clone(),
            cgroup: self.options.cgroups.join(spec.cgroup.trim_start_matches('/')),
            options: self.options.clone(),
            tasks: TasksClient::new(channel.clone()),
            containers: ContainersClient::new(channel),
        })
    }
}

/// What can be done to one container.
#[derive(Clone, Debug)]
struct Client {
    id: String,
    namespace: MetadataValue<Ascii>,
    /// Where the cgroup of the container is to be found.
    cgroup: PathBuf,
    options: Arc<Options>,
    tasks: TasksClient<Channel>,
    containers: ContainersClient<Channel>,
}

impl Client {
    /// Makes the FIFO, and opens it so that it never reports an end: a writer may come later.
    fn fifo(&self) -> Result<pipe::Receiver, Error> {
        let path = self.fifo_path();
        fs::create_dir_all(&self.options.fifos).map_err(file("make", &self.options.fifos))?;
        match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(file("make FIFO", &path)(error.into())),
        }
        let opened = pipe::OpenOptions::new().read_write(true).open_receiver(&path);
        opened.map_err(file("open FIFO", &path))
    }

    fn fifo_path(&self) -> PathBuf {
        self.options.fifos.join(&self.id)
    }

    /// Creates the container and its task: all but the start.
    async fn create(&self, spec: &Spec) -> Result<(), Error> {
        fs::create_dir_all(&spec.root).map_err(file("make root", &spec.root))?;
        let runtime = RuncOptions {
            no_new_keyring: true,
            shim_cgroup: self.options.shim_cgroup.clone().unwrap_or_default(),
            binary_name: self.options.binary.clone().unwrap_or_default(),
            systemd_cgroup: false,
        };
        let container = Container {
            id: self.id.clone(),
            runtime: Some(Runtime {
                name: "io.containerd.runc.v2".to_owned(),
                options: Some(Any {
                    type_url: "containerd.runc.v1.Options".to_owned(),
                    value: runtime.encode_to_vec(),
                }),
            }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                value: oci::encode(spec, &self.id, &self.options.namespace)?,
            }),
            ..Container::default()
        };
        let request = self.request(CreateContainerRequest { container: Some(container) });
        self.call("create container", self.containers.clone().create(request)).await?;
        let output = self.fifo_path().display().to_string();
        let request = self.request(CreateTaskRequest {
            container_id: self.id.clone(),
            stdout: output.clone(),
            stderr: output,
            ..CreateTaskRequest::default()
        });
        self.call("create task", self.tasks.clone().create(request)).await?;
        Ok(())
    }

    async fn start(&self) -> Result<u32, Error> {
        let request =
            self.request(StartRequest { container_id: self.id.clone(), ..StartRequest::default() });
        Ok(self.call("start task", self.tasks.clone().start(request)).await?.pid)
    }

    /// Starts what was created, when told to, and stays until it has ended. Its code; 0 if it was told
    /// to end.
    async fn live(&self, control: &mut Control, capture: &mut Capture) -> Result<u32, Error> {
        if control.ready().await.is_err() {
            return Ok(0);
        }
        let (id, pid) = (&self.id, self.start().await?);
        control
            .started(format!("Started task {id} (PID {pid}) for container {id}"), Some(pid))
            .await;
        Ok(self.watch(control, capture).await)
    }

    /// Copies the output and passes on what the run is told, until the task has ended.
    async fn watch(&self, control: &mut Control, capture: &mut Capture) -> u32 {
        let (mut told, mut sent) = (None, false);
        let exit = self.exit();
        tokio::pin!(exit);
        loop {
            // `end` may be cut off and tried again; the others are cancel-safe.
            tokio::select! {
                code = &mut exit => return if told.is_some() { 0 } else { code },
                stop = control.stop() => (told, sent) = (Some(stop), false),
                () = self.end(told), if told.is_some() && !sent => sent = true,
                never = capture.run() => match never {},
            }
        }
    }

    /// Waits until the task has ended, through any absence of containerd. 255 when nobody knows how.
    async fn exit(&self) -> u32 {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let request = self
                .request(WaitRequest { container_id: self.id.clone(), ..WaitRequest::default() });
            match self.tasks.clone().wait(request).await {
                Ok(answer) => return answer.into_inner().exit_status,
                Err(status) if status.code() == Code::NotFound => return 255,
                Err(status) => tracing::debug!(id = %self.id, %status, "waiting for a task again"),
            }
            tokio::time::sleep(backoff.next(0)).await;
        }
    }

    /// Signals all processes of the task, trying until containerd has taken it or knows no such task.
    async fn end(&self, stop: Option<Stop>) {
        let signal = if stop == Some(Stop::Kill) { Signal::SIGKILL } else { Signal::SIGTERM };
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        while let Err(error) = self.kill(signal).await {
            tracing::debug!(id = %self.id, error = %orlop_rt::Chain(&error), "signalling a task again");
            tokio::time::sleep(backoff.next(0)).await;
        }
    }

    /// Success also when there is nobody to signal.
    async fn kill(&self, signal: Signal) -> Result<(), Error> {
        if signal == Signal::SIGKILL {
            cgroup::kill(&self.cgroup).map_err(file("kill cgroup", &self.cgroup))?;
        }
        let request = self.request(KillRequest {
            container_id: self.id.clone(),
            signal: (signal as i32).unsigned_abs(),
            all: true,
            ..KillRequest::default()
        });
        absent_is_fine(self.call("signal task", self.tasks.clone().kill(request)).await)
    }

    /// Removes the task, whatever it does, and the container. Fine when there are none.
    async fn remove(&self) -> Result<(), Error> {
        if self.delete_task().await.is_err() {
            self.kill(Signal::SIGKILL).await?;
            // Bounded by what the kernel needs to kill; a task that stays fails the next call.
            let _ = tokio::time::timeout(CALL_LIMIT, self.exit()).await;
            self.delete_task().await?;
        }
        let request = self.request(DeleteContainerRequest { id: self.id.clone() });
        absent_is_fine(self.call("delete container", self.containers.clone().delete(request)).await)
    }

    async fn delete_task(&self) -> Result<(), Error> {
        let request = self.request(DeleteTaskRequest { container_id: self.id.clone() });
        absent_is_fine(self.call("delete task", self.tasks.clone().delete(request)).await)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    async fn call<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        let answer = match tokio::time::timeout(CALL_LIMIT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!("no answer in {CALL_LIMIT:?}"))),
        };
        answer.map(Response::into_inner).map_err(|status| Error::Call {
            call: format!("{what} {}", self.id),
            status: Box::new(status),
        })
    }
}

fn absent_is_fine<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(Error::Call { status, .. }) if status.code() == Code::NotFound => Ok(()),
        other => other.map(drop),
    }
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}
