//! Sockets inside the node: HTTP/2 with prior knowledge, no TLS.
//!
//! Who may connect is decided by the directory a socket lies in: whoever may search it may connect.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use http::Uri;
use http::uri::{Authority, Scheme};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Channel;

use crate::accept::Failures;
use crate::lane::{Lane, Terms};

/// Mode of directories made for a socket.
const DIRECTORY_MODE: u32 = 0o700;
/// Connecting needs the right to write; the directory keeps others out.
const SOCKET_MODE: u32 = 0o666;

/// Listens on `path`. A socket left there by an earlier run is replaced; missing directories are
/// made, for us alone (0700).
///
/// The stream never ends and yields no errors, so no shortage of the system closes the listener.
///
/// # Errors
/// When a directory cannot be made, or `path` cannot be bound (something else than a socket is there).
pub fn listen(
    path: impl AsRef<Path>,
) -> io::Result<impl Stream<Item = io::Result<UnixStream>> + Send + 'static> {
    let path = path.as_ref();
    let at = |doing: &str, error: io::Error| {
        io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
    };
    if let Some(parent) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(parent);
        made.map_err(|error| at("make the directory of", error))?;
    }
    if fs::symlink_metadata(path).is_ok_and(|left| left.file_type().is_socket()) {
        fs::remove_file(path).map_err(|error| at("remove the old socket", error))?;
    }
    let listener = UnixListener::bind(path).map_err(|error| at("listen on", error))?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
        .map_err(|error| at("set the mode of", error))?;
    Ok(stream::unfold((listener, Failures::default()), |(listener, mut failures)| async {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    failures.succeeded();
                    return Some((Ok(connection), (listener, failures)));
                }
                Err(error) => tokio::time::sleep(failures.failed(&error)).await,
            }
        }
    }))
}

/// A channel to the server on `path`, dialled when it is first needed and again whenever it was lost.
///
/// Must be called within a tokio runtime. While nobody listens, calls fail at once with `Unavailable`.
pub fn channel(path: impl Into<PathBuf>) -> Channel {
    let path = path.into();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { dial(&path).await.map(TokioIo::new) }
    });
    crate::endpoint(Uri::from_static("http://localhost"))
        .initial_stream_window_size(crate::LOCAL_STREAM_WINDOW)
        .initial_connection_window_size(crate::LOCAL_CONNECTION_WINDOW)
        .connect_with_connector_lazy(connector)
}

/// As [`channel`], for a proxy.
pub fn lane(path: impl Into<PathBuf>) -> Lane {
    let path = Arc::new(path.into());
    let terms = Terms {
        scheme: Scheme::HTTP,
        authority: Authority::from_static("localhost"),
        stream_window: crate::LOCAL_STREAM_WINDOW,
        connection_window: crate::LOCAL_CONNECTION_WINDOW,
    };
    Lane::new(terms, move || {
        let path = Arc::clone(&path);
        async move { dial(&path).await }
    })
}

async fn dial(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await.map_err(|error| {
        io::Error::new(error.kind(), format!("connect to {}: {error}", path.display()))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::pin::pin;

    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_directories_are_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/x/x.sock");
        drop(listen(&path).unwrap());
        let mut incoming = pin!(listen(&path).unwrap());
        let (client, server) = tokio::join!(UnixStream::connect(&path), incoming.next());
        client.unwrap();
        server.unwrap().unwrap();
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, DIRECTORY_MODE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "text").unwrap();
        let error = listen(&path).err().unwrap().to_string();
        assert!(error.starts_with("listen on ") && error.contains("precious: "), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
