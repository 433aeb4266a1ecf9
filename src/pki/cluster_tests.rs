#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use proptest::prelude::*;
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::{KeyKind, Leaf, tls};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn authority() -> ClusterAuthority {
    ClusterAuthority::generate(CLUSTER_CA, now()).unwrap()
}

/// A node's key, id and certificate.
fn node(authority: &ClusterAuthority) -> (RawKey, String, Vec<u8>) {
    let key = RawKey::generate().unwrap();
    let id = node_id(&key.public());
    let der = authority.issue(&Profile::node(&id), &key.public(), None, now()).unwrap();
    (key, id, der)
}

#[test]
fn a_key_is_the_same_in_all_its_forms() {
    let key = RawKey::generate().unwrap();
    assert_eq!(RawKey::from_bytes(key.bytes()).unwrap(), key);
    let raw = key.to_raw_pem("METROPOLIS INITIAL OWNER PRIVATE KEY");
    for text in [key.to_pem(), key.to_plain_pem(), raw] {
        assert_eq!(RawKey::from_pem(text.expose()).unwrap(), key);
    }
    // With the public half behind it, as ring writes it (RFC 5958, version 2).
    let ring = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let text = encoding::encode(&Pem::new("PRIVATE KEY", ring.as_ref()));
    RawKey::from_pem(&text).unwrap();
    assert_eq!(format!("{key:?}"), "[redacted]");
}

#[test]
fn what_is_no_key_is_refused_with_why() {
    let refused = |bytes: &[u8]| RawKey::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(refused(&[0; 63]), "read signing key: it has 63 bytes instead of 64");
    let mut bytes = *RawKey::generate().unwrap().bytes();
    bytes[63] ^= 1;
    assert!(refused(&bytes).contains("second half is not the public key"));
    let p256 = crate::signature::SigningKey::generate().unwrap();
    let error = RawKey::from_pem(p256.expose()).unwrap_err().to_string();
    assert!(error.contains("no Ed25519 key"), "{error}");
    assert!(matches!(RawKey::from_pem(""), Err(Error::Absent { .. })));
}

#[test]
fn certificates_have_the_profile_other_clients_check() {
    let authority = authority();
    let (key, id, der) = node(&authority);
    let user = authority.issue(&Profile::user("owner"), &key.public(), None, now()).unwrap();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    for (der, ca) in [(&authority.der().to_vec(), true), (&der, false), (&user, false)] {
        let decoded = certificate::decode(der).unwrap();
        let constraints = decoded.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca == ca);
        assert_eq!(system_time(decoded.validity().not_before.timestamp()), now());
        assert_eq!(system_time(decoded.validity().not_after.timestamp()), end);
        assert!(decoded.raw_serial().len() <= 16 && decoded.raw_serial()[0] < 0x80);
        let usage = decoded.key_usage().unwrap().unwrap().value;
        assert_eq!(
            (usage.digital_signature(), usage.key_cert_sign(), usage.crl_sign()),
            (true, ca, ca)
        );
        assert_eq!(usage.key_encipherment(), !ca);
        let others = decoded.extended_key_usage().unwrap().unwrap().value;
        assert_eq!(others.server_auth, ca || der != &user);
        assert_eq!(others.client_auth, ca || der == &user);
        let oids: Vec<_> = decoded.extensions().iter().map(|one| one.oid.to_id_string()).collect();
        assert!(oids.contains(&"2.5.29.14".to_owned()), "its own key's identifier: {oids:?}");
        assert_eq!(oids.contains(&"2.5.29.35".to_owned()), !ca, "the issuer's: {oids:?}");
        assert!(Shown::read(der).unwrap().is_signed_by(authority.der()));
    }
    let (node, user) = (Shown::read(&der).unwrap(), Shown::read(&user).unwrap());
    assert_eq!((node.node(), node.dns.len()), (Some(&*id), 1));
    assert_eq!((user.node(), &*user.common_name, user.dns.len()), (None, "owner", 0));
    assert_eq!(user.self_signed_key(), None);
    let again = ClusterAuthority::from_der(authority.der(), authority.key().clone()).unwrap();
    let (.., der) = self::node(&again);
    assert!(Shown::read(&der).unwrap().is_signed_by(authority.der()));
}

#[test]
fn an_ephemeral_certificate_says_nothing_but_its_key() {
    let key = RawKey::generate().unwrap();
    let der = ephemeral(&key, now()).unwrap();
    let shown = Shown::read(&der).unwrap();
    assert_eq!(shown.self_signed_key(), Some(key.public()));
    assert_eq!((&*shown.common_name, &*shown.serial), ("", &[1][..]));
    let decoded = certificate::decode(&der).unwrap();
    assert_eq!(decoded.subject().iter().count() + decoded.issuer().iter().count(), 0);
    // Nobody can show a key he does not hold: the signature does not fit.
    let mut forged = der.to_vec();
    let at = forged.windows(32).position(|window| window == key.public()).unwrap();
    forged[at] ^= 1;
    assert_eq!(Shown::read(&forged).unwrap().self_signed_key(), None);
}

#[test]
fn what_was_revoked_is_on_the_list_and_only_the_authority_writes_it() {
    let authority = authority();
    let (.., der) = node(&authority);
    let serial = Shown::read(&der).unwrap().serial;
    let mut revoked = Revoked::new();
    let empty = authority.revocation_list(&revoked, now()).unwrap();
    assert_eq!(super::revoked(&empty, authority.der()).unwrap(), revoked);
    revoked.insert(serial, now() - DAY);
    let list = authority.revocation_list(&revoked, now()).unwrap();
    assert_eq!(super::revoked(&list, authority.der()).unwrap(), revoked);
    assert!(matches!(super::revoked(&list, self::authority().der()), Err(Error::Foreign)));
}

fn shake(
    server: &Arc<rustls::ServerConfig>,
    client: Arc<ClientConfig>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    // Clients send a name, an address, or an id.
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
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
    Ok(server.peer_certificates().unwrap_or_default().to_vec())
}

#[test]
fn a_curator_is_told_by_its_authority_and_id_whatever_the_time() {
    let authority = authority();
    // Made by a clock that is ten years ahead.
    let key = RawKey::generate().unwrap();
    let id = node_id(&key.public());
    let later = SystemTime::now() + 3650 * DAY;
    let der = authority.issue(&Profile::node(&id), &key.public(), None, later).unwrap();
    let pem = |der: &[u8]| encoding::certificate_to_pem(der);
    let server = tls::asking_server_config(&pem(&der), key.to_pem().expose()).unwrap();

    let own = RawKey::generate().unwrap();
    let shown = ephemeral(&own, SystemTime::UNIX_EPOCH).unwrap();
    let client = |node| client_config(authority.der(), Some((&shown, &own)), node).unwrap();
    assert_eq!(shake(&server, client(None)).unwrap(), std::slice::from_ref(&shown));
    assert_eq!(shake(&server, client(Some(&id))).unwrap(), std::slice::from_ref(&shown));
    let refused = shake(&server, client(Some("metropolis-0"))).unwrap_err();
    assert!(refused.contains(&id), "{refused}");
    let foreign = client_config(self::authority().der(), None, None).unwrap();
    assert!(shake(&server, foreign).unwrap_err().contains("UnknownIssuer"));
    assert_eq!(shake(&server, trusting_client_config(None).unwrap()).unwrap(), []);

    // A user is no curator, nor is a node under another's id.
    let user = authority.issue(&Profile::user("owner"), &key.public(), None, now()).unwrap();
    let (_, another, _) = node(&authority);
    let alias = authority.issue(&Profile::node(&another), &key.public(), None, now()).unwrap();
    for der in [user, alias] {
        let server = tls::asking_server_config(&pem(&der), key.to_pem().expose()).unwrap();
        let refused = shake(&server, client(None)).unwrap_err();
        assert!(refused.contains("no node's certificate"), "{refused}");
    }
}

#[test]
fn only_an_authority_with_the_right_key_can_be_pinned() {
    let authority = authority();
    let (key, _, der) = node(&authority);
    assert!(matches!(client_config(&der, None, None), Err(Error::NotAuthority)));
    assert!(matches!(ClusterAuthority::from_der(authority.der(), key), Err(Error::Mismatch)));
    let p256 = crate::Authority::generate("x", KeyKind::P256, DAY, now()).unwrap();
    let der = encoding::certificates(&p256.pair().crt).unwrap();
    assert!(authority_key(&der[0]).unwrap_err().to_string().contains("not Ed25519"));
    let leaf = Leaf {
        common_name: "x".to_owned(),
        organizations: Vec::new(),
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: DAY,
    };
    let leaf = encoding::certificates(&p256.issue(&leaf, now()).unwrap().crt).unwrap();
    assert_eq!(Shown::read(&leaf[0]).unwrap().public_key, None);
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Shown::read(&bytes);
        let _ = revoked(&bytes, &bytes);
        let _ = RawKey::from_bytes(&bytes);
        let _ = RawKey::from_pem(&encoding::encode(&Pem::new("PRIVATE KEY", bytes)));
    }
}
