//! `GenerateClientConfiguration`: a new client of the cluster, from its authority.

use std::time::{Duration, SystemTime};

use orlop_config::CertificateAndKey;
use orlop_config::client::{Configuration, Context};
use orlop_pki::{Authority, Leaf, Usage};
use orlop_proto::machine::{GenerateClientConfiguration, GenerateClientConfigurationRequest};
use tonic::Status;

/// A year: what a certificate lasts when nobody says (spec §3.2).
const LIFETIME: Duration = Duration::from_secs(8760 * 3600);

/// Issues a certificate with the roles that are asked for, and makes a client configuration of it. The
/// endpoints are left to the caller, who knows from where the nodes will be reached. `ca` and `cluster`
/// are the machine's authority and the cluster's name.
///
/// # Errors
/// `FailedPrecondition` on a node without the authority's key; `InvalidArgument` for what makes no
/// certificate.
pub(super) fn generate(
    ca: Option<&CertificateAndKey>,
    cluster: Option<&str>,
    request: GenerateClientConfigurationRequest,
    now: SystemTime,
) -> Result<GenerateClientConfiguration, Status> {
    let GenerateClientConfigurationRequest { roles, crt_ttl } = request;
    if roles.is_empty() || roles.iter().any(|role| role.trim().is_empty()) {
        return Err(Status::invalid_argument(
            "name the roles the client shall have, such as os:reader",
        ));
    }
    let lifetime = match crt_ttl.map(Duration::try_from) {
        None | Some(Ok(Duration::ZERO)) => LIFETIME,
        Some(Ok(lifetime)) => lifetime,
        Some(Err(_)) => {
            return Err(Status::invalid_argument("a certificate cannot last less than no time"));
        }
    };
    let Some((ca, key)) = ca.and_then(|pair| Some((&pair.crt, pair.key.as_ref()?))) else {
        return Err(Status::failed_precondition(
            "client configuration (talosconfig) can't be generated on worker nodes: they have no \
             key of the authority; ask a control plane node",
        ));
    };
    let refused = |error: orlop_pki::Error| {
        Status::unknown(format!("issue a client certificate: {}", orlop_rt::Chain(&error)))
    };
    let leaf = Leaf {
        common_name: String::new(),
        organizations: roles.clone(),
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime,
    };
    let pair = Authority::from_pem(ca, key.expose())
        .and_then(|authority| authority.issue(&leaf, now))
        .map_err(refused)?;
    let cluster = cluster.unwrap_or_default().to_owned();
    let name = match &roles[..] {
        [role] => format!("{role}@{cluster}"),
        _ => cluster,
    };
    let key = pair.key.expose().as_bytes().to_vec();
    let crt = pair.crt.clone().into_bytes();
    let context = Context {
        endpoints: Vec::new(),
        nodes: Vec::new(),
        ca: ca.clone(),
        crt: pair.crt,
        key: pair.key,
    };
    let contexts = [(name.clone(), context)].into();
    let talosconfig = Configuration { context: name, contexts }.to_yaml().into_bytes();
    Ok(GenerateClientConfiguration {
        metadata: None,
        ca: ca.clone().into_bytes(),
        crt,
        key,
        talosconfig,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_pki::{KeyKind, Secret, certificate, encoding};

    use super::*;

    fn authority() -> CertificateAndKey {
        let authority =
            Authority::generate("talos", KeyKind::Ed25519, 20 * LIFETIME, SystemTime::now())
                .unwrap();
        let pair = authority.pair();
        CertificateAndKey {
            crt: pair.crt.clone(),
            key: Some(Secret::new(pair.key.expose().to_owned())),
        }
    }

    fn request(roles: &[&str], seconds: Option<i64>) -> GenerateClientConfigurationRequest {
        GenerateClientConfigurationRequest {
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            crt_ttl: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        }
    }

    #[test]
    fn a_client_has_the_roles_and_the_time_it_was_asked_for() {
        let (ca, now) = (authority(), SystemTime::now());
        for (roles, seconds, name, lifetime) in [
            (&["os:reader"][..], Some(600), "os:reader@prod", Duration::from_secs(600)),
            (&["os:admin", "os:operator"], None, "prod", LIFETIME),
        ] {
            let made = generate(Some(&ca), Some("prod"), request(roles, seconds), now).unwrap();
            let crt = String::from_utf8(made.crt.clone()).unwrap();
            let der = encoding::certificates(&crt).unwrap();
            assert_eq!(certificate::organizations(&der[0]).unwrap(), roles);
            let (_, end) = certificate::validity(&crt).unwrap();
            let late = now + lifetime + Duration::from_secs(2);
            assert!(end <= late && end + Duration::from_secs(4) >= late, "{end:?}");
            let text = String::from_utf8(made.talosconfig).unwrap();
            let configuration = orlop_config::client::parse("talosconfig", &text).unwrap();
            assert_eq!(configuration.context, name);
            let context = &configuration.contexts[name];
            assert_eq!((context.ca.as_bytes(), context.crt.as_bytes()), (&*made.ca, &*made.crt));
            assert_eq!(context.key.expose().as_bytes(), made.key);
            assert!(context.endpoints.is_empty());
        }
    }

    #[test]
    fn what_makes_no_client_is_refused_with_the_reason() {
        let (ca, now) = (authority(), SystemTime::now());
        let worker = CertificateAndKey { key: None, ..authority() };
        for (ca, request, code) in [
            (Some(&ca), request(&[], None), tonic::Code::InvalidArgument),
            (Some(&ca), request(&["os:admin", " "], None), tonic::Code::InvalidArgument),
            (Some(&ca), request(&["os:admin"], Some(-1)), tonic::Code::InvalidArgument),
            (Some(&worker), request(&["os:admin"], None), tonic::Code::FailedPrecondition),
            (None, request(&["os:admin"], None), tonic::Code::FailedPrecondition),
        ] {
            assert_eq!(generate(ca, None, request, now).unwrap_err().code(), code);
        }
    }
}
