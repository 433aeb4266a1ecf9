//! TLS to servers that tell the time (RFC 8915 §9.1): whether a certificate is valid depends on a
//! clock, and that clock may be what they are asked for.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use crate::tls::provider;
use crate::{Error, certificate, encoding};

/// A client of TLS 1.3 that trusts the authorities in `ca` and shows nothing. Those of `ca` that rustls
/// cannot read are left out, because public bundles hold some.
///
/// With `earliest`, our own clock is not trusted: a certificate that it takes for expired, or for not
/// yet valid, is looked at as of a time when it is, as long as that is not all before `earliest`. The
/// caller has to hold the time he is told then against [`certificate::validity_of_der`].
///
/// # Errors
/// When no authority can be read, or rustls refuses its own defaults.
pub fn client_config(
    ca: &str,
    alpn: &[u8],
    earliest: Option<SystemTime>,
) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(encoding::certificates(ca)?).0 == 0 {
        return Err(Error::NotAuthority);
    }
    let provider = provider();
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(Error::Verifier)?;
    let verifier = Clockless { verifier, provider: Arc::clone(&provider), earliest };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// All that webpki checks, at a time that may not be that of our clock.
struct Clockless {
    verifier: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
    earliest: Option<SystemTime>,
}

impl fmt::Debug for Clockless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clockless").field("earliest", &self.earliest).finish_non_exhaustive()
    }
}

impl Clockless {
    /// When `certificate` is looked at: now, if it is valid.
    fn moment(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<UnixTime, Error> {
        let Some(earliest) = self.earliest else { return Ok(now) };
        let (from, to) = certificate::validity_of_der(certificate)?;
        // Else as of one of its ends, whichever is nearer: the chain above it was valid then, too.
        let shown = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let moment = shown.max(earliest).max(from).min(to);
        let usable = if moment < earliest { shown } else { moment };
        Ok(UnixTime::since_unix_epoch(usable.duration_since(UNIX_EPOCH).unwrap_or_default()))
    }
}

impl ServerCertVerifier for Clockless {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let at = self
            .moment(end_entity, now)
            .map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;
    use crate::tls::private_key;
    use crate::{Authority, KeyKind, Leaf, Pair, Usage};

    const DAY: Duration = Duration::from_secs(86_400);

    /// An authority of many years, and a server's certificate of ten days from `from` on.
    fn issued(from: SystemTime) -> (String, Pair) {
        let long = 20_000 * DAY;
        let began = SystemTime::now() - 10_000 * DAY;
        let authority = Authority::generate("time", KeyKind::P256, long, began).unwrap();
        let leaf = Leaf {
            common_name: "ntp".to_owned(),
            organizations: Vec::new(),
            usage: Usage::Server,
            dns: vec!["ntp.example.org".to_owned()],
            ips: Vec::new(),
            lifetime: 10 * DAY,
        };
        (authority.pair().crt.clone(), authority.issue(&leaf, from).unwrap())
    }

    fn handshake(
        ca: &str,
        pair: &Pair,
        name: &str,
        earliest: Option<SystemTime>,
    ) -> Result<(), String> {
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                encoding::certificates(&pair.crt).unwrap(),
                private_key(pair.key.expose()).unwrap(),
            )
            .unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let config = client_config(ca, b"x/1", earliest).unwrap();
        let mut client = ClientConnection::new(config, name).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().map_err(|error| error.to_string())?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    #[test]
    fn a_clock_that_is_not_trusted_makes_no_certificate_invalid() {
        let now = SystemTime::now();
        let (past, future) = (now - 100 * DAY, now + 100 * DAY);
        for (from, earliest, valid) in [
            (now, None, true),
            (now, Some(now - 200 * DAY), true),
            (past, None, false),
            (past, Some(now - 200 * DAY), true),
            // It had expired before we were built.
            (past, Some(now - 50 * DAY), false),
            (future, None, false),
            (future, Some(now - 200 * DAY), true),
        ] {
            let (ca, pair) = issued(from);
            let result = handshake(&ca, &pair, "ntp.example.org", earliest);
            assert_eq!(result.is_ok(), valid, "{from:?} {earliest:?}: {result:?}");
        }
    }

    #[test]
    fn name_and_authority_are_checked_whatever_the_time() {
        let now = SystemTime::now();
        let (ca, pair) = issued(now - 100 * DAY);
        let (other, _) = issued(now);
        let earliest = Some(now - 200 * DAY);
        assert!(handshake(&ca, &pair, "ntp.example.com", earliest).is_err());
        assert!(handshake(&other, &pair, "ntp.example.org", earliest).is_err());
        assert!(client_config("no authority", b"x/1", None).is_err());
    }
}
