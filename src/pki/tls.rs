//! rustls configurations with mutual authentication.
//!
//! TLS 1.2 and 1.3, all of ring's suites and groups (X25519 first), ALPN `h2`, no session tickets
//! and no resumption: each handshake sees the certificates that are valid now.
//!
//! [`server_config`] is the front door's. Where some calls are for everybody and some for few,
//! [`asking_server_config`] takes whatever certificate a client shows, or none, and a [`Judge`] says for
//! each call what it is worth.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ExtendedKeyPurpose,
    RootCertStore, ServerConfig, SignatureScheme,
};

use crate::{Error, certificate, encoding};

/// The one application protocol: gRPC's. Today's clients refuse a server that does not select it.
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// A server that admits clients with a certificate of one of the authorities in `ca` only.
///
/// The certificate must name clientAuth: one without any extended key usage is refused, too.
/// Certificates made by generation-v0.8 tools name serverAuth besides, and are admitted.
///
/// # Errors
/// When a PEM text cannot be read, or rustls refuses what it holds.
pub fn server_config(ca: &str, crt: &str, key: &str) -> Result<Arc<ServerConfig>, Error> {
    server_config_with(ClientAuthNamed::new(ca)?, crt, key)
}

/// A server that asks for a client certificate and takes any, or none: only that the client holds its
/// key is checked. What it is worth, a [`Judge`] must say.
///
/// # Errors
/// When a PEM text cannot be read, or rustls refuses what it holds.
pub fn asking_server_config(crt: &str, key: &str) -> Result<Arc<ServerConfig>, Error> {
    server_config_with(AnyOrNone(provider()), crt, key)
}

/// [`asking_server_config`] of a server for the world's HTTP clients: `h2` or `http/1.1`, or none named.
///
/// # Errors
/// When a PEM text cannot be read, or rustls refuses what it holds.
pub fn asking_http_server_config(crt: &str, key: &str) -> Result<Arc<ServerConfig>, Error> {
    let mut config = Arc::unwrap_or_clone(asking_server_config(crt, key)?);
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Arc::new(config))
}

fn server_config_with(
    verifier: impl ClientCertVerifier + 'static,
    crt: &str,
    key: &str,
) -> Result<Arc<ServerConfig>, Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(encoding::certificates(crt)?, private_key(key)?)
        .map_err(Error::Tls)?;
    Ok(finish_server(config))
}

/// What all our servers have in common: gRPC only, and no way around the handshake.
pub(crate) fn finish_server(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// A client that trusts the authorities in `ca` only, and shows `identity`, certificate and key in
/// PEM, to a server that asks. The server must prove the name it is dialled by.
///
/// # Errors
/// When a PEM text cannot be read, or rustls refuses what it holds.
pub fn client_config(ca: &str, identity: Option<(&str, &str)>) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca)?, Arc::clone(&provider))
        .build()
        .map_err(Error::Verifier)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_webpki_verifier(verifier);
    let mut config = match identity {
        Some((crt, key)) => builder
            .with_client_auth_cert(encoding::certificates(crt)?, private_key(key)?)
            .map_err(Error::Tls)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A client of a public service: it trusts every authority in `ca` that can be read, of which a
/// distribution has some that no webpki takes, shows nothing of itself, and speaks one of `protocols`
/// (ALPN), or any where there are none.
///
/// # Errors
/// When `ca` is no PEM, or holds no authority that can be taken.
pub fn public_client_config(ca: &str, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(encoding::certificates(ca)?);
    if taken == 0 {
        return Err(Error::Absent { what: "certificate" });
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(8);
    Ok(Arc::new(config))
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    for certificate in encoding::certificates(ca)? {
        store.add(certificate).map_err(Error::Tls)?;
    }
    Ok(Arc::new(store))
}

pub(crate) fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    Ok(PrivateKeyDer::Pkcs8(encoding::private_key(pem)?))
}

/// Says whether a certificate that a client has shown is one of the authorities' and for clients.
#[derive(Debug)]
pub struct Judge(ClientAuthNamed);

impl Judge {
    /// Trusts the authorities in `ca` only.
    ///
    /// # Errors
    /// When the PEM text cannot be read, or rustls refuses what it holds.
    pub fn new(ca: &str) -> Result<Self, Error> {
        ClientAuthNamed::new(ca).map(Self)
    }

    /// Whether the first of `shown` chains to an authority at `now`, and names clientAuth.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, shown: &[CertificateDer<'_>], now: SystemTime) -> Result<(), Error> {
        let (first, others) =
            shown.split_first().ok_or(Error::Tls(rustls::Error::NoCertificatesPresented))?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since);
        self.0.verify_client_cert(first, others, now).map(drop).map_err(Error::Tls)
    }
}

/// Takes any certificate, or none, whose owner holds its key.
#[derive(Debug)]
struct AnyOrNone(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyOrNone {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// webpki's verification, and clientAuth must be named: webpki takes the absence of any extended
/// key usage for permission (RFC 5280 §4.2.1.12), which is too kind for a door this important.
#[derive(Debug)]
struct ClientAuthNamed(Arc<dyn ClientCertVerifier>);

impl ClientAuthNamed {
    fn new(ca: &str) -> Result<Self, Error> {
        WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider())
            .build()
            .map(Self)
            .map_err(Error::Verifier)
    }
}

impl ClientCertVerifier for ClientAuthNamed {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        let decoded = certificate::decode(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        match decoded.extended_key_usage() {
            Ok(Some(usage)) if usage.value.client_auth => Ok(verified),
            _ => Err(CertificateError::InvalidPurposeContext {
                required: ExtendedKeyPurpose::ClientAuth,
                presented: Vec::new(),
            }
            .into()),
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::{Authority, KeyKind, Leaf, Pair, Usage};

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        Authority::generate("talos", KeyKind::Ed25519, 24 * HOUR, SystemTime::now()).unwrap()
    }

    fn issue(authority: &Authority, usage: Usage) -> Pair {
        let leaf = Leaf {
            common_name: "node-1".to_owned(),
            organizations: vec!["os:admin".to_owned()],
            usage,
            dns: vec!["node-1".to_owned()],
            ips: vec!["10.0.0.7".parse().unwrap()],
            lifetime: HOUR,
        };
        authority.issue(&leaf, SystemTime::now()).unwrap()
    }

    fn server(authority: &Authority) -> Arc<ServerConfig> {
        let pair = issue(authority, Usage::Server);
        server_config(&authority.pair().crt, &pair.crt, pair.key.expose()).unwrap()
    }

    fn client(trusts: &Authority, shows: Option<&Pair>) -> Arc<ClientConfig> {
        let identity = shows.map(|pair| (pair.crt.as_str(), pair.key.expose()));
        client_config(&trusts.pair().crt, identity).unwrap()
    }

    /// Shakes hands in memory; the server's view of the client's organizations, or what stopped it.
    fn handshake(
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: &str,
    ) -> Result<(Vec<String>, Option<Vec<u8>>), rustls::Error> {
        let (server, client) = shake(server, client, name)?;
        let peer = server.peer_certificates().unwrap()[0].clone();
        let alpn = client.alpn_protocol().map(<[u8]>::to_vec);
        Ok((certificate::organizations(&peer).unwrap(), alpn))
    }

    fn shake(
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: &str,
    ) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
        let mut server = ServerConnection::new(server).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(client, name).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok((server, client))
    }

    #[test]
    fn the_right_client_is_let_in_by_address_and_by_name() {
        let authority = authority();
        let admin = issue(&authority, Usage::Client);
        for name in ["10.0.0.7", "node-1"] {
            let peer = handshake(server(&authority), client(&authority, Some(&admin)), name);
            assert_eq!(peer, Ok((vec!["os:admin".to_owned()], Some(b"h2".to_vec()))));
        }
    }

    #[test]
    fn no_certificate_is_refused() {
        let authority = authority();
        let refused = handshake(server(&authority), client(&authority, None), "node-1");
        assert_eq!(refused, Err(rustls::Error::NoCertificatesPresented));
    }

    #[test]
    fn a_certificate_of_another_authority_is_refused() {
        let (ours, foreign) = (authority(), authority());
        let admin = issue(&foreign, Usage::Client);
        let refused = handshake(server(&ours), client(&ours, Some(&admin)), "node-1");
        assert!(matches!(refused, Err(rustls::Error::InvalidCertificate(_))), "{refused:?}");
    }

    #[test]
    fn a_servers_certificate_is_no_clients() {
        let authority = authority();
        let pair = issue(&authority, Usage::Server);
        let refused = handshake(server(&authority), client(&authority, Some(&pair)), "node-1");
        assert!(matches!(refused, Err(rustls::Error::InvalidCertificate(_))), "{refused:?}");
    }

    #[test]
    fn a_certificate_that_names_no_usage_is_refused() {
        let authority = authority();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let root = authority.pair();
        let root_key = encoding::private_key(root.key.expose()).unwrap();
        let root_key = rcgen::KeyPair::try_from(&root_key).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&root.crt, root_key).unwrap();
        let crt = rcgen::CertificateParams::default().signed_by(&key, &issuer).unwrap().pem();
        let pair = Pair { crt, key: encoding::key_to_pem(&key) };
        let refused = handshake(server(&authority), client(&authority, Some(&pair)), "node-1");
        assert!(matches!(refused, Err(rustls::Error::InvalidCertificate(_))), "{refused:?}");
    }

    #[test]
    fn an_expired_certificate_is_refused() {
        let authority = authority();
        let leaf = Leaf {
            common_name: "late".to_owned(),
            organizations: Vec::new(),
            usage: Usage::Client,
            dns: Vec::new(),
            ips: Vec::new(),
            lifetime: HOUR,
        };
        let pair = authority.issue(&leaf, SystemTime::now() - 2 * HOUR).unwrap();
        let refused = handshake(server(&authority), client(&authority, Some(&pair)), "node-1");
        assert!(matches!(refused, Err(rustls::Error::InvalidCertificate(_))), "{refused:?}");
    }

    #[test]
    fn the_server_must_prove_the_name_it_is_dialled_by() {
        let authority = authority();
        let admin = issue(&authority, Usage::Client);
        let refused = handshake(server(&authority), client(&authority, Some(&admin)), "10.0.0.8");
        assert!(matches!(refused, Err(rustls::Error::InvalidCertificate(_))), "{refused:?}");
    }

    #[test]
    fn several_authorities_are_accepted_at_once() {
        let (old, new) = (authority(), authority());
        let both = format!("{}{}", old.pair().crt, new.pair().crt);
        let pair = issue(&new, Usage::Server);
        let server = server_config(&both, &pair.crt, pair.key.expose()).unwrap();
        for authority in [&old, &new] {
            let admin = issue(authority, Usage::Client);
            handshake(Arc::clone(&server), client(&new, Some(&admin)), "node-1").unwrap();
        }
    }

    #[test]
    fn a_server_that_asks_takes_any_certificate_or_none_and_the_judge_decides() {
        let (ours, foreign) = (authority(), authority());
        let pair = issue(&ours, Usage::Server);
        let asking = asking_server_config(&pair.crt, pair.key.expose()).unwrap();
        let judge = Judge::new(&ours.pair().crt).unwrap();
        for (shown, admitted) in [
            (None, false),
            (Some(issue(&ours, Usage::Client)), true),
            (Some(issue(&ours, Usage::Server)), false),
            (Some(issue(&foreign, Usage::Client)), false),
        ] {
            shake(Arc::clone(&asking), client(&ours, shown.as_ref()), "node-1").unwrap();
            let shown = shown.map(|pair| encoding::certificates(&pair.crt).unwrap());
            let shown = shown.unwrap_or_default();
            assert_eq!(judge.admits(&shown, SystemTime::now()).is_ok(), admitted);
            judge.admits(&shown, SystemTime::now() + 2 * HOUR).unwrap_err();
        }
    }

    #[test]
    fn a_generation_8_client_with_one_suite_and_one_group_is_served() {
        let authority = authority();
        let admin = issue(&authority, Usage::Client);
        let provider = CryptoProvider {
            cipher_suites: vec![
                rustls::crypto::ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            ],
            kx_groups: vec![rustls::crypto::ring::kx_group::X25519],
            ..rustls::crypto::ring::default_provider()
        };
        let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots(&authority.pair().crt).unwrap())
            .with_client_auth_cert(
                encoding::certificates(&admin.crt).unwrap(),
                private_key(admin.key.expose()).unwrap(),
            )
            .unwrap();
        client.alpn_protocols = vec![ALPN_H2.to_vec()];
        handshake(server(&authority), Arc::new(client), "node-1").unwrap();
    }
}
