//! Exchanging keys over TLS (RFC 8915 §4): sockets, and what [`records`](crate::nts::records) decides.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_pki::{certificate, clockless};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::names::{self, Names};
use crate::nts::packet::{Association, Keys};
use crate::nts::records::{self, ALPN, Agreed, EXPORTER, LONGEST, Refusal, TO_CLIENT, TO_SERVER};

/// How long one address may take for all of it.
const LIMIT: Duration = Duration::from_secs(10);
/// A clock before this is wrong: before the first release, 2026-01-01; `ORLOP_EPOCH`, the time of the
/// build, is later and wins.
const FALLBACK_EPOCH: u64 = 1_767_225_600;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read the authorities in {}", .0.display())]
    Roots(PathBuf, #[source] io::Error),
    #[error("set up TLS for machine.time.ntsCA")]
    Trust(#[source] orlop_pki::Error),
    #[error("look up {0}")]
    Name(String, #[source] names::Error),
    #[error("{0:?} is no name for TLS")]
    NoName(String),
    #[error("exchange keys with {0}")]
    Connection(SocketAddr, #[source] io::Error),
    #[error("exchange keys with {0}: no answer within {limit} s", limit = LIMIT.as_secs())]
    Silent(SocketAddr),
    #[error("{0} does not speak ntske/1")]
    Alpn(SocketAddr),
    #[error("exchange keys with {0}")]
    Refused(SocketAddr, #[source] Refusal),
    #[error("take the keys of the connection to {0}")]
    Export(SocketAddr, #[source] rustls::Error),
    #[error("{0:?} has no address")]
    NoAddress(String),
}

/// Whom to believe.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    /// PEM of the operator; empty: those of the file.
    pub(crate) ca: String,
    /// PEM of the authorities that all the world believes.
    pub(crate) roots: PathBuf,
}

impl Trust {
    /// Read anew each time, and let go of: keys are exchanged a few times a day.
    fn config(&self, earliest: Option<SystemTime>) -> Result<Arc<ClientConfig>, Error> {
        let of_file = || {
            std::fs::read_to_string(&self.roots)
                .map_err(|error| Error::Roots(self.roots.clone(), error))
        };
        let config = if self.ca.is_empty() {
            clockless::client_config(&of_file()?, ALPN, earliest)
        } else {
            clockless::client_config(&self.ca, ALPN, earliest)
        };
        config.map_err(Error::Trust)
    }
}

/// What asking a server with proof takes.
#[derive(Debug)]
pub(crate) struct Secured {
    pub(crate) association: Mutex<Association>,
    /// Where its NTP server listens; `None`: where all do.
    pub(crate) port: Option<u16>,
    /// The certificate's validity, when our own clock was not trusted with judging it: no time
    /// outside of it is believed.
    pub(crate) within: Option<(SystemTime, SystemTime)>,
}

impl Secured {
    /// Whether the server may say that it is `time`.
    pub(crate) fn plausible(&self, time: SystemTime) -> bool {
        self.within.is_none_or(|(from, to)| from <= time && time <= to)
    }
}

/// When this program was built: no clock that is right shows less.
pub(crate) fn built() -> SystemTime {
    let epoch =
        option_env!("ORLOP_EPOCH").and_then(|text| text.parse().ok()).unwrap_or(FALLBACK_EPOCH);
    UNIX_EPOCH + Duration::from_secs(epoch)
}

/// Exchanges keys with the server `host`: the addresses of its NTP server, and what to ask there with.
/// With `earliest`, our own clock does not decide whether the server's certificate is valid: see
/// [`clockless`].
pub(crate) async fn exchange(
    names: &Names,
    trust: &Trust,
    host: &str,
    port: u16,
    earliest: Option<SystemTime>,
) -> Result<(Vec<IpAddr>, Secured), Error> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::NoName(host.to_owned()))?;
    let named = |error| Error::Name(host.to_owned(), error);
    let addresses = names.resolve(host).await.map_err(named)?;
    let config = trust.config(earliest)?;
    let mut last = Error::NoAddress(host.to_owned());
    for address in addresses {
        let address = SocketAddr::new(address, port);
        let asking = exchange_at(address, name.clone(), config.clone(), earliest);
        let result = timeout(LIMIT, asking).await.unwrap_or(Err(Error::Silent(address)));
        let (agreed, secured) = match result {
            Ok(agreed) => agreed,
            Err(error) => {
                last = error;
                continue;
            }
        };
        let addresses = match agreed.server {
            None => vec![address.ip()],
            Some(server) => {
                names.resolve(&server).await.map_err(|error| Error::Name(server, error))?
            }
        };
        return Ok((addresses, secured));
    }
    Err(last)
}

async fn exchange_at(
    address: SocketAddr,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    earliest: Option<SystemTime>,
) -> Result<(Agreed, Secured), Error> {
    let failed = |error| Error::Connection(address, error);
    let socket = TcpStream::connect(address).await.map_err(failed)?;
    let mut stream = TlsConnector::from(config).connect(name, socket).await.map_err(failed)?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(Error::Alpn(address));
    }
    stream.write_all(&records::request()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let agreed = receive(&mut stream, address).await?;
    let connection = stream.get_ref().1;
    let export = |context: &[u8]| {
        connection
            .export_keying_material([0; 32], EXPORTER, Some(context))
            .map_err(|error| Error::Export(address, error))
    };
    let keys = Keys::new(export(&TO_SERVER)?, export(&TO_CLIENT)?);
    let shown = connection.peer_certificates().and_then(|shown| shown.first());
    let validity = shown.and_then(|shown| certificate::validity_of_der(shown).ok());
    let within = earliest.and_then(|earliest| validity.map(|(from, to)| (from.max(earliest), to)));
    let secured = Secured {
        association: Mutex::new(Association::new(keys, agreed.cookies.clone())),
        port: agreed.port,
        within,
    };
    Ok((agreed, secured))
}

async fn receive(stream: &mut TlsStream<TcpStream>, address: SocketAddr) -> Result<Agreed, Error> {
    let mut bytes = Vec::new();
    loop {
        let refused = |refusal| Error::Refused(address, refusal);
        if let Some(agreed) = records::response(&bytes).map_err(refused)? {
            return Ok(agreed);
        }
        let mut part = [0; 1024];
        let room = part.len().min(LONGEST - bytes.len());
        match stream.read(&mut part[..room]).await {
            Ok(0) => return Err(refused(Refusal::Short)),
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(error) => return Err(Error::Connection(address, error)),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use orlop_pki::{Authority, KeyKind, Leaf, Usage, encoding};
    use rustls::ServerConfig;
    use tokio::net::{TcpListener, UdpSocket};
    use tokio::sync::oneshot;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::ask;
    use crate::nts::packet::{self, AUTHENTICATOR, UNIQUE};
    use crate::nts::records::tests::{PROTOCOL, SIV_256, answer};
    use crate::wire::{self, Header, Mode, Packet, Timestamp};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A server of keys on a port of its own, and who must be trusted for it.
    struct Server {
        ca: String,
        config: ServerConfig,
        listener: TcpListener,
    }

    impl Server {
        /// Its certificate is valid for an hour from `from` on.
        async fn new(from: SystemTime) -> Self {
            let long = HOUR * 24 * 4000;
            let authority =
                Authority::generate("time", KeyKind::P256, long, from - long / 2).unwrap();
            let leaf = Leaf {
                common_name: "time".to_owned(),
                organizations: Vec::new(),
                usage: Usage::Server,
                dns: Vec::new(),
                ips: vec!["127.0.0.1".parse().unwrap()],
                lifetime: HOUR,
            };
            let pair = authority.issue(&leaf, from).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    encoding::certificates(&pair.crt).unwrap(),
                    encoding::private_key(pair.key.expose()).unwrap().into(),
                )
                .unwrap();
            config.alpn_protocols = vec![ALPN.to_vec()];
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            Self { ca: authority.pair().crt.clone(), config, listener }
        }

        /// Answers one client with `bytes`; then it hangs up. The keys of that connection.
        fn serve(self, bytes: Vec<u8>) -> (Trust, u16, oneshot::Receiver<[[u8; 32]; 2]>) {
            let port = self.listener.local_addr().unwrap().port();
            let (sender, keys) = oneshot::channel();
            tokio::spawn(async move {
                let (socket, _) = self.listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(Arc::new(self.config));
                // A client that does not like us hangs up.
                let Ok(mut stream) = acceptor.accept(socket).await else { return };
                let mut request = vec![0; records::request().len()];
                if stream.read_exact(&mut request).await.is_err() {
                    return;
                }
                assert_eq!(request, records::request());
                let export = |context: &[u8]| {
                    let connection = stream.get_ref().1;
                    connection.export_keying_material([0; 32], EXPORTER, Some(context)).unwrap()
                };
                let _ = sender.send([export(&TO_SERVER), export(&TO_CLIENT)]);
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
            });
            let trust = Trust { ca: self.ca, roots: "/dev/null".into() };
            (trust, port, keys)
        }
    }

    fn names() -> Names {
        Names { hosts: "/dev/null".into(), resolv_conf: "/dev/null".into() }
    }

    fn sound() -> Vec<u8> {
        let cookies: Vec<_> = (0..8).map(|n| [n; 100]).collect();
        let cookies = cookies.iter().map(|cookie| (5, &cookie[..]));
        let records: Vec<_> =
            [PROTOCOL, SIV_256, (7, &[0x2b, 0x67])].into_iter().chain(cookies).collect();
        answer(&records)
    }

    #[tokio::test]
    async fn keys_are_exchanged_and_only_proven_answers_are_taken() {
        let now = SystemTime::now();
        let (trust, port, keys) = Server::new(now).await.serve(sound());
        let (addresses, secured) =
            exchange(&names(), &trust, "127.0.0.1", port, None).await.unwrap();
        assert_eq!(addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((secured.port, secured.within), (Some(0x2b67), None));
        let [to_server, to_client] = keys.await.unwrap();

        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let bytes = &buffer[..length];
                let question = Packet::decode(bytes).unwrap();
                let field = |kind| question.fields.iter().find(|field| field.kind == kind).unwrap();
                let proof = packet::unseal(&to_server, bytes, field(AUTHENTICATOR));
                assert_eq!(proof, Some(vec![]), "the question's proof");
                let header = |ahead| {
                    let now = Timestamp::of(SystemTime::now() + Duration::from_secs(ahead));
                    Header {
                        mode: Mode::Server,
                        stratum: 1,
                        precision: -20,
                        reference_time: now,
                        origin: question.header.transmit,
                        receive: now,
                        transmit: now,
                        ..Header::question(Timestamp(0))
                    }
                };
                let unique = field(UNIQUE).value.to_vec();
                let sealed = |ahead, unique: &[u8], key| {
                    let mut bytes = header(ahead).encode().to_vec();
                    wire::push_field(&mut bytes, UNIQUE, unique);
                    packet::seal(key, &[7; 16], &mut bytes, &[]).unwrap();
                    bytes
                };
                let sound = sealed(1000, &unique, &to_client);
                let answers = [
                    header(5000).encode().to_vec(),
                    sealed(5000, &[0; 32], &to_client),
                    sealed(5000, &unique, &to_server),
                    sound[..sound.len() - 4].to_vec(),
                    sound,
                ];
                for answer in answers {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        for left in (0..8).rev() {
            let answer = ask::server(address, Some(&secured)).await.unwrap();
            let off = answer.sample.offset - 1000.0;
            assert!(off.abs() <= answer.sample.delay, "{answer:?}");
            assert_eq!(secured.association.lock().unwrap().cookies(), left);
        }
        let error = ask::server(address, Some(&secured)).await.unwrap_err();
        assert!(matches!(error, ask::Error::Keyless(_)), "{error:?}");
        serving.abort();
    }

    #[tokio::test]
    async fn servers_that_answer_amiss_give_no_keys() {
        let now = SystemTime::now();
        let whole = sound();
        for (bytes, why) in [
            (whole[..whole.len() - 4].to_vec(), "ends before it is complete"),
            (vec![], "ends before it is complete"),
            ([&[0x12, 0x34, 0xff, 0xff][..], &[0; LONGEST]].concat(), "longer than"),
            (answer(&[PROTOCOL, SIV_256]), "gave no cookie"),
            (answer(&[(0x8002, &[0, 2])]), "internal server error"),
            (answer(&[(0x8001, &[0x7f, 0xff]), SIV_256, (5, b"cookie")]), "does not offer NTPv4"),
        ] {
            let (trust, port, _) = Server::new(now).await.serve(bytes);
            let error = exchange(&names(), &trust, "127.0.0.1", port, None).await.unwrap_err();
            let text = orlop_rt::Chain(&error).to_string();
            assert!(text.contains(why), "{text}: {why}");
        }
    }

    #[tokio::test]
    async fn servers_that_are_not_who_they_should_be_give_no_keys() {
        let now = SystemTime::now();
        // Another authority's.
        let stranger = Server::new(now).await;
        let (_, port, _) = Server::new(now).await.serve(sound());
        let trust = Trust { ca: stranger.ca, roots: "/dev/null".into() };
        let error = exchange(&names(), &trust, "127.0.0.1", port, None).await.unwrap_err();
        assert!(matches!(error, Error::Connection(..)), "{error:?}");
        // Not for this name.
        let (trust, port, _) = Server::new(now).await.serve(sound());
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.1 ntp.example.org\n").unwrap();
        let named = Names { hosts, ..names() };
        let error = exchange(&named, &trust, "ntp.example.org", port, None).await.unwrap_err();
        assert!(matches!(error, Error::Connection(..)), "{error:?}");
        // Not for key exchanges.
        for protocols in [vec![], vec![b"h2".to_vec()]] {
            let mut server = Server::new(now).await;
            server.config.alpn_protocols = protocols;
            let (trust, port, _) = server.serve(sound());
            let error = exchange(&names(), &trust, "127.0.0.1", port, None).await.unwrap_err();
            assert!(matches!(error, Error::Alpn(_) | Error::Connection(..)), "{error:?}");
        }
        // Nobody is trusted.
        let trust = Trust { ca: String::new(), roots: "/dev/null".into() };
        let error = exchange(&names(), &trust, "127.0.0.1", 1, None).await.unwrap_err();
        assert!(matches!(error, Error::Trust(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_clock_that_was_never_set_judges_no_certificate_but_the_time_must_fit_it() {
        let now = SystemTime::now();
        let earliest = now - HOUR * 24 * 365;
        for (from, valid) in [(now - HOUR * 48, false), (now, true), (now + HOUR * 48, false)] {
            for trusted in [true, false] {
                let (trust, port, _) = Server::new(from).await.serve(sound());
                let result =
                    exchange(&names(), &trust, "127.0.0.1", port, (!trusted).then_some(earliest))
                        .await;
                assert_eq!(result.is_ok(), valid || !trusted, "{from:?} {trusted}: {result:?}");
                let Ok((_, secured)) = result else { continue };
                let fits = |time| secured.plausible(time);
                assert!(fits(from + HOUR / 2));
                assert_eq!(fits(from + HOUR * 4), trusted);
                assert_eq!(fits(from - HOUR * 4), trusted);
            }
        }
    }
}
