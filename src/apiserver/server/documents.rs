//! What the server says about itself: discovery, its version, its health, who issues its tokens.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::Server;
use super::body::Body;
use super::form;
use super::objects::{Call, answer, texts};
use super::query::Query;
use crate::authn::{issuer, review};
use crate::authz::reviews;
use crate::encoding::{self, Media, Offers, View};
use crate::metrics::Now;
use crate::object::User;
use crate::resources::{RESOURCES, Resource};
use crate::status::Status;
use crate::{discovery, health, openapi};

/// How long a probe waits for the store.
const PATIENCE: Duration = Duration::from_secs(2);

/// What we say we are: clients look at the first two numbers.
const VERSION: (&str, &str, &str) = ("1", "36", "v1.36.0");

impl Server {
    /// Answers what is no resource.
    pub(super) fn document(
        &self,
        _user: &User,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Status> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let document = match &parts[..] {
            [""] => json!({ "paths": paths() }),
            ["version"] => version(),
            ["api"] | ["apis"] => return self.groups(parts[0] == "api", headers),
            ["api", version] => discovery::resources("", version).ok_or_else(Status::no_path)?,
            ["apis", group] => discovery::group(group).ok_or_else(Status::no_path)?,
            ["apis", group, version] => {
                discovery::resources(group, version).ok_or_else(Status::no_path)?
            }
            [".well-known", "openid-configuration"] => {
                let server = format!("https://{}", self.address);
                issuer::configuration(self.authenticator().accounts(), &server)
            }
            ["openid", "v1", "jwks"] => issuer::keys(self.authenticator().accounts()),
            _ => return Err(Status::no_path()),
        };
        let offers = Offers { protobuf: false, ..Offers::default() };
        let media = encoding::negotiate(&texts(headers, "accept"), offers)?;
        Ok(answer(StatusCode::OK, media, form::encode(media.encoding, &document).into()))
    }

    /// `/api` and `/apis`, in the form of old clients and in that of new ones.
    fn groups(&self, core: bool, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let offers = Offers { discovery: true, ..Offers::default() };
        let media = encoding::negotiate(&texts(headers, "accept"), offers)?;
        let document = match media.view {
            View::Discovery(version) => {
                let mut document = discovery::aggregated(core);
                document["apiVersion"] = format!("apidiscovery.k8s.io/{version}").into();
                document
            }
            _ if core => discovery::api_versions(&self.address),
            _ => discovery::groups(),
        };
        let body = form::encode(media.encoding, &document);
        let tag = discovery::etag(&body);
        let known =
            headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let mut response = if known {
            answer(StatusCode::NOT_MODIFIED, media, Body::Empty)
        } else {
            answer(StatusCode::OK, media, body.into())
        };
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        Ok(response)
    }

    /// `/metrics`, in the text that is asked for.
    pub(super) async fn metrics(&self, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let storage = self.registry.storage();
        let kinds = RESOURCES
            .iter()
            .filter(|resource| resource.is_stored() && std::ptr::eq(resource.stored(), *resource));
        let count = |resource: &'static Resource| {
            let number = storage.cache().count(resource) as u64;
            ((resource.group, resource.plural), number)
        };
        let (major, minor, tag) = VERSION;
        let now = Now {
            objects: kinds.map(count).collect(),
            storage_bytes: storage.store().size().await.map_err(|error| {
                Status::unavailable(format!("the store does not say its size: {error}"))
            })?,
            tls_errors: self.handshakes.failed(),
            build: vec![
                ("major", major.to_owned()),
                ("minor", minor.to_owned()),
                ("git_version", tag.to_owned()),
                ("git_commit", orlop_rt::version::SHA.to_owned()),
                ("build_date", orlop_rt::version::BUILT.to_owned()),
                ("platform", concat!("linux/", "amd64").to_owned()),
            ],
            ..Now::default()
        };
        let open = texts(headers, "accept").iter().any(|one| one.contains("openmetrics-text"));
        let (kind, text) = self.visits.expose(!open, now).map_err(|error| {
            Status::internal(&format!("what the process occupies cannot be read: {error}"))
        })?;
        let mut response = Response::new(Body::from(text.into_bytes()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok(response)
    }

    /// `/livez` and those like it.
    pub(super) async fn health(&self, path: &str, query: &Query<'_>) -> Response<Body> {
        let storage = self.registry.storage();
        let fresh = timeout(PATIENCE, storage.fresh()).await;
        let state = health::State {
            store: matches!(fresh, Ok(Ok(_))),
            follows: matches!(fresh, Ok(Ok(true))),
            stopping: self.shutdown.is_cancelled(),
        };
        let health::Answer { code, text } = health::answer(path, &query.pairs(), &state);
        let mut response = Response::new(Body::from(text.into_bytes()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        let sniff = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, sniff);
        response
    }

    /// `/openapi/v2` and `/openapi/v3`, made by a thread that may take its time.
    pub(super) async fn openapi(
        &self,
        path: &str,
        headers: &HeaderMap,
        query: &Query<'_>,
    ) -> Result<Response<Body>, Status> {
        let (path, headers) = (path.to_owned(), headers.clone());
        let hash = query.get("hash").map(str::to_owned);
        let made = tokio::task::spawn_blocking(move || {
            openapi::answer(&openapi::Request {
                path: &path,
                hash: hash.as_deref(),
                accept: &texts(&headers, "accept"),
                gzip: encoding::takes_gzip(&texts(&headers, "accept-encoding")),
                if_none_match: headers.get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok()),
                now: OffsetDateTime::now_utc(),
            })
        });
        let made = made.await.map_err(|error| Status::internal(&error.to_string()))??;
        let mut response = Response::new(match made.body {
            Cow::Borrowed(bytes) => Body::Whole(Bytes::from_static(bytes)),
            Cow::Owned(bytes) => bytes.into(),
        });
        *response.status_mut() = StatusCode::from_u16(made.code).unwrap_or_default();
        for (name, value) in made.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        Ok(response)
    }

    /// Answers what is asked by posting an object that nobody stores.
    pub(super) fn review(&self, call: &Call<'_>, body: &[u8]) -> Result<Response<Body>, Status> {
        let resource = call.target.resource;
        let (read, media) = call.read_review(body)?;
        let answered = match resource.plural {
            "tokenreviews" => {
                review::token(&self.authenticator(), read, std::time::SystemTime::now())?
            }
            "selfsubjectreviews" => review::oneself(call.user, read),
            _ => reviews::answer(
                resource,
                call.target.namespace,
                call.user,
                read,
                &self.authorizers,
            )?,
        };
        let body = form::encode(media.encoding, &Value::Object(answered));
        Ok(answer(StatusCode::CREATED, Media { view: View::Whole, ..media }, body.into()))
    }
}

/// `/version`.
fn version() -> Value {
    let (major, minor, tag) = VERSION;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": tag,
        "gitCommit": orlop_rt::version::SHA,
        "gitTreeState": "clean",
        "buildDate": orlop_rt::version::BUILT,
        "goVersion": orlop_rt::version::COMPILER,
        "compiler": "rustc",
        "platform": concat!("linux/", "amd64"),
    })
}

/// What `/` lists.
fn paths() -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for resource in crate::resources::RESOURCES.iter().filter(|resource| !resource.group.is_empty())
    {
        paths.push(format!("/apis/{}", resource.group));
        paths.push(format!("/apis/{}", resource.api_version()));
    }
    orlop_rt::sort(&mut paths);
    paths.dedup();
    paths
}
