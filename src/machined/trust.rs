//! A certificate for apid from trustd: what a node does that holds no authority's key (spec §4.4).
//!
//! trustd's answer comes from the network, so PID 1 lets a child ask ([`main`]), under apid's user, and
//! reads what the child says. The key is new for each request. trustd is verified with the authorities of
//! the configuration; a node without any believes the first who answers, and from then on the authorities
//! it was told then.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use orlop_pki::{Secret, certificate, encoding, request, stranger, tls};
use orlop_proto::security::CertificateRequest;
use orlop_proto::security::security_service_client::SecurityServiceClient;
use orlop_rt::{Chain, Exit};
use orlop_supervise::Reaper;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tonic::metadata::MetadataValue;

use crate::Error;
use crate::child;
use crate::services::{APID_UID, BINARY};

/// Where every trustd listens.
pub(crate) const PORT: u16 = 50_001;
/// How long one trustd may take.
const ASK_LIMIT: Duration = Duration::from_secs(20);
/// How long the child may take, whatever it waits for.
const CHILD_LIMIT: Duration = Duration::from_secs(70);

/// What the child is told.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Wish {
    /// The hosts where trustd may be, tried in this order,
    pub(crate) hosts: Vec<String>,
    /// at this port.
    pub(crate) port: u16,
    pub(crate) token: Secret,
    /// Whom to believe, PEM; empty means the first who answers.
    pub(crate) ca: String,
    pub(crate) common_name: String,
    pub(crate) dns: Vec<String>,
    pub(crate) ips: Vec<IpAddr>,
}

/// What the child has been given.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Answer {
    /// Who gave it.
    pub(crate) host: String,
    /// The authorities trustd's cluster accepts, PEM.
    pub(crate) ca: String,
    pub(crate) crt: String,
    pub(crate) key: Secret,
    pub(crate) fingerprint: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// Names and addresses that were asked for in vain.
    pub(crate) refused: Vec<String>,
}

impl Wish {
    /// A wish for these names, at the usual port.
    pub(crate) fn new(hosts: Vec<String>, token: Secret, ca: String) -> Self {
        let (common_name, dns, ips) = <(String, Vec<_>, Vec<_>)>::default();
        Self { hosts, port: PORT, token, ca, common_name, dns, ips }
    }
}

/// Lets a child ask.
pub(crate) async fn obtain(reaper: &Reaper, wish: &Wish) -> Result<Answer, Error> {
    let mut program = Command::new(BINARY);
    program.args(["machined", "certify"]);
    let asked = child::ask(reaper, program, APID_UID, wish, CHILD_LIMIT).await;
    asked.map_err(|error| match error {
        child::Error::Run(source) => {
            Error::System { operation: "run the child that asks trustd", source }
        }
        child::Error::Failed(_) | child::Error::Late(_) => Error::Trust(error.to_string()),
    })
}

/// Runs as the child: a wish on standard input, the answer on standard output.
pub(crate) fn main() -> ExitCode {
    match certify() {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            eprintln!("{}", Chain(&error));
            Exit::Failed.into()
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0} of the certificate request")]
    Own(&'static str, #[source] io::Error),
    #[error("make a certificate request")]
    Request(#[source] orlop_pki::Error),
    #[error("use machine.ca.crt")]
    Authority(#[source] orlop_pki::Error),
    #[error("machine.token is no line of plain text")]
    Token,
    #[error("{0}")]
    Refused(String),
    #[error("trustd at {host} gave a certificate that is no good")]
    Unusable { host: String, source: orlop_pki::Error },
    #[error("nobody to ask: set cluster.controlPlane.endpoint")]
    Nobody,
}

fn certify() -> Result<(), AskError> {
    let wish = serde_json::from_reader(io::stdin())
        .map_err(|error| AskError::Own("read the terms", error.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| AskError::Own("start the runtime", error))?;
    let answer = runtime.block_on(ask(&wish))?;
    let write = || {
        serde_json::to_writer(io::stdout(), &answer)?;
        io::stdout().flush()
    };
    write().map_err(|error| AskError::Own("write the result", error))
}

/// Asks one after the other, until one gives a certificate. The last failure is told.
async fn ask(wish: &Wish) -> Result<Answer, AskError> {
    let mut last = AskError::Nobody;
    for host in &wish.hosts {
        match ask_one(wish, host).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_one(wish: &Wish, host: &str) -> Result<Answer, AskError> {
    let (csr, key) =
        request::make(&wish.common_name, &wish.dns, &wish.ips).map_err(AskError::Request)?;
    let config = match wish.ca.as_str() {
        "" => stranger::client_config(None),
        ca => tls::client_config(ca, None),
    };
    let channel = orlop_rpc::tls::channel(host, wish.port, config.map_err(AskError::Authority)?);
    let mut request = tonic::Request::new(CertificateRequest { csr: csr.into_bytes() });
    let mut token: MetadataValue<_> = wish.token.expose().parse().map_err(|_| AskError::Token)?;
    token.set_sensitive(true);
    request.metadata_mut().insert("token", token);
    let mut client = SecurityServiceClient::new(channel);
    let refused = |why: &str| AskError::Refused(format!("trustd at {host}: {why}"));
    let answer = timeout(ASK_LIMIT, client.certificate(request))
        .await
        .map_err(|_| refused(&format!("no answer within {} s", ASK_LIMIT.as_secs())))?
        .map_err(|status| refused(status.message()))?
        .into_inner();
    let (Ok(ca), Ok(crt)) = (String::from_utf8(answer.ca), String::from_utf8(answer.crt)) else {
        return Err(refused("its answer is no text"));
    };
    check(wish, host, ca, crt, key)
        .map_err(|source| AskError::Unusable { host: host.to_owned(), source })
}

/// Whether what trustd gave is good for apid.
fn check(
    wish: &Wish,
    host: &str,
    ca: String,
    crt: String,
    key: Secret,
) -> Result<Answer, orlop_pki::Error> {
    certificate::check_issuer(&crt, &ca)?;
    // The key belongs to it, too.
    tls::server_config(&ca, &crt, key.expose())?;
    let (dns, ips) = certificate::names(&crt)?;
    let refused = wish.dns.iter().filter(|name| !dns.contains(name)).cloned();
    let refused_ips = wish.ips.iter().filter(|ip| !ips.contains(ip)).map(IpAddr::to_string);
    let (not_before, not_after) = certificate::validity(&crt)?;
    Ok(Answer {
        host: host.to_owned(),
        fingerprint: orlop_pki::fingerprint(&crt)?,
        refused: refused.chain(refused_ips).collect(),
        ca,
        crt,
        key,
        not_before,
        not_after,
    })
}

/// The certificates of several PEM texts, each once.
pub(crate) fn join(texts: &[&str]) -> Result<String, orlop_pki::Error> {
    let mut all = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        for certificate in encoding::certificates(text)? {
            if !all.contains(&certificate) {
                all.push(certificate);
            }
        }
    }
    Ok(all.iter().map(|der| encoding::certificate_to_pem(der)).collect())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::Arc;

    use orlop_pki::{Authority, KeyKind, Leaf, Request, Usage};
    use orlop_proto::security::CertificateResponse;
    use orlop_proto::security::security_service_server::{SecurityService, SecurityServiceServer};
    use orlop_rpc::tls::{incoming, listen};
    use tokio::sync::watch;
    use tokio::task::JoinSet;
    use tonic::{Response, Status};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        Authority::generate("talos", KeyKind::Ed25519, 100 * HOUR, SystemTime::now()).unwrap()
    }

    /// A trustd with manners of its own.
    struct Fake {
        authority: Authority,
        /// Whom it says its certificates are from.
        ca: String,
        /// Signs another key than the one it was asked to.
        cheats: bool,
    }

    #[tonic::async_trait]
    impl SecurityService for Fake {
        async fn certificate(
            &self,
            request: tonic::Request<CertificateRequest>,
        ) -> Result<Response<CertificateResponse>, Status> {
            if request.metadata().get("token").unwrap() != "abcdef.0123456789abcdef" {
                return Err(Status::unauthenticated("invalid token"));
            }
            let mut csr = Request::from_pem(&request.into_inner().csr).unwrap();
            if self.cheats {
                let (other, _) = request::make("other", &[], &[]).unwrap();
                csr = Request::from_pem(other.as_bytes()).unwrap();
            }
            let leaf = Leaf {
                common_name: csr.common_name.clone(),
                organizations: Vec::new(),
                usage: Usage::Server,
                dns: csr.dns.clone(),
                ips: csr.ips.iter().copied().filter(IpAddr::is_loopback).collect(),
                lifetime: 24 * HOUR,
            };
            let crt = self.authority.certify(&leaf, &csr, SystemTime::now()).unwrap();
            Ok(Response::new(CertificateResponse { ca: self.ca.clone().into(), crt: crt.into() }))
        }
    }

    async fn serve(fake: Fake) -> (u16, JoinSet<()>) {
        let leaf = Leaf {
            common_name: "control-1".to_owned(),
            organizations: Vec::new(),
            usage: Usage::Server,
            dns: Vec::new(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            lifetime: HOUR,
        };
        let own = fake.authority.issue(&leaf, SystemTime::now()).unwrap();
        let config = stranger::server_config(&own.crt, own.key.expose()).unwrap();
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (_config, configs) = watch::channel(Arc::clone(&config));
            let service = SecurityServiceServer::new(fake);
            orlop_rpc::server()
                .serve_with_incoming(service, incoming(listener, configs, Arc::default()))
                .await
                .unwrap();
        });
        (port, tasks)
    }

    fn wish(port: u16, ca: &str) -> Wish {
        let token = Secret::new("abcdef.0123456789abcdef");
        Wish {
            port,
            common_name: "node-1".to_owned(),
            dns: vec!["node-1".to_owned()],
            ips: vec!["127.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap()],
            ..Wish::new(vec!["127.0.0.1".to_owned()], token, ca.to_owned())
        }
    }

    fn why(error: &AskError) -> String {
        Chain(error).to_string()
    }

    #[tokio::test]
    async fn a_certificate_is_given_checked_and_told() {
        let authority = authority();
        let ca = authority.pair().crt.clone();
        let (port, _tasks) = serve(Fake { authority, ca: ca.clone(), cheats: false }).await;
        // With the authority of the configuration, and without any.
        for known in [ca.as_str(), ""] {
            let answer = ask(&wish(port, known)).await.unwrap();
            assert_eq!((&answer.ca, answer.host.as_str()), (&ca, "127.0.0.1"));
            assert_eq!(answer.refused, ["10.0.0.9"]);
            tls::server_config(&answer.ca, &answer.crt, answer.key.expose()).unwrap();
            let life = answer.not_after.duration_since(answer.not_before).unwrap();
            assert_eq!(life, 25 * HOUR);
            let again: Answer =
                serde_json::from_str(&serde_json::to_string(&answer).unwrap()).unwrap();
            assert_eq!((again.not_after, again.key), (answer.not_after, answer.key));
        }
    }

    #[tokio::test]
    async fn each_request_has_a_key_of_its_own() {
        let authority = authority();
        let ca = authority.pair().crt.clone();
        let (port, _tasks) = serve(Fake { authority, ca: ca.clone(), cheats: false }).await;
        let one = ask(&wish(port, &ca)).await.unwrap();
        let other = ask(&wish(port, &ca)).await.unwrap();
        assert_ne!((one.fingerprint, one.key), (other.fingerprint, other.key));
    }

    #[tokio::test]
    async fn a_stranger_gets_no_token_once_the_authority_is_known() {
        let foreign = authority();
        let ca = foreign.pair().crt.clone();
        let (port, _tasks) = serve(Fake { authority: foreign, ca, cheats: false }).await;
        let error = ask(&wish(port, &authority().pair().crt)).await.unwrap_err();
        assert!(why(&error).contains("invalid peer certificate"), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_for_another_key_or_of_another_authority_is_no_good() {
        let (ours, foreign) = (authority(), authority());
        let ca = ours.pair().crt.clone();
        let (port, _tasks) = serve(Fake { authority: ours, ca, cheats: true }).await;
        let error = ask(&wish(port, "")).await.unwrap_err();
        assert!(matches!(error, AskError::Unusable { .. }), "{}", why(&error));
        let ca = authority().pair().crt.clone();
        let (port, _tasks) = serve(Fake { authority: foreign, ca, cheats: false }).await;
        let error = ask(&wish(port, "")).await.unwrap_err();
        assert!(why(&error).ends_with("not signed by any of the authorities given"));
    }

    #[tokio::test]
    async fn hosts_are_tried_in_turn_and_the_last_failure_is_told() {
        let authority = authority();
        let ca = authority.pair().crt.clone();
        let (port, _tasks) = serve(Fake { authority, ca: ca.clone(), cheats: false }).await;
        let mut wish = wish(port, &ca);
        wish.hosts.insert(0, "no host".to_owned());
        assert_eq!(ask(&wish).await.unwrap().host, "127.0.0.1");
        wish.token = Secret::new("wrong");
        let error = ask(&wish).await.unwrap_err();
        assert_eq!(why(&error), "trustd at 127.0.0.1: invalid token");
        wish.hosts.clear();
        let error = ask(&wish).await.unwrap_err();
        assert_eq!(why(&error), "nobody to ask: set cluster.controlPlane.endpoint");
    }

    #[test]
    fn authorities_are_joined_without_repeating_any() {
        let (one, other) = (authority().pair().crt.clone(), authority().pair().crt.clone());
        let both = join(&[&one, "", &format!("{other}{one}")]).unwrap();
        assert_eq!(both, format!("{one}{other}"));
        assert_eq!(join(&["", ""]).unwrap(), "");
        join(&["garbage"]).unwrap_err();
    }
}
