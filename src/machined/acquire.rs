//! The child of PID 1 that touches foreign bytes: fetches the machine configuration, checks it, and
//! leaves it where PID 1 reads it. PID 1 itself parses only what this process has accepted.
//!
//! What is wrong goes to stderr, a line each; the exit code tells PID 1 what to do about it:
//! 78, the document is wrong and fetching it again would not help; 1, it could not be had, try again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orlop_config::machine::Mode;
use orlop_rt::{Chain, Exit};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::label;
use crate::source::{Source, VOLUME_LABEL};

/// No configuration is larger, packed or not; what is, is not one.
const SIZE_LIMIT: u64 = orlop_config::machine::UNPACKED_LIMIT as u64;
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
const MOUNT_POINT: &str = "/run/orlop/config";

/// Fetch and check the machine configuration (PID 1 runs this as its child).
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// http://…, file:///… or metal-iso.
    source: String,
    /// Where the checked document goes; its mode is 0600.
    #[arg(long)]
    to: PathBuf,
    /// Where the node runs: cloud, container or metal.
    #[arg(long)]
    mode: Mode,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("no volume is labelled {VOLUME_LABEL:?}; attach one that holds config.yaml")]
    NoVolume,
    #[error("mount {fstype} from {}", device.display())]
    Mount { fstype: &'static str, device: PathBuf, source: nix::Error },
    #[error("connect to {authority}")]
    Connect { authority: String, source: io::Error },
    #[error("get {uri}")]
    Http { uri: Uri, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("get {uri}: the server answered {status}")]
    Status { uri: Uri, status: http::StatusCode },
    #[error("get {uri}: no answer within {} s", HTTP_TIMEOUT.as_secs())]
    Timeout { uri: Uri },
}

/// Runs as the child.
pub(crate) fn main(options: &Options) -> ExitCode {
    let uuid = fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default();
    let source = match Source::parse(&options.source, uuid.trim()) {
        Ok(source) => source,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Config.into();
        }
    };
    let bytes = match fetch(&source) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{}", Chain(&error));
            return Exit::Failed.into();
        }
    };
    let bytes = match orlop_config::machine::unpack(&bytes) {
        Ok(bytes) => bytes.into_owned(),
        Err(error) => {
            eprintln!("{}: {}", source.file_name(), Chain(&error));
            return Exit::Config.into();
        }
    };
    let Ok(text) = String::from_utf8(bytes) else {
        eprintln!("{}: not UTF-8 text", source.file_name());
        return Exit::Config.into();
    };
    if let Err(problems) = orlop_config::machine::parse_for(options.mode, source.file_name(), &text)
    {
        eprintln!("{problems}");
        return Exit::Config.into();
    }
    match orlop_rt::replace(&options.to, 0o600, text.as_bytes()) {
        Ok(()) => Exit::Ok.into(),
        Err(source) => {
            let error = Error::File { operation: "write", path: options.to.clone(), source };
            eprintln!("{}", Chain(&error));
            Exit::Failed.into()
        }
    }
}

pub(crate) fn fetch(source: &Source) -> Result<Vec<u8>, Error> {
    match source {
        Source::Volume => from_volume(),
        Source::File(path) => read(path),
        Source::Http(uri) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::Http { uri: uri.clone(), source: error.into() })?
            .block_on(async {
                timeout(HTTP_TIMEOUT, get(uri))
                    .await
                    .unwrap_or_else(|_| Err(Error::Timeout { uri: uri.clone() }))
            }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::File { operation: "read", path: path.into(), source };
    bounded(path, SIZE_LIMIT).map_err(failed)
}

/// A regular file of at most so many bytes.
pub(crate) fn bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A FIFO of that name would wait for a writer.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn from_volume() -> Result<Vec<u8>, Error> {
    let (device, volume) = label::find(VOLUME_LABEL)
        .map_err(|source| Error::File {
            operation: "list",
            path: "/sys/class/block".into(),
            source,
        })?
        .ok_or(Error::NoVolume)?;
    fs::create_dir_all(MOUNT_POINT).map_err(|source| Error::File {
        operation: "create",
        path: MOUNT_POINT.into(),
        source,
    })?;
    // A child that was killed for being late has left its mount there, and the kernel refuses the same
    // file system at the same place twice (EBUSY, mount(2)).
    while umount2(MOUNT_POINT, MntFlags::MNT_DETACH).is_ok() {}
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(&device), MOUNT_POINT, Some(volume.fstype), flags, None::<&str>)
        .map_err(|source| Error::Mount { fstype: volume.fstype, device: device.clone(), source })?;
    let bytes = read(&Path::new(MOUNT_POINT).join("config.yaml"));
    umount2(MOUNT_POINT, MntFlags::MNT_DETACH).map_err(|source| Error::Mount {
        fstype: volume.fstype,
        device,
        source,
    })?;
    bytes
}

async fn get(uri: &Uri) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Http { uri: uri.clone(), source };
    let host = uri.host().unwrap_or_default();
    let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(&authority)
        .await
        .map_err(|source| Error::Connect { authority: authority.clone(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.into()))?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, "orlop")
        .body(Empty::<&[u8]>::new())
        .map_err(|error| failed(error.into()))?;
    let body = async {
        let response = sender.send_request(request).await.map_err(|error| failed(error.into()))?;
        // Redirects are not followed: the address is the operator's, and theirs to correct.
        if response.status() != http::StatusCode::OK {
            return Err(Error::Status { uri: uri.clone(), status: response.status() });
        }
        let limit = usize::try_from(SIZE_LIMIT).unwrap_or(usize::MAX);
        let body = Limited::new(response.into_body(), limit).collect().await.map_err(failed)?;
        Ok(body.to_bytes().to_vec())
    };
    // The connection makes progress only while it is polled; it ends with the exchange.
    tokio::pin!(body);
    tokio::select! {
        body = &mut body => body,
        ended = connection => {
            ended.map_err(|error| failed(error.into()))?;
            body.await
        }
    }
}
