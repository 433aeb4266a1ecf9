//! TLS between strangers: a node without a configuration knows no authority, and nobody knows it.
//!
//! The server asks for no certificate. The client takes any, or only the one whose public key has the
//! fingerprint an operator has read off the node's console.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

use crate::tls::{finish_server, private_key, provider};
use crate::{Error, certificate, encoding};

/// A server that admits anybody.
///
/// # Errors
/// When a PEM text cannot be read, or rustls refuses what it holds.
pub fn server_config(crt: &str, key: &str) -> Result<Arc<ServerConfig>, Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_single_cert(encoding::certificates(crt)?, private_key(key)?)
        .map_err(Error::Tls)?;
    Ok(finish_server(config))
}

/// A client that shows nothing, and speaks to the server whose certificate's public key has this
/// fingerprint ([`crate::fingerprint`]); without one, to any.
///
/// # Errors
/// When rustls refuses its own defaults.
pub fn client_config(fingerprint: Option<String>) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = Pin { fingerprint, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![crate::tls::ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Compares the public key, and nothing else: name, dates and issuer say nothing among strangers.
struct Pin {
    fingerprint: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(wanted) = &self.fingerprint else { return Ok(ServerCertVerified::assertion()) };
        let decoded = certificate::decode(end_entity)
            .map_err(|_| rustls::Error::from(rustls::CertificateError::BadEncoding))?;
        let found = certificate::fingerprint_of(&decoded);
        if found == *wanted {
            return Ok(ServerCertVerified::assertion());
        }
        // The one kind of error whose text is passed on as it is.
        let told = format!("the node's key has the fingerprint {found}, not {wanted}");
        Err(rustls::Error::General(told))
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
    use std::time::{Duration, SystemTime};

    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::{Authority, KeyKind, Leaf, Pair, Usage};

    fn throw_away() -> Pair {
        let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
        let authority = Authority::generate("maintenance", KeyKind::Ed25519, hour, now).unwrap();
        let leaf = Leaf {
            common_name: "node".to_owned(),
            organizations: Vec::new(),
            usage: Usage::Server,
            dns: Vec::new(),
            ips: Vec::new(),
            lifetime: hour,
        };
        authority.issue(&leaf, now).unwrap()
    }

    fn handshake(pair: &Pair, fingerprint: Option<String>) -> Result<(), String> {
        let server = server_config(&pair.crt, pair.key.expose()).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let mut client = ClientConnection::new(client_config(fingerprint).unwrap(), name).unwrap();
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
        assert!(server.peer_certificates().is_none());
        Ok(())
    }

    #[test]
    fn any_node_will_do_unless_one_key_is_meant() {
        let (meant, other) = (throw_away(), throw_away());
        let fingerprint = crate::fingerprint(&meant.crt).unwrap();
        assert_eq!(handshake(&meant, None), Ok(()));
        assert_eq!(handshake(&meant, Some(fingerprint.clone())), Ok(()));
        let found = crate::fingerprint(&other.crt).unwrap();
        let refused = handshake(&other, Some(fingerprint.clone())).unwrap_err();
        assert!(refused.contains(&found) && refused.contains(&fingerprint), "{refused}");
    }
}
