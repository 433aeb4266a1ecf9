#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use orlop_pki::tls::client_config;
use orlop_pki::{
    Authority, KeyKind, Leaf, Pair, Request, Usage, certificate, encoding, request, tls as ptls,
};
use orlop_proto::security::security_service_client::SecurityServiceClient;
use orlop_proto::security::{
    CertificateRequest, CertificateResponse, ReadFileRequest, WriteFileRequest,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const TOKEN: &str = "abcdef.0123456789abcdef";

fn authority() -> Authority {
    Authority::generate("talos", KeyKind::Ed25519, 1000 * HOUR, SystemTime::now()).unwrap()
}

fn leaf(usage: Usage, organization: &str) -> Leaf {
    Leaf {
        common_name: "control-1".to_owned(),
        organizations: vec![organization.to_owned()],
        usage,
        dns: vec!["control-1".to_owned()],
        ips: vec!["127.0.0.1".parse().unwrap()],
        lifetime: HOUR,
    }
}

fn issue(authority: &Authority, usage: Usage, organization: &str) -> Pair {
    authority.issue(&leaf(usage, organization), SystemTime::now()).unwrap()
}

/// A trustd on a port of its own.
struct Server {
    folder: TempDir,
    port: u16,
    ca: Authority,
    /// Dropped with the test, which ends the server.
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = authority();
        fs::create_dir(folder.path().join("secrets")).unwrap();
        fs::create_dir(folder.path().join("drop")).unwrap();
        let mut server = Self { folder, port: 0, ca, _tasks: JoinSet::new() };
        let root = server.folder.path().canonicalize().unwrap();
        server.write(&server.ca, &server.ca.pair().crt, TOKEN);
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            secrets: root.join("secrets"),
            drops: vec![root.join("drop")],
            sans: vec!["192.0.2.1".to_owned(), "api.example.org".to_owned()],
            reserved: vec!["192.0.2.9".to_owned(), "k8s.example.org".to_owned()],
            debug: false,
            look_every: Duration::from_millis(5),
        };
        let trustd = Trustd::open(options).await.unwrap();
        server.port = trustd.address().port();
        server._tasks.spawn(async move { trustd.serve(CancellationToken::new()).await.unwrap() });
        server
    }

    /// Writes the secrets as machined does, one after the other.
    fn write(&self, issuing: &Authority, accepted: &str, token: &str) {
        let own = issue(issuing, Usage::Server, "");
        let folder = self.folder.path().join("secrets");
        for (name, text) in [
            ("ca.crt", accepted),
            ("ca.key", issuing.pair().key.expose()),
            ("token", token),
            ("tls.key", own.key.expose()),
            ("tls.crt", &own.crt),
        ] {
            fs::write(folder.join("new"), text).unwrap();
            fs::rename(folder.join("new"), folder.join(name)).unwrap();
        }
    }

    fn drop_path(&self, name: &str) -> String {
        let path = self.folder.path().canonicalize().unwrap().join("drop").join(name);
        path.to_str().unwrap().to_owned()
    }

    fn config(&self, identity: Option<&Pair>) -> Arc<ClientConfig> {
        let identity = identity.map(|pair| (pair.crt.as_str(), pair.key.expose()));
        client_config(&self.ca.pair().crt, identity).unwrap()
    }

    fn dial(&self, identity: Option<&Pair>) -> Client {
        Client(tls::channel("127.0.0.1", self.port, self.config(identity)))
    }

    async fn connect(&self, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = "127.0.0.1".try_into().unwrap();
        TlsConnector::from(config).connect(name, stream).await
    }
}

#[derive(Clone)]
struct Client(Channel);

impl Client {
    async fn certificate(&self, token: &str, csr: &[u8]) -> Result<CertificateResponse, Status> {
        let request = with(CertificateRequest { csr: csr.to_vec() }, &[token]);
        let answer = SecurityServiceClient::new(self.0.clone()).certificate(request).await;
        answer.map(tonic::Response::into_inner)
    }

    /// Asks for these SANs; the ones in the certificate.
    async fn names(&self, dns: &[&str], ips: &[&str]) -> Vec<String> {
        let dns: Vec<_> = dns.iter().map(|name| (*name).to_owned()).collect();
        let ips: Vec<_> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let (csr, _) = request::make("node-1", &dns, &ips).unwrap();
        let crt = self.certificate(TOKEN, csr.as_bytes()).await.unwrap().crt;
        let (dns, ips) = certificate::names(str::from_utf8(&crt).unwrap()).unwrap();
        dns.into_iter().chain(ips.iter().map(IpAddr::to_string)).collect()
    }

    async fn read(&self, path: &str) -> Status {
        let request = with(ReadFileRequest { path: path.to_owned() }, &[TOKEN]);
        SecurityServiceClient::new(self.0.clone()).read_file(request).await.unwrap_err()
    }

    async fn write(&self, token: &[&str], path: &str, data: &[u8]) -> Result<(), Status> {
        let request = WriteFileRequest { path: path.to_owned(), data: data.to_vec(), perm: 0o600 };
        SecurityServiceClient::new(self.0.clone()).write_file(with(request, token)).await.map(drop)
    }
}

fn with<T>(message: T, tokens: &[&str]) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for token in tokens.iter().filter(|token| !token.is_empty()) {
        request.metadata_mut().append("token", token.parse().unwrap());
    }
    request
}

fn csr() -> Vec<u8> {
    request::make("node-1", &["node-1".to_owned()], &[]).unwrap().0.into_bytes()
}

fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn said(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

#[tokio::test]
async fn a_node_with_the_token_gets_a_certificate_for_serving_and_nothing_else() {
    let server = Server::start().await;
    // Everything a node could wish for: roles, a CA's powers, a client's.
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut wish = CertificateParams::new(vec!["node-1".to_owned()]).unwrap();
    wish.distinguished_name.push(DnType::CommonName, "node-1");
    wish.distinguished_name.push(DnType::OrganizationName, "os:controlplane");
    wish.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Any];
    let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
    let answer = server.dial(None).certificate(TOKEN, csr.as_bytes()).await.unwrap();

    assert_eq!(str::from_utf8(&answer.ca).unwrap(), server.ca.pair().crt);
    let crt = String::from_utf8(answer.crt).unwrap();
    certificate::check_issuer(&crt, &server.ca.pair().crt).unwrap();
    let der = encoding::certificates(&crt).unwrap().remove(0);
    let leaf = X509Certificate::from_der(&der).unwrap().1;
    assert_eq!(leaf.subject().to_string(), "CN=node-1");
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any && usage.other.is_empty());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert!(!leaf.is_ca());
    assert!(leaf.raw_serial().len() >= 15);
    let left = certificate::not_after(&crt).unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left <= 24 * HOUR && left > 23 * HOUR, "{left:?}");
}

#[tokio::test]
async fn a_request_for_a_cas_powers_gives_a_leaf() {
    let server = Server::start().await;
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut wish = CertificateParams::default();
    wish.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
    let answer = server.dial(None).certificate(TOKEN, csr.as_bytes()).await.unwrap();
    let der = encoding::certificates(str::from_utf8(&answer.crt).unwrap()).unwrap().remove(0);
    let leaf = X509Certificate::from_der(&der).unwrap().1;
    assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().is_none_or(|b| !b.value.ca));
}

#[tokio::test]
async fn names_of_others_are_left_out() {
    let client = Server::start().await;
    let dialled = client.dial(None);
    let dns = ["node-1", "kubernetes", "k8s.example.org", "control-1", "api.example.org", "*.a"];
    // trustd is called from loopback here: every other address is another node's.
    let ips = ["127.0.0.1", "10.0.0.8", "192.0.2.1", "192.0.2.9"];
    let granted = dialled.names(&dns, &ips).await;
    assert_eq!(granted, ["api.example.org", "control-1", "node-1", "127.0.0.1", "192.0.2.1"]);
}

#[tokio::test]
async fn a_certificate_from_trustd_opens_no_front_door() {
    let server = Server::start().await;
    let (csr, key) = request::make("node-1", &[], &["127.0.0.1".parse().unwrap()]).unwrap();
    let answer = server.dial(None).certificate(TOKEN, csr.as_bytes()).await.unwrap();
    let issued = Pair { crt: String::from_utf8(answer.crt).unwrap(), key };
    // It serves: a front door that shows it is believed.
    let (ca, key) = (&server.ca.pair().crt, issued.key.expose());
    let (_config, configs) = watch::channel(ptls::server_config(ca, &issued.crt, key).unwrap());
    let listener = tls::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    let service = tower::service_fn(|_| async {
        Ok::<_, Infallible>(Status::aborted("inside").into_http::<tonic::body::Body>())
    });
    let incoming = tls::incoming(listener, configs, Arc::default());
    tasks.spawn(async move {
        orlop_rpc::server().serve_with_incoming(service, incoming).await.unwrap();
    });
    let admin = issue(&server.ca, Usage::Client, "os:admin");
    for (identity, found) in [(&admin, "inside"), (&issued, "fatal alert")] {
        let client = Client(tls::channel("127.0.0.1", port, server.config(Some(identity))));
        let status = client.certificate(TOKEN, b"").await.unwrap_err();
        assert!(format!("{status:?}").contains(found), "{status:?}");
    }
}

#[tokio::test]
async fn without_the_token_nothing_is_told() {
    let near = TOKEN.replace("ef", "ee");
    for (token, text) in [
        ("", "missing token"),
        (near.as_str(), "invalid token"),
        ("x", "invalid token"),
        (&TOKEN[..TOKEN.len() - 1], "invalid token"),
    ] {
        // Each wrong one costs its source dear, so each gets a server of its own. The request is a
        // broken one, which nobody looks at.
        let server = Server::start().await;
        let status = server.dial(None).certificate(token, b"garbage").await.unwrap_err();
        assert_eq!(said(&status), (Code::Unauthenticated, text));
    }
}

#[tokio::test]
async fn two_tokens_are_none() {
    let server = Server::start().await;
    let request = with(CertificateRequest { csr: csr() }, &[TOKEN, TOKEN]);
    let answer = SecurityServiceClient::new(server.dial(None).0).certificate(request).await;
    assert_eq!(said(&answer.unwrap_err()), (Code::Unauthenticated, "missing token"));
}

#[tokio::test]
async fn a_guesser_is_soon_not_heard_even_with_the_right_token() {
    let server = Server::start().await;
    let client = server.dial(None);
    client.certificate(TOKEN, &csr()).await.unwrap();
    let mut tries = 0;
    let status = loop {
        let status = client.certificate("abcdef.0123456789abcdee", &csr()).await.unwrap_err();
        if status.code() != Code::Unauthenticated {
            break status;
        }
        tries += 1;
        assert!(tries < 50, "guessing goes on");
    };
    let text = "too many calls, try again later";
    assert_eq!(said(&status), (Code::ResourceExhausted, text));
    let status = client.certificate(TOKEN, &csr()).await.unwrap_err();
    assert_eq!(said(&status), (Code::ResourceExhausted, text));
}

#[tokio::test]
async fn a_broken_request_is_the_callers_fault() {
    let server = Server::start().await;
    let client = server.dial(None);
    for (csr, begin) in [
        (&b""[..], "failed to decode CSR"),
        (b"garbage", "failed to decode CSR"),
        (
            b"-----BEGIN CERTIFICATE REQUEST-----\nAQID\n-----END CERTIFICATE REQUEST-----\n",
            "failed to parse CSR: ",
        ),
    ] {
        let status = client.certificate(TOKEN, csr).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(begin), "{status}");
    }
}

#[tokio::test]
async fn a_very_large_request_is_refused_and_others_are_served() {
    let server = Server::start().await;
    let client = server.dial(None);
    let status = client.certificate(TOKEN, &vec![b'x'; 65 << 10]).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let status = client.certificate(TOKEN, &vec![b'x'; 60 << 10]).await.unwrap_err();
    assert_eq!(said(&status), (Code::InvalidArgument, "failed to decode CSR"));
    client.certificate(TOKEN, &csr()).await.unwrap();
}

#[tokio::test]
async fn other_methods_and_streams_are_refused_outright() {
    let server = Server::start().await;
    for path in ["/securityapi.SecurityService/Stream", "/grpc.health.v1.Health/Watch", "/"] {
        let request = http::Request::post(path).header("token", TOKEN);
        let request = request.body(tonic::body::Body::empty()).unwrap();
        let answer = server.dial(None).0.oneshot(request).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn files_are_placed_by_established_trustees_only() {
    let server = Server::start().await;
    let now = SystemTime::now();
    let path = server.drop_path("etcd/ca.key");
    let (csr, key) = request::make("node-1", &["os:controlplane".to_owned()], &[]).unwrap();
    let answer = server.dial(None).certificate(TOKEN, csr.as_bytes()).await.unwrap();
    let workers = Pair { crt: String::from_utf8(answer.crt).unwrap(), key };
    let expired = leaf(Usage::Client, "os:controlplane");
    let expired = server.ca.issue(&expired, now - 2 * HOUR).unwrap();
    // Certificates are good from an hour before they were made.
    let not_yet = leaf(Usage::Client, "os:controlplane");
    let not_yet = server.ca.issue(&not_yet, now + 3 * HOUR).unwrap();
    let refused = [
        None,
        Some(workers),
        Some(issue(&server.ca, Usage::Client, "os:admin")),
        Some(issue(&server.ca, Usage::Server, "os:controlplane")),
        Some(issue(&authority(), Usage::Client, "os:controlplane")),
        Some(expired),
        Some(not_yet),
    ];
    for (number, identity) in refused.iter().enumerate() {
        let client = server.dial(identity.as_ref());
        let status = client.write(&[TOKEN], &path, b"x").await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{number}: {status}");
        assert_eq!(client.read(&path).await.code(), Code::PermissionDenied);
    }
    assert_eq!(listing(&server.folder.path().join("drop")), [""; 0]);

    let trustee = issue(&server.ca, Usage::Client, "os:controlplane");
    let client = server.dial(Some(&trustee));
    let status = client.write(&[], &path, b"x").await.unwrap_err();
    assert_eq!(said(&status), (Code::Unauthenticated, "missing token"));
    client.write(&[TOKEN], &path, b"key").await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"key");
    assert_eq!(client.read(&path).await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_trustee_reaches_the_drop_folder_only() {
    let server = Server::start().await;
    let trustee = issue(&server.ca, Usage::Client, "os:controlplane");
    let client = server.dial(Some(&trustee));
    std::os::unix::fs::symlink("/etc", server.drop_path("link")).unwrap();
    nix::unistd::mkfifo(server.drop_path("fifo").as_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    for path in [
        "/etc/passwd".to_owned(),
        "/dev/null".to_owned(),
        server.drop_path("../secrets/token"),
        server.drop_path("link/new"),
        server.drop_path("link"),
        server.drop_path("fifo"),
    ] {
        let status = client.write(&[TOKEN], &path, b"x").await.unwrap_err();
        assert_eq!(said(&status), (Code::PermissionDenied, "no files are placed there"), "{path}");
    }
    let largest = vec![b'x'; drops::SIZE_LIMIT];
    client.write(&[TOKEN], &server.drop_path("large"), &largest).await.unwrap();
    let larger = [&largest[..], b"x"].concat();
    let status = client.write(&[TOKEN], &server.drop_path("larger"), &larger).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let mut left = listing(&server.folder.path().join("drop"));
    left.sort();
    assert_eq!(left, ["fifo", "large", "link"]);
}

#[tokio::test]
async fn a_crowd_of_idle_connections_does_not_keep_others_out() {
    let server = Server::start().await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(server.connect(server.config(None)).await.unwrap());
    }
    server.dial(None).certificate(TOKEN, &csr()).await.unwrap();
    // The oldest has had to go. What it was sent before that is passed over.
    let mut rest = Vec::new();
    let _closed_or_reset = idle[0].read_to_end(&mut rest).await;
}

#[tokio::test]
async fn new_secrets_hold_without_a_restart_and_old_connections_stay() {
    let server = Server::start().await;
    let before = server.dial(None);
    before.certificate(TOKEN, &csr()).await.unwrap();
    let new = authority();
    let both = format!("{}{}", new.pair().crt, server.ca.pair().crt);
    server.write(&new, &both, "fedcba.0123456789abcdef");
    // The certificate is the last to be written, so with it all is new.
    let trusting_new = client_config(&new.pair().crt, None).unwrap();
    while server.connect(Arc::clone(&trusting_new)).await.is_err() {}
    let answer = before.certificate("fedcba.0123456789abcdef", &csr()).await.unwrap();
    assert_eq!(str::from_utf8(&answer.ca).unwrap(), both);
    certificate::check_issuer(str::from_utf8(&answer.crt).unwrap(), &new.pair().crt).unwrap();
    let status = before.certificate(TOKEN, &csr()).await.unwrap_err();
    assert_eq!(said(&status), (Code::Unauthenticated, "invalid token"));
    // The old authority's control planes are still established.
    let trustee = issue(&server.ca, Usage::Client, "os:controlplane");
    let identity = (trustee.crt.as_str(), trustee.key.expose());
    let trusting_both = client_config(&both, Some(identity)).unwrap();
    let client = Client(tls::channel("127.0.0.1", server.port, trusting_both));
    let path = server.drop_path("new");
    client.write(&["fedcba.0123456789abcdef"], &path, b"x").await.unwrap();
    // A new connection sees the new certificate, which the old authority has not signed.
    let late = server.dial(None).certificate(TOKEN, &csr()).await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable, "{late}");
}

#[tokio::test]
async fn secrets_that_cannot_be_used_are_told_and_change_nothing() {
    let server = Server::start().await;
    let secrets = server.folder.path().join("secrets");
    for (name, text) in [("token", "\n"), ("ca.key", "x"), ("tls.crt", "")] {
        let (mut files, _) = Files::open(Folder(secrets.clone())).unwrap();
        let old = fs::read_to_string(secrets.join(name)).unwrap();
        fs::write(secrets.join(name), text).unwrap();
        assert!(files.look().is_none(), "{name}");
        let error = Files::open(Folder(secrets.clone())).unwrap_err();
        let said = orlop_rt::Chain(&error).to_string();
        assert!(said.contains("secrets"), "{said}");
        fs::write(secrets.join(name), old).unwrap();
        Files::open(Folder(secrets.clone())).unwrap();
    }
    fs::remove_file(secrets.join("token")).unwrap();
    let error = Files::open(Folder(secrets.clone())).unwrap_err().to_string();
    assert!(error.ends_with("secrets/token"), "{error}");
}

#[test]
fn a_request_written_by_openssl_is_read() {
    let text = include_bytes!("testdata/openssl.csr");
    let request = Request::from_pem(text).unwrap();
    assert_eq!(
        (request.common_name.as_str(), &request.dns[..]),
        ("node-1", &["node-1".to_owned()][..])
    );
    assert_eq!(request.organizations, ["os:admin"]);
}
