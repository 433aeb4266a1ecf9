//! Who may approve and sign certificate requests, and what none may ask for: `CertificateApproval`,
//! `CertificateSigning`, `CertificateSubjectRestriction`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::Request;
use orlop_rt::Chain;

use super::{Stop, View, is, refused};
use crate::authz::{Action, Decision};
use crate::object::{Change, Operation, at, text};
use crate::request::Asked;

/// The signer whose certificates the server itself believes.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// `CertificateApproval`: conditions of approval or denial need `approve` on the signer.
pub(super) fn approval(view: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    if updates(change, "approval") { permitted(view, change, "approve") } else { Ok(()) }
}

/// `CertificateSigning`: a certificate or its conditions need `sign` on the signer.
pub(super) fn signing(view: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    let Some(old) = change.old.filter(|_| updates(change, "status")) else { return Ok(()) };
    let same = |field: &str| at(change.object, field) == at(old, field);
    if same("/status/certificate") && same("/status/conditions") {
        return Ok(());
    }
    permitted(view, change, "sign")
}

/// `CertificateSubjectRestriction`: nobody gets a client certificate that may do everything.
pub(super) fn subject(_: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    let restricted = is(change, "certificates.k8s.io", "certificatesigningrequests")
        && change.operation == Operation::Create
        && text(change.object, "/spec/signerName") == CLIENT;
    if !restricted {
        return Ok(());
    }
    let organizations = organizations(text(change.object, "/spec/request"))
        .map_err(|why| refused(change, &format!("unable to parse CSR: {why}")))?;
    if organizations.iter().any(|organization| organization == MASTERS) {
        let why = format!("use of {CLIENT} signer with {MASTERS} group is not allowed");
        return Err(refused(change, &why).into());
    }
    Ok(())
}

fn updates(change: &Change<'_>, subresource: &str) -> bool {
    change.resource.plural == "certificatesigningrequests"
        && change.subresource == subresource
        && change.operation == Operation::Update
}

/// Signers are resources of rights alone: `example.org/one`, or `example.org/*` for all of a domain.
fn permitted(view: &View<'_>, change: &Change<'_>, verb: &'static str) -> Result<(), Stop> {
    let signer = change.old.map_or("", |old| text(old, "/spec/signerName"));
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    let all = format!("{domain}/*");
    let allowed = [signer, &all].into_iter().any(|name| {
        let asked = Asked {
            group: "certificates.k8s.io",
            version: "*",
            plural: "signers",
            name,
            ..Asked::default()
        };
        let action = Action { user: change.user, verb, asked: Some(asked), path: "" };
        matches!(view.authorizer.decide(&action), Decision::Allow(_))
    });
    if allowed {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(refused(change, &why).into())
}

/// Every O of the subject of a request: PEM, in base64.
fn organizations(request: &str) -> Result<Vec<String>, String> {
    let pem = STANDARD.decode(request).map_err(|error| error.to_string())?;
    let request = Request::from_pem(&pem).map_err(|error| Chain(&error).to_string())?;
    Ok(request.organizations)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use serde_json::{Value, json};

    use super::super::fake::{Fake, message};
    use super::STANDARD;
    use crate::object::Operation;

    const REQUESTS: &str = "certificatesigningrequests";

    fn request(signer: &str, organization: &str) -> Value {
        let key = orlop_pki::request::new_key().expect("a key");
        let pem = orlop_pki::request::for_key(key.expose(), "c", Some(organization), &[], &[]);
        let pem = pem.expect("a request");
        json!({
            "metadata": {"name": "r"},
            "spec": {"signerName": signer, "request": STANDARD.encode(pem)},
        })
    }

    fn update(fake: &Fake, subresource: &str, old: Value, status: Value) -> String {
        let mut new = old.clone();
        new["status"] = status;
        let group = "certificates.k8s.io/v1";
        let what = (group, REQUESTS, subresource);
        message(fake.run(Operation::Update, what, "", new, Some(old)))
    }

    #[test]
    fn approving_and_signing_need_the_verb_on_the_signer() {
        let fake = Fake::new();
        let old = request("example.org/one", "o");
        let approved = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        let said = |verb: &str| {
            format!(
                "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to {verb} requests with signerName \"example.org/one\""
            )
        };
        assert_eq!(update(&fake, "approval", old.clone(), approved.clone()), said("approve"));
        fake.allow("alice approve signers example.org/*");
        assert_eq!(update(&fake, "approval", old.clone(), approved), "");
        let signed = json!({"certificate": "YQ=="});
        assert_eq!(update(&fake, "status", old.clone(), signed.clone()), said("sign"));
        assert_eq!(update(&fake, "status", old.clone(), json!({})), "", "nothing is signed");
        fake.allow("alice sign signers example.org/one");
        assert_eq!(update(&fake, "status", old, signed), "");
    }

    #[test]
    fn nobody_asks_for_a_certificate_that_may_do_everything() {
        let fake = Fake::new();
        let create =
            |request| message(fake.create("certificates.k8s.io/v1", REQUESTS, "", request));
        assert_eq!(create(request(super::CLIENT, "developers")), "");
        assert_eq!(create(request("example.org/one", super::MASTERS)), "");
        assert_eq!(
            create(request(super::CLIENT, super::MASTERS)),
            "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        );
        let broken = json!({"metadata": {"name": "r"}, "spec": {"signerName": super::CLIENT, "request": "YQ=="}});
        assert_eq!(
            create(broken),
            "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: unable to parse CSR: failed to decode CSR"
        );
    }
}
