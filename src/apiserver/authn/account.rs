//! Service accounts' tokens: made on request, bound to what they are for, and believed while that is there.

use std::time::{Duration, SystemTime};

use orlop_pki::signature::{SigningKey, VerifyingKey};
use orlop_rt::Chain;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{CREDENTIAL_ID, Verdict, jwt};
use crate::object::{Object, Objects, User, at, text};
use crate::random;
use crate::resources::{Resource, find};
use crate::status::{Cause, Status};

/// Of all service accounts; with `:NAMESPACE` those of one.
pub const GROUP: &str = "system:serviceaccounts";
/// What the user of a service account is called before `NAMESPACE:NAME`.
const PREFIX: &str = "system:serviceaccount:";
/// How long a token lasts unless asked for otherwise, in seconds.
const LIFETIME: i64 = 3600;
/// The shortest and the longest that can be asked for, in seconds.
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
/// How far apart clocks may be, and how long a token outlives the deletion of what it is bound to.
const LEEWAY: Duration = Duration::from_secs(60);
/// The claim that is ours (`spec/kube-api.md` §1.1).
const CLAIM: &str = "kubernetes.io";
/// What a user's `extra` names begin with.
const EXTRA: &str = "authentication.kubernetes.io";

/// Signs and knows the tokens of one issuer.
#[derive(Debug, Default)]
pub struct Accounts {
    issuer: String,
    audiences: Vec<String>,
    signing: Option<SigningKey>,
    keys: Vec<VerifyingKey>,
}

/// What a token can be bound to.
struct Bound {
    resource: &'static Resource,
    /// In [`CLAIM`].
    claim: &'static str,
}

const BOUND: [(&str, &str, &str); 3] =
    [("Pod", "pods", "pod"), ("Secret", "secrets", "secret"), ("Node", "nodes", "node")];

impl Accounts {
    /// `issuer`: an https URL; `audiences`: who we are to those who hold a token, the issuer if empty; `signing` makes
    /// tokens, and `further` keys are believed, too.
    #[must_use]
    pub fn new(
        issuer: impl Into<String>,
        audiences: Vec<String>,
        signing: Option<SigningKey>,
        further: Vec<VerifyingKey>,
    ) -> Self {
        let issuer = issuer.into();
        let audiences = if audiences.is_empty() { vec![issuer.clone()] } else { audiences };
        let mut keys: Vec<_> = signing.iter().map(|key| key.public().clone()).collect();
        for key in further {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Self { issuer, audiences, signing, keys }
    }

    /// Who makes the tokens.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Who we are to those who hold a token.
    #[must_use]
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// What tokens are checked with.
    #[must_use]
    pub fn keys(&self) -> &[VerifyingKey] {
        &self.keys
    }

    /// Makes a token for a service account as its TokenRequest asks, and answers with the request filled in.
    ///
    /// # Errors
    /// When the request cannot be granted; 500 where there is no key to sign with.
    pub fn issue(
        &self,
        account: &Object,
        request: &Object,
        objects: &dyn Objects,
        now: SystemTime,
    ) -> Result<Object, Status> {
        let (namespace, name) =
            (text(account, "/metadata/namespace"), text(account, "/metadata/name"));
        let key = self.signing.as_ref().ok_or_else(|| {
            Status::internal("this server has no key that signs tokens of service accounts")
        })?;
        let mut spec = request.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        let lifetime = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(LIFETIME);
        check_lifetime(lifetime)?;
        if spec.get("audiences").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            spec.insert("audiences".to_owned(), json!(self.audiences));
        }
        spec.insert("expirationSeconds".to_owned(), lifetime.into());

        let mut private = json!({
            "namespace": namespace,
            "serviceaccount": {"name": name, "uid": text(account, "/metadata/uid")},
        });
        if let Some(Value::Object(reference)) = spec.get("boundObjectRef") {
            bind(&mut private, namespace, name, reference, objects)?;
        }
        let (since, until) = (seconds(now), seconds(now) + lifetime);
        let claims = json!({
            "iss": self.issuer,
            "sub": format!("{PREFIX}{namespace}:{name}"),
            "aud": spec["audiences"],
            "iat": since,
            "nbf": since,
            "exp": until,
            "jti": random::uuid(),
            CLAIM: private,
        });
        let token = jwt::sign(&claims, key)
            .map_err(|error| Status::internal(&format!("sign a token: {}", Chain(&error))))?;
        let mut metadata = Object::new();
        metadata.insert("name".to_owned(), name.into());
        metadata.insert("namespace".to_owned(), namespace.into());
        metadata.insert("creationTimestamp".to_owned(), timestamp(since)?.into());
        let mut answer = Object::new();
        answer.insert("kind".to_owned(), "TokenRequest".into());
        answer.insert("apiVersion".to_owned(), "authentication.k8s.io/v1".into());
        answer.insert("metadata".to_owned(), metadata.into());
        answer.insert("spec".to_owned(), spec.into());
        let status = json!({"token": token, "expirationTimestamp": timestamp(until)?});
        answer.insert("status".to_owned(), status);
        Ok(answer)
    }

    /// Whose token it is; none: it is no token of this issuer. The error is why it does not count.
    pub(super) fn verify(
        &self,
        token: &str,
        audiences: &[String],
        objects: &dyn Objects,
        now: SystemTime,
    ) -> Option<Result<Verdict, String>> {
        let token = jwt::Token::parse(token)?;
        (token.issuer() == self.issuer).then(|| self.judge(&token, audiences, objects, now))
    }

    fn judge(
        &self,
        token: &jwt::Token<'_>,
        audiences: &[String],
        objects: &dyn Objects,
        now: SystemTime,
    ) -> Result<Verdict, String> {
        let claims = token.claims(&self.keys).ok_or("none of our keys has signed it")?;
        let (leeway, now_secs) = (LEEWAY.as_secs().cast_signed(), seconds(now));
        let until = claims["exp"].as_i64().ok_or("it says no time at which it ends (exp)")?;
        if now_secs >= until.saturating_add(leeway) {
            return Err("it has expired".to_owned());
        }
        let since = claims.get("nbf").or_else(|| claims.get("iat")).and_then(Value::as_i64);
        if since.is_some_and(|since| now_secs < since.saturating_sub(leeway)) {
            return Err("it is not valid yet".to_owned());
        }
        let meant: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let audiences: Vec<_> =
            audiences.iter().filter(|asked| meant.contains(&asked.as_str())).cloned().collect();
        if audiences.is_empty() {
            return Err(format!("it is for the audiences {meant:?}"));
        }

        let private = &claims[CLAIM];
        let said =
            |pointer: &str| private.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (said("/namespace"), said("/serviceaccount/name"));
        let user_name = format!("{PREFIX}{namespace}:{name}");
        if claims["sub"].as_str() != Some(&user_name) {
            return Err("its subject is not the service account it names".to_owned());
        }
        let uid = said("/serviceaccount/uid");
        let accounts = find("", "v1", "serviceaccounts").expect("they are served");
        there(objects, accounts, namespace, name, uid, now)?;
        for (_, plural, claim) in BOUND {
            // The node of a pod is told, not asked for.
            let asked = claim != "node" || private.get("pod").is_none();
            if asked && private.get(claim).is_some() {
                let resource = find("", "v1", plural).expect("they are served");
                let namespace = if resource.namespaced { namespace } else { "" };
                let said = |field: &str| said(&format!("/{claim}/{field}"));
                there(objects, resource, namespace, said("name"), said("uid"), now)?;
            }
        }

        let mut user = User {
            name: user_name,
            uid: uid.to_owned(),
            groups: groups(namespace).to_vec(),
            ..User::default()
        };
        let mut extra = |key: String, value: &str| {
            if !value.is_empty() {
                user.extra.insert(key, vec![value.to_owned()]);
            }
        };
        if let Some(id) = claims["jti"].as_str() {
            extra(CREDENTIAL_ID.to_owned(), &format!("JTI={id}"));
        }
        for claim in ["pod", "node"] {
            for field in ["name", "uid"] {
                extra(format!("{EXTRA}/{claim}-{field}"), said(&format!("/{claim}/{field}")));
            }
        }
        let until = u64::try_from(until.saturating_add(leeway)).ok();
        let until =
            until.and_then(|until| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(until)));
        Ok(Verdict { user, audiences, until })
    }
}

/// The groups of a namespace's service accounts.
#[must_use]
pub fn groups(namespace: &str) -> [String; 2] {
    [GROUP.to_owned(), format!("{GROUP}:{namespace}")]
}

/// Namespace and name of the service account that a user is.
#[must_use]
pub fn of_user(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix(PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// Is the object there that a token names, and the same one?
fn there(
    objects: &dyn Objects,
    resource: &'static Resource,
    namespace: &str,
    name: &str,
    uid: &str,
    now: SystemTime,
) -> Result<(), String> {
    let what = || format!("the {} {namespace}/{name} it is bound to", resource.singular());
    let Some(object) = objects.get(resource, namespace, name) else {
        return Err(format!("{} is not there", what()));
    };
    if uid.is_empty() || text(&object, "/metadata/uid") != uid {
        return Err(format!("{} is another one by now", what()));
    }
    if let Some(deleted) = at(&object, "/metadata/deletionTimestamp").and_then(Value::as_str) {
        let deleted = OffsetDateTime::parse(deleted, &Rfc3339).map(SystemTime::from);
        if deleted.is_ok_and(|deleted| deleted + LEEWAY < now) {
            return Err(format!("{} is deleted", what()));
        }
    }
    Ok(())
}

/// Binds a token to the object it is asked for.
fn bind(
    private: &mut Value,
    namespace: &str,
    account: &str,
    reference: &Object,
    objects: &dyn Objects,
) -> Result<(), Status> {
    let said = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind, name) = (said("apiVersion"), said("kind"), said("name"));
    let Some(Bound { resource, claim }) = bound(api_version, kind) else {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let message = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
        return Err(Status::bad_request(message));
    };
    let namespace = if resource.namespaced { namespace } else { "" };
    let object =
        objects.get(resource, namespace, name).ok_or_else(|| Status::not_found(resource, name))?;
    let uid = text(&object, "/metadata/uid");
    if claim == "pod" {
        if text(&object, "/spec/serviceAccountName") != account {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            )));
        }
        let node = text(&object, "/spec/nodeName");
        if !node.is_empty() {
            let nodes = find("", "v1", "nodes").expect("they are served");
            private["node"] = match objects.get(nodes, "", node) {
                Some(found) => json!({"name": node, "uid": text(&found, "/metadata/uid")}),
                None => json!({"name": node}),
            };
        }
    }
    let asked = said("uid");
    if !asked.is_empty() && asked != uid {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. \
             The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(resource, name, &why));
    }
    private[claim] = json!({"name": name, "uid": uid});
    Ok(())
}

fn bound(api_version: &str, kind: &str) -> Option<Bound> {
    let (_, plural, claim) = BOUND.into_iter().find(|(known, ..)| *known == kind)?;
    let resource = find("", "v1", plural).expect("they are served");
    matches!(api_version, "" | "v1").then_some(Bound { resource, claim })
}

fn check_lifetime(asked: i64) -> Result<(), Status> {
    let why = match asked {
        ..SHORTEST => "may not specify a duration less than 10 minutes",
        SHORTEST..=LONGEST => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let cause = Cause::invalid("spec.expirationSeconds", &asked.into(), why);
    Err(Status::invalid_kind("authentication.k8s.io", "TokenRequest", "", vec![cause]))
}

/// Since 1970; before that 0.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn timestamp(seconds: i64) -> Result<String, Status> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .ok_or_else(|| Status::internal("the clock is past the year 9999"))
}
