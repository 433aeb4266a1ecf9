//! Why a node hung up on us.
//!
//! In TLS 1.3 a client may speak before the server has looked at its certificate. When the server then
//! refuses it, the alert that says so races the end of the connection, and a call may fail with a mere
//! "broken pipe". Dialling once more and only listening gets the alert: a server of HTTP/2 that accepts
//! us speaks first.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::endpoint::Endpoint;

/// How long the node may take to say something.
const LIMIT: Duration = Duration::from_secs(5);

/// What the node says instead of serving us; `None` when it would serve us now, or says nothing.
pub(crate) async fn listen(endpoint: &Endpoint, tls: Arc<ClientConfig>) -> Option<io::Error> {
    let said = async {
        let name = ServerName::try_from(endpoint.host.clone()).ok()?;
        let stream = TcpStream::connect((&*endpoint.host, endpoint.port)).await.ok()?;
        let mut stream = TlsConnector::from(tls).connect(name, stream).await.ok()?;
        stream.read_u8().await.err()
    };
    timeout(LIMIT, said).await.ok().flatten()
}
