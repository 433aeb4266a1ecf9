//! Whole requests: what is shown, what is stored, who it is.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderValue;
use orlop_pki::signature::{SigningKey, VerifyingKey};
use orlop_pki::{Authority, KeyKind, Leaf, Usage, encoding};
use serde_json::{Value, json};

use super::account::Accounts;
use super::*;
use crate::object::Object;
use crate::resources::{Resource, find};

const ISSUER: &str = "https://kubernetes.default.svc";
const RSA_KEY: &str = include_str!("../../pki/testdata/rsa-pkcs1.key");
const HOUR: Duration = Duration::from_secs(3600);

/// What is stored, by plural, namespace and name.
#[derive(Debug, Default)]
struct Stored(std::sync::Mutex<HashMap<(String, String, String), Object>>);

impl Stored {
    fn put(&self, plural: &str, object: Value) {
        let Value::Object(object) = object else { panic!("an object: {object}") };
        let said = |pointer| crate::object::text(&object, pointer).to_owned();
        let key = (plural.to_owned(), said("/metadata/namespace"), said("/metadata/name"));
        self.0.lock().expect("no test panics in it").insert(key, object);
    }

    fn remove(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().expect("no test panics in it").remove(&key);
    }
}

impl Objects for Stored {
    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Object> {
        let key = (resource.plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().expect("no test panics in it").get(&key).cloned()
    }

    fn list(&self, _: &'static Resource, _: &str) -> Vec<Object> {
        unreachable!("nobody lists to know a user")
    }
}

struct House {
    stored: Arc<Stored>,
    authority: Authority,
    authenticator: Authenticator,
    now: SystemTime,
}

fn key(text: &str) -> SigningKey {
    SigningKey::from_pem(text).expect("a key")
}

/// Everything is on; of accounts there is `build` in `ci`.
fn house_with(anonymous: Anonymous, signing: SigningKey) -> House {
    let stored = Arc::new(Stored::default());
    stored.put(
        "serviceaccounts",
        json!({"metadata": {"namespace": "ci", "name": "build", "uid": "u1"}}),
    );
    let now = SystemTime::now();
    let authority = Authority::generate("kubernetes", KeyKind::P256, 24 * HOUR, now).expect("made");
    let further = VerifyingKey::from_pem(RSA_KEY).expect("a key");
    let settings = Settings {
        client_ca: Some(authority.pair().crt.clone()),
        tokens: Some("s3cret,anna,1,dev\n".to_owned()),
        accounts: Accounts::new(ISSUER, Vec::new(), Some(signing), further),
        anonymous,
    };
    let authenticator = Authenticator::new(settings, Arc::clone(&stored) as _).expect("sound");
    House { stored, authority, authenticator, now }
}

fn house() -> House {
    let own = SigningKey::generate().expect("randomness");
    house_with(Anonymous::Welcome, key(own.expose()))
}

fn leaf(name: &str, groups: &[&str], usage: Usage) -> Leaf {
    Leaf {
        common_name: name.to_owned(),
        organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
        usage,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: HOUR,
    }
}

fn shown(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = format!("Bearer {token}");
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&value).expect("a value"));
    headers
}

impl House {
    fn certificate(&self, leaf: &Leaf) -> Vec<CertificateDer<'static>> {
        let pair = self.authority.issue(leaf, self.now).expect("issued");
        encoding::certificates(&pair.crt).expect("our own")
    }

    fn asks(
        &self,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
        after: Duration,
    ) -> Result<User, Status> {
        self.authenticator.authenticate(chain, headers, "/api", self.now + after)
    }

    /// The user's name, or the code of the refusal.
    fn name(&self, headers: &HeaderMap, after: Duration) -> Result<String, u16> {
        self.asks(&[], headers, after).map(|user| user.name).map_err(|status| status.code)
    }

    fn request(&self, spec: Value) -> Result<Object, Status> {
        let accounts = find("", "v1", "serviceaccounts").expect("they are served");
        let account = self.stored.get(accounts, "ci", "build").expect("it is there");
        let Value::Object(request) = json!({"spec": spec}) else { unreachable!("it is one") };
        self.authenticator.accounts().issue(&account, &request, &*self.stored, self.now)
    }

    fn token(&self, spec: Value) -> String {
        let answer = self.request(spec).expect("granted");
        answer["status"]["token"].as_str().expect("a text").to_owned()
    }
}

#[test]
fn a_client_certificate_says_who_it_is() {
    let house = house();
    let chain = house.certificate(&leaf("anna", &["dev", "ops"], Usage::Client));
    for after in [Duration::ZERO, Duration::from_secs(5)] {
        let user = house.asks(&chain, &HeaderMap::new(), after).expect("known");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("anna", ""));
        assert_eq!(user.groups, ["dev", "ops", AUTHENTICATED]);
        let id = &user.extra[CREDENTIAL_ID][0];
        assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64, "{id}");
    }
    let nobody = house.asks(&[], &HeaderMap::new(), Duration::ZERO).expect("anonymous");
    assert_eq!(
        (nobody.name.as_str(), &nobody.groups[..]),
        (ANONYMOUS, &[UNAUTHENTICATED.to_owned()][..])
    );
}

#[test]
fn a_certificate_that_does_not_hold_is_refused_though_anonymous_is_welcome() {
    let house = house();
    let refused = |chain: &[CertificateDer<'_>], after| {
        house.asks(chain, &HeaderMap::new(), after).expect_err("refused")
    };
    let foreign = house_with(Anonymous::Welcome, key(RSA_KEY));
    let foreign = foreign.certificate(&leaf("anna", &[], Usage::Client));
    let server = house.certificate(&leaf("anna", &[], Usage::Server));
    let nameless = house.certificate(&leaf("", &["dev"], Usage::Client));
    for chain in [foreign, server, nameless] {
        assert_eq!(refused(&chain, Duration::ZERO), Status::unauthorized());
    }
    let own = house.certificate(&leaf("anna", &[], Usage::Client));
    house.asks(&own, &HeaderMap::new(), Duration::ZERO).expect("in time");
    assert_eq!(refused(&own, 2 * HOUR), Status::unauthorized());
    // A token beside it that holds is enough.
    let headers = shown("s3cret");
    assert_eq!(house.asks(&own, &headers, 2 * HOUR).map(|user| user.name), Ok("anna".to_owned()));
}

#[test]
fn what_is_shown_must_hold_wherever_it_is_shown() {
    let house = house();
    let later = Duration::ZERO;
    assert_eq!(house.name(&shown("s3cret"), later), Ok("anna".to_owned()));
    assert_eq!(house.name(&shown("secret"), later), Err(401));
    assert_eq!(house.name(&shown(&"x".repeat(TOKEN_LIMIT + 1)), later), Err(401));
    assert_eq!(house.name(&shown(""), later), Ok(ANONYMOUS.to_owned()));
    let with = |name: http::HeaderName, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        house.name(&headers, later)
    };
    assert_eq!(with(AUTHORIZATION, "Basic YTpi"), Err(401));
    assert_eq!(with(AUTHORIZATION, "bearer s3cret"), Ok("anna".to_owned()));
    let protocols = |token: &str| format!("v5.channel.k8s.io, {WEBSOCKET_BEARER}{token}");
    let encoded = URL_SAFE_NO_PAD.encode("s3cret");
    assert_eq!(with(SEC_WEBSOCKET_PROTOCOL, &protocols(&encoded)), Ok("anna".to_owned()));
    assert_eq!(with(SEC_WEBSOCKET_PROTOCOL, &protocols("!")), Err(401));
    assert_eq!(with(SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io"), Ok(ANONYMOUS.to_owned()));
}

#[test]
fn nobody_in_particular_is_let_in_where_the_settings_say() {
    let asks = |anonymous, path| {
        let house = house_with(anonymous, key(RSA_KEY));
        house.authenticator.authenticate(&[], &HeaderMap::new(), path, house.now).is_ok()
    };
    let health = || Anonymous::At(vec!["/livez".to_owned(), "/readyz".to_owned()]);
    assert!(asks(Anonymous::Welcome, "/api"));
    assert!(asks(health(), "/readyz"));
    assert!(!asks(health(), "/api"));
    assert!(!asks(Anonymous::Refused, "/readyz"));
}

#[test]
fn a_token_is_its_accounts_until_it_ends_or_the_account_is_another() {
    let own = SigningKey::generate().expect("randomness");
    for signing in [own.expose(), RSA_KEY] {
        let house = house_with(Anonymous::Welcome, key(signing));
        let answer = house.request(json!({})).expect("granted");
        assert_eq!(answer["spec"], json!({"audiences": [ISSUER], "expirationSeconds": 3600}));
        let token = answer["status"]["token"].as_str().expect("a text");
        let user = house.asks(&[], &shown(token), Duration::ZERO).expect("known");
        assert_eq!(
            (user.name.as_str(), user.uid.as_str()),
            ("system:serviceaccount:ci:build", "u1")
        );
        let groups = ["system:serviceaccounts", "system:serviceaccounts:ci", AUTHENTICATED];
        assert_eq!(user.groups, groups);
        let id = &user.extra[CREDENTIAL_ID][0];
        assert!(id.starts_with("JTI=") && id.len() == 4 + 36, "{id}");

        let second = Duration::from_secs(1);
        assert!(house.name(&shown(token), HOUR + 59 * second).is_ok(), "clocks may differ");
        assert_eq!(house.name(&shown(token), HOUR + 60 * second), Err(401));
        // What was believed is not asked again for ten seconds.
        assert!(house.name(&shown(token), 20 * second).is_ok());
        house.stored.remove("serviceaccounts", "ci", "build");
        assert!(house.name(&shown(token), 29 * second).is_ok());
        assert_eq!(house.name(&shown(token), 30 * second), Err(401));
        house.stored.put(
            "serviceaccounts",
            json!({"metadata": {"namespace": "ci", "name": "build", "uid": "u2"}}),
        );
        assert_eq!(house.name(&shown(token), 30 * second), Err(401));
    }
}

#[test]
fn a_clock_that_is_set_decides_what_holds_and_set_right_it_holds_again() {
    let house = house();
    let token = shown(&house.token(json!({})));
    let own = house.certificate(&leaf("anna", &[], Usage::Client));
    let at = |now: SystemTime| {
        let name = |user: Result<User, Status>| user.map(|user| user.name).map_err(|no| no.code);
        let ask = |chain: &[_], headers: &_| {
            name(house.authenticator.authenticate(chain, headers, "/api", now))
        };
        (ask(&[], &token), ask(&own, &HeaderMap::new()))
    };
    let (account, anna) = ("system:serviceaccount:ci:build".to_owned(), "anna".to_owned());
    let both = (Ok(account), Ok(anna));
    assert_eq!(at(house.now), both);
    // What was believed a moment ago is not believed at another time.
    assert_eq!(at(house.now - HOUR).0, Err(401), "set back: it is not valid yet");
    assert_eq!(at(house.now), both);
    assert_eq!(at(house.now + 2 * HOUR), (Err(401), Err(401)), "set ahead: it has expired");
    assert_eq!(at(house.now), both);
}

#[test]
fn a_token_of_another_key_issuer_or_audience_is_refused() {
    let (here, there) = (house(), house());
    assert_eq!(here.name(&shown(&there.token(json!({}))), Duration::ZERO), Err(401));
    let vault = here.token(json!({"audiences": ["vault"]}));
    assert_eq!(here.name(&shown(&vault), Duration::ZERO), Err(401));
    let early = HOUR.saturating_sub(Duration::ZERO);
    assert_eq!(
        here.authenticator.by_token(&here.token(json!({})), None, here.now - early).map(drop),
        Err("it is not valid yet".to_owned())
    );
}

#[test]
fn a_bound_token_ends_with_what_it_is_bound_to() {
    let house = house();
    let pod = |deleted: Option<&str>| {
        let mut metadata = json!({"namespace": "ci", "name": "p", "uid": "pu"});
        if let Some(deleted) = deleted {
            metadata["deletionTimestamp"] = deleted.into();
        }
        json!({"metadata": metadata, "spec": {"serviceAccountName": "build", "nodeName": "n"}})
    };
    house.stored.put("pods", pod(None));
    house.stored.put("nodes", json!({"metadata": {"name": "n", "uid": "nu"}}));
    let bound =
        json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pu"}});
    let token = house.token(bound);
    let user = house.asks(&[], &shown(&token), Duration::ZERO).expect("known");
    let extra = |name: &str| user.extra[&format!("authentication.kubernetes.io/{name}")][0].clone();
    assert_eq!(["pod-name", "pod-uid", "node-name", "node-uid"].map(extra), ["p", "pu", "n", "nu"]);

    let seconds = Duration::from_secs;
    house.stored.remove("nodes", "", "n");
    assert!(house.name(&shown(&token), seconds(20)).is_ok(), "a pod's node is only told");
    let time = time::OffsetDateTime::from(house.now + seconds(40));
    let deleted = time.format(&time::format_description::well_known::Rfc3339).expect("a time");
    house.stored.put("pods", pod(Some(&deleted)));
    assert!(house.name(&shown(&token), seconds(99)).is_ok());
    assert_eq!(house.name(&shown(&token), seconds(110)), Err(401));
    house.stored.remove("pods", "ci", "p");
    assert_eq!(house.name(&shown(&token), seconds(50)), Err(401));
}

#[test]
fn what_cannot_be_granted_is_refused_in_the_references_words() {
    let house = house();
    house.stored.put(
        "pods",
        json!({"metadata": {"namespace": "ci", "name": "p", "uid": "pu"}, "spec": {"serviceAccountName": "x"}}),
    );
    house.stored.put("secrets", json!({"metadata": {"namespace": "ci", "name": "s", "uid": "su"}}));
    let bound = |kind: &str, name: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": "other"}});
    for (spec, code, message) in [
        (
            json!({"expirationSeconds": 599}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: \
             may not specify a duration less than 10 minutes",
        ),
        (
            json!({"expirationSeconds": 4_294_967_297_i64}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 4294967297: \
             may not specify a duration larger than 2^32 seconds",
        ),
        (bound("Pod", "q"), 404, "pods \"q\" not found"),
        (
            bound("Pod", "p"),
            400,
            "cannot bind token for serviceaccount \"build\" to pod running with different serviceaccount name.",
        ),
        (bound("ConfigMap", "p"), 400, "cannot bind token to object of type /v1, Kind=ConfigMap"),
        (
            bound("Secret", "s"),
            409,
            "Operation cannot be fulfilled on secrets \"s\": the UID in the bound object reference (other) does not \
             match the UID in record. The object might have been deleted and then recreated",
        ),
    ] {
        let refused = house.request(spec).expect_err(message);
        assert_eq!((refused.code, refused.message.as_str()), (code, message));
    }
}

fn bootstrap_secret(change: impl FnOnce(&mut Value)) -> Value {
    use base64::engine::general_purpose::STANDARD;
    let mut data = json!({
        "token-id": "abcdef",
        "token-secret": "0123456789abcdef",
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:worker, system:bootstrappers:worker",
    });
    change(&mut data);
    for (_, value) in data.as_object_mut().expect("an object") {
        *value = STANDARD.encode(value.as_str().expect("a text")).into();
    }
    json!({
        "metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token",
        "data": data,
    })
}

#[test]
fn a_joining_node_is_known_by_its_token() {
    let headers = shown("abcdef.0123456789abcdef");
    let fresh = |secret: Value| {
        let house = house();
        house.stored.put("secrets", secret);
        house.asks(&[], &headers, Duration::ZERO)
    };
    let user = fresh(bootstrap_secret(|_| {})).expect("known");
    assert_eq!(user.name, "system:bootstrap:abcdef");
    assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:worker", AUTHENTICATED]);
    fresh(bootstrap_secret(|data| data["expiration"] = "2999-01-01T00:00:00Z".into()))
        .expect("known");
    let mut other_type = bootstrap_secret(|_| {});
    other_type["type"] = "Opaque".into();
    let mut deleted = bootstrap_secret(|_| {});
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    for secret in [
        bootstrap_secret(|data| data["token-secret"] = "0123456789abcdeg".into()),
        bootstrap_secret(|data| data["token-id"] = "abcdeg".into()),
        bootstrap_secret(|data| data["expiration"] = "2020-01-01T00:00:00Z".into()),
        bootstrap_secret(|data| data["expiration"] = "never".into()),
        bootstrap_secret(|data| data["usage-bootstrap-authentication"] = "false".into()),
        bootstrap_secret(|data| data["auth-extra-groups"] = "system:masters".into()),
        other_type,
        deleted,
    ] {
        assert_eq!(fresh(secret.clone()), Err(Status::unauthorized()), "{secret}");
    }
    assert_eq!(house().name(&headers, Duration::ZERO), Err(401), "no such Secret");
}

#[test]
fn reviews_say_whose_a_token_is_and_who_one_is() {
    let house = house();
    let review = |spec: Value| {
        let Value::Object(review) = json!({"kind": "TokenReview", "spec": spec}) else {
            unreachable!("it is one");
        };
        review::token(&house.authenticator, review, house.now)
            .map(|review| review["status"].clone())
    };
    let token = house.token(json!({"audiences": ["vault", ISSUER]}));
    let status =
        review(json!({"token": token, "audiences": ["vault", "other"]})).expect("reviewed");
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(status["user"]["username"], "system:serviceaccount:ci:build");
    let status = review(json!({"token": "s3cret"})).expect("reviewed");
    let anna = json!({"username": "anna", "uid": "1", "groups": ["dev", AUTHENTICATED]});
    assert_eq!(status, json!({"authenticated": true, "user": anna, "audiences": [ISSUER]}));
    for spec in [json!({"token": "s3cret", "audiences": ["vault"]}), json!({"token": "x"})] {
        let status = review(spec).expect("reviewed");
        assert_eq!(status.get("authenticated"), None);
        assert!(
            status["error"].as_str().is_some_and(|why| why.starts_with("invalid bearer token: "))
        );
    }
    assert_eq!(review(json!({})).expect_err("no token").code, 400);

    let user = house.asks(&[], &shown("s3cret"), Duration::ZERO).expect("known");
    let oneself = review::oneself(&user, Object::new());
    assert_eq!(oneself["status"], json!({"userInfo": anna}));
}

#[test]
fn others_can_check_our_tokens_by_the_documents() {
    let house = house();
    let accounts = house.authenticator.accounts();
    let configuration = issuer::configuration(accounts, "https://10.0.0.1:6443/");
    assert_eq!(configuration["jwks_uri"], "https://10.0.0.1:6443/openid/v1/jwks");
    assert_eq!(configuration["issuer"], ISSUER);
    assert_eq!(configuration["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
    let keys = issuer::keys(accounts);
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(2));
    let ec = &keys["keys"][0];
    assert_eq!([&ec["kty"], &ec["crv"], &ec["alg"], &ec["use"]], ["EC", "P-256", "ES256", "sig"]);
    assert_eq!(ec["x"].as_str().map(str::len), Some(43));
    let rsa = &keys["keys"][1];
    assert_eq!([&rsa["kty"], &rsa["alg"], &rsa["e"]], ["RSA", "RS256", "AQAB"]);
    // A token's head names the key.
    let token = house.token(json!({}));
    let head = URL_SAFE_NO_PAD.decode(token.split('.').next().expect("a head")).expect("base64url");
    let head: Value = serde_json::from_slice(&head).expect("JSON");
    assert_eq!(head, json!({"alg": "ES256", "kid": ec["kid"]}));
}
