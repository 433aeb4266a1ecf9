//! The server: from a connection to an answer.
//!
//! ```text
//! TLS ─▶ what is asked (request) ─▶ who asks (authn) ─▶ may they (authz) ─▶ body ─▶ registry ─▶ form
//! ```
//!
//! - [`objects`]: requests about objects; `documents`: about the server itself.
//! - `parts`: scales, bindings, evictions, tokens.
//! - [`query`]: parameters; `patch`: what PATCH makes of an object; `watch`: changes as they come.
//! - [`form`] and [`body`]: how answers are written, and sent.

mod body;
mod connection;
#[cfg(test)]
mod disconnection;
mod documents;
mod form;
mod objects;
mod parts;
mod patch;
pub mod query;
mod visited;
mod watch;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use orlop_rpc::tls::Tally;
use orlop_rt::CancellationToken;
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing::warn;

use self::body::Body;
use self::objects::Call;
use self::query::Query;
use self::visited::Visited;
use crate::audit::Head;
use crate::authn::{Authenticator, Settings, impersonation};
use crate::authz::{Action, Authorizers};
use crate::encoding::{self, BODY_LIMIT, Media, Offers, Patch};
use crate::object::User;
use crate::random;
use crate::registry::{Registry, Target};
use crate::request::{self, Asked, Info};
use crate::resources::{self, RESOURCES, Resource};
use crate::status::Status;
use crate::visit::{Visit, Visits};
use crate::{health, openapi};

use self::connection::Origin;
pub(crate) use self::connection::serve;

/// How long a request may take that does not say.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) registry: Registry,
    pub(crate) authenticator: RwLock<Arc<Authenticator>>,
    pub(crate) authorizers: Authorizers,
    /// Where clients reach it: `10.0.0.1:6443`.
    pub(crate) address: String,
    /// Of its listener.
    pub(crate) handshakes: Arc<Tally>,
    pub(crate) visits: Visits,
    pub(crate) shutdown: CancellationToken,
}

impl Server {
    /// Whom it believes, as of now.
    pub(crate) fn authenticator(&self) -> Arc<Authenticator> {
        Arc::clone(&self.authenticator.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Believes others from here on.
    pub(crate) fn believe(&self, settings: Settings) {
        let objects = Arc::clone(self.registry.storage().cache());
        match Authenticator::new(settings, objects) {
            Ok(fresh) => {
                let mut known = self.authenticator.write().unwrap_or_else(PoisonError::into_inner);
                *known = Arc::new(fresh);
            }
            Err(error) => {
                warn!(error = %orlop_rt::Chain(&error), "whom the server believes stays as it was");
            }
        }
    }

    /// Answers a request, whatever it is.
    pub(crate) async fn answer<B>(
        self: Arc<Self>,
        from: Origin,
        request: Request<B>,
    ) -> Response<Visited>
    where
        B: http_body::Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let id = audit_id(&parts.headers);
        let accept = parts.headers.get_all(ACCEPT).iter().cloned().collect::<Vec<_>>();
        let mut visit = None;
        let answered = self.route(&from, &parts, body, &id, &mut visit).await;
        let (mut response, refused) = match answered {
            Ok(response) => (response, None),
            Err(status) => (refusal(&status, &accept), Some(status)),
        };
        if parts.method == Method::HEAD {
            *response.body_mut() = Body::Empty;
        }
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static("audit-id"), id);
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        Visited::of(response, visit, refused)
    }

    async fn route<B>(
        &self,
        from: &Origin,
        parts: &http::request::Parts,
        body: B,
        id: &HeaderValue,
        visit: &mut Option<Visit>,
    ) -> Result<Response<Body>, Status>
    where
        B: http_body::Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8();
        let path: Cow<'_, str> = path.map_err(|_| Status::bad_request("the path is not UTF-8"))?;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let pairs = query.pairs();
        let info = request::info(parts.method.as_str(), &path, &pairs);
        let headers = &parts.headers;
        let visit = visit.insert(self.visits.begin(
            &info,
            is_apply(headers),
            pairs.iter().any(|(name, value)| *name == "dryRun" && !value.is_empty()),
        ));
        let head = Head {
            id: id.to_str().unwrap_or_default(),
            uri: parts.uri.path_and_query().map_or("", |uri| uri.as_str()),
            source_ips: &sources(from, headers),
            user_agent: text(headers, USER_AGENT),
        };
        let asker = self
            .authenticator()
            .authenticate(&from.certificates, headers, &path, SystemTime::now())
            .inspect_err(|_| {
                let action = Action::of(&NOBODY, &info, &path);
                visit.unknown(&action, head, &attempted(from, headers), OffsetDateTime::now_utc());
            })?;
        visit.known(&Action::of(&asker, &info, &path), head, OffsetDateTime::now_utc());
        let user = self.acting(asker, headers, visit)?;
        visit.enter(&self.visits, &user, &info)?;
        let decision = self.authorizers.check(&Action::of(&user, &info, &path));
        visit.decided(&decision);
        decision?;
        let Some(asked) = info.resource else {
            if !matches!(parts.method, Method::GET | Method::HEAD) {
                return Err(Status::method_not_allowed());
            }
            return match &*path {
                "/metrics" => self.metrics(headers).await,
                path if health::is_probe(path) => Ok(self.health(path, &query).await),
                path if openapi::is_document(path) => self.openapi(path, headers, &query).await,
                path => self.document(&user, path, headers),
            };
        };
        let Some(resource) = resources::find(asked.group, asked.version, asked.plural) else {
            return Err(unknown(asked));
        };
        let target = self.target(resource, &info, asked)?;
        let call = Call {
            user: &user,
            verb: info.verb,
            target,
            query: &query,
            headers,
            shutdown: &self.shutdown,
        };
        let takes = query.timeout()?.map_or(TIMEOUT, |asked| asked.min(TIMEOUT));
        let long = info.verb == "watch";
        let answering = async {
            let body = read_body(headers, body).await?;
            if visit.wants_request()
                && let Some(body) = visited::understood(headers, &body)
            {
                visit.read(&body);
            }
            if resource.is_stored()
                || !resource.verbs.contains(&"create")
                || resource.plural == "bindings"
            {
                call.answer(&self.registry, &self.authenticator(), &body).await
            } else {
                self.review(&call, &body)
            }
        };
        if long {
            return answering.await;
        }
        timeout(takes, answering).await.unwrap_or_else(|_| {
            Err(Status::timeout(format!(
                "the request did not end in the {} s it was given",
                takes.as_secs_f32()
            )))
        })
    }

    /// Who asks, or for whom.
    fn acting(&self, asker: User, headers: &HeaderMap, visit: &mut Visit) -> Result<User, Status> {
        let acted = impersonation::target(headers, |asked| {
            let action =
                Action { user: &asker, verb: "impersonate", asked: Some(*asked), path: "" };
            self.authorizers.check(&action).map(drop)
        })?;
        Ok(match acted {
            Some(acted) => {
                visit.acts_as(&acted);
                acted
            }
            None => asker,
        })
    }

    /// What a path names, if there is such a thing and the verb is one of its own.
    fn target<'a>(
        &self,
        resource: &'static Resource,
        info: &Info<'a>,
        asked: Asked<'a>,
    ) -> Result<Target<'a>, Status> {
        let verbs = if asked.subresource.is_empty() {
            &resource.verbs
        } else {
            let name = asked.subresource.split('/').next().unwrap_or_default();
            &resource.subresource(name).ok_or_else(Status::no_resource)?.verbs
        };
        let in_a_namespace = !asked.namespace.is_empty() && resource.plural != "namespaces";
        if in_a_namespace && !resource.namespaced {
            return Err(Status::no_resource());
        }
        let everywhere = resource.namespaced && asked.namespace.is_empty();
        let of_one = !matches!(info.verb, "list" | "watch");
        let posts_a_review = !resource.is_stored() && info.verb == "create";
        if !verbs.contains(&info.verb) || everywhere && of_one && !posts_a_review {
            return Err(Status::method_not_allowed());
        }
        let namespace = if resource.namespaced { asked.namespace } else { "" };
        Ok(Target { resource, namespace, name: asked.name, subresource: asked.subresource })
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn is_apply(headers: &HeaderMap) -> bool {
    text(headers, CONTENT_TYPE).starts_with(Patch::Apply.media_type())
}

/// Where a request says it comes from, and where it does.
fn sources(from: &Origin, headers: &HeaderMap) -> Vec<String> {
    let said = text(headers, HeaderName::from_static("x-forwarded-for")).split(',');
    let said = said.filter_map(|text| text.trim().parse::<IpAddr>().ok());
    said.chain([from.address]).map(|ip| ip.to_string()).collect()
}

/// Who cannot be told.
static NOBODY: LazyLock<User> = LazyLock::new(User::default);

/// How a client says who it is, as the reference tells it in its log.
fn attempted(from: &Origin, headers: &HeaderMap) -> Vec<&'static str> {
    let said = text(headers, AUTHORIZATION).trim();
    let (scheme, rest) = said.split_once(' ').unwrap_or((said, ""));
    let with = |known: &str| scheme.eq_ignore_ascii_case(known) && !rest.is_empty();
    [("basic", with("basic")), ("bearer", with("bearer")), ("x509", !from.certificates.is_empty())]
        .into_iter()
        .filter_map(|(name, tried)| tried.then_some(name))
        .collect()
}

/// Of a request, as its client names it or by a new name.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get("audit-id").filter(|value| !value.is_empty() && value.len() <= 64);
    let new = || HeaderValue::from_str(&random::uuid()).ok();
    given.cloned().or_else(new).unwrap_or(HeaderValue::from_static(""))
}

fn unknown(asked: Asked<'_>) -> Status {
    let known = RESOURCES
        .iter()
        .any(|resource| resource.group == asked.group && resource.version == asked.version);
    if known { Status::no_resource() } else { Status::no_path() }
}

async fn read_body<B>(headers: &HeaderMap, body: B) -> Result<Vec<u8>, Status>
where
    B: http_body::Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await;
    let bytes = match read {
        Ok(Ok(collected)) => collected.to_bytes().to_vec(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Status::too_large(BODY_LIMIT));
        }
        Ok(Err(error)) => return Err(Status::bad_request(format!("the body broke off: {error}"))),
        Err(_) => return Err(Status::timeout("the body of the request did not arrive in time")),
    };
    let packed = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    encoding::unpacked(packed, bytes, BODY_LIMIT)
}

/// A request that does not end well.
pub(crate) fn refusal(status: &Status, accept: &[HeaderValue]) -> Response<Body> {
    if status.is_plain() {
        let mut response = Response::new(Body::from(status.message.clone().into_bytes()));
        *response.status_mut() = StatusCode::NOT_FOUND;
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        return response;
    }
    let accept: Vec<&str> = accept.iter().filter_map(|value| value.to_str().ok()).collect();
    let offers = Offers { protobuf: true, ..Offers::default() };
    let media = encoding::negotiate(&accept, offers).unwrap_or(Media::JSON);
    let media = Media { view: Media::JSON.view, ..media };
    let body = form::encode(media.encoding, &status.body());
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = objects::answer(code, media, body.into());
    if status.details.retry_after_seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, status.details.retry_after_seconds.into());
    }
    response
}
