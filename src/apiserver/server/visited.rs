//! Answers on their way out, with the visit of the request: what is sent is counted, and the visit ends when the last
//! byte was taken, or when nobody takes any more.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Response};
use http_body::Frame;
use serde_json::Value;
use time::OffsetDateTime;

use super::body::Body;
use crate::audit::Outcome;
use crate::encoding::{self, Encoding, Patch};
use crate::resources::RESOURCES;
use crate::status::Status;
use crate::visit::Visit;
use crate::{json, protobuf, yaml};

/// The body of an answer, and what ends with it.
#[derive(Debug)]
pub(crate) struct Visited {
    body: Body,
    sent: u64,
    ending: Option<Box<Ending>>,
}

/// What is known of an answer when its head is sent.
#[derive(Debug)]
struct Ending {
    visit: Visit,
    code: u16,
    refused: Option<Status>,
    response: Option<Value>,
}

impl Visited {
    /// The answer of a request; without a visit nothing ends with it.
    pub(crate) fn of(
        response: Response<Body>,
        visit: Option<Visit>,
        refused: Option<Status>,
    ) -> Response<Self> {
        let (parts, body) = response.into_parts();
        let code = parts.status.as_u16();
        let ending = visit.map(|visit| {
            if matches!(body, Body::Stream(_)) {
                visit.started(code, OffsetDateTime::now_utc());
            }
            let response = match &body {
                _ if !visit.wants_response() || refused.is_some() => None,
                Body::Whole(bytes) if parts.headers.contains_key(CONTENT_ENCODING) => {
                    unpacked(bytes).and_then(|bytes| understood(&parts.headers, &bytes))
                }
                Body::Whole(bytes) => understood(&parts.headers, bytes),
                Body::Items(items) => serde_json::from_slice(&items.text()).ok(),
                Body::Empty | Body::Stream(_) => None,
            };
            Box::new(Ending { visit, code, refused, response })
        });
        Response::from_parts(parts, Self { body, sent: 0, ending })
    }
}

/// What was packed here.
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    encoding::unpacked(Some("gzip"), bytes.to_vec(), usize::MAX).ok()
}

impl Drop for Visited {
    fn drop(&mut self) {
        let Some(ending) = self.ending.take() else { return };
        let Ending { visit, code, refused, response } = *ending;
        let outcome = refused.as_ref().map_or(Outcome::Code(code), Outcome::Refused);
        visit.finish(outcome, self.sent, response.as_ref(), OffsetDateTime::now_utc());
    }
}

impl http_body::Body for Visited {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, |data| data.remaining());
            self.sent = self.sent.saturating_add(bytes as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A body as JSON, to be kept; none if it is in no form that can be told so.
pub(super) fn understood(headers: &HeaderMap, bytes: &[u8]) -> Option<Value> {
    if bytes.is_empty() {
        return None;
    }
    let sent = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match encoding::patch(sent, &Patch::ALL) {
        Ok(Patch::Apply) => return yaml::parse(bytes).ok().map(|body| Value::Object(body.object)),
        Ok(_) => return serde_json::from_slice(bytes).ok(),
        Err(_) => {}
    }
    let object = match encoding::body(sent).ok()? {
        Encoding::Json => json::parse(bytes).ok()?.object,
        Encoding::Yaml => yaml::parse(bytes).ok()?.object,
        Encoding::Protobuf => {
            let sealed = protobuf::open(bytes).ok()?;
            let known = RESOURCES.iter().find(|resource| {
                resource.kind == sealed.kind && resource.api_version() == sealed.api_version
            })?;
            let mut object = protobuf::decode(sealed.raw, known.schema).ok()?;
            object.insert("kind".to_owned(), sealed.kind.into());
            object.insert("apiVersion".to_owned(), sealed.api_version.into());
            object
        }
    };
    Some(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::super::body::Items;
    use super::*;
    use crate::audit::Head;
    use crate::authz::Action;
    use crate::metrics::Now;
    use crate::object::User;
    use crate::request::info;
    use crate::resources::find;
    use crate::storage::cache::Entry;
    use crate::visit::{Options, Visits};

    #[test]
    fn bodies_are_understood_in_every_form() {
        let of = |kind: &'static str, bytes: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            understood(&headers, bytes)
        };
        let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "b"}});
        assert_eq!(of("application/json", map.to_string().as_bytes()), Some(map.clone()));
        assert_eq!(of("application/json-patch+json", b"[1]"), Some(json!([1])));
        assert_eq!(of("application/apply-patch+yaml", b"a: 1"), Some(json!({"a": 1})));
        let schema = find("", "v1", "configmaps").expect("it is in the table").schema;
        let raw = protobuf::encode(map.as_object().expect("it is one"), schema);
        let sealed = protobuf::seal("v1", "ConfigMap", &raw);
        let read = of("application/vnd.kubernetes.protobuf", &sealed).expect("it is a ConfigMap");
        assert_eq!((&read["kind"], &read["data"]), (&map["kind"], &map["data"]));
        assert_eq!(of("application/json", b""), None);
        assert_eq!(of("application/json", b"{"), None);
        assert_eq!(of("image/png", b"x"), None);
    }

    #[tokio::test]
    async fn a_visit_ends_with_the_last_byte_or_when_nobody_takes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (policy, log) = (folder.path().join("policy.yaml"), folder.path().join("audit.log"));
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: RequestResponse}]\nomitStages: [RequestReceived]\n";
        std::fs::write(&policy, text).expect("written");
        let options = Options {
            audit_policy_file: Some(policy),
            audit_log_path: Some(log.clone()),
            ..Options::default()
        };
        let visits = Visits::open(&options).expect("it is sound");
        let user = User::default();
        let visit = |path| {
            let get = info("GET", path, &[]);
            let mut visit = visits.begin(&get, false, false);
            let head = Head { id: "i", uri: path, source_ips: &[], user_agent: "" };
            visit.known(&Action::of(&user, &get, path), head, OffsetDateTime::UNIX_EPOCH);
            visit.enter(&visits, &user, &get).expect("there is a place");
            visit
        };
        let inside = || {
            let (_, text) = visits.expose(true, Now::default()).expect("/proc is there");
            text.contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1\n")
        };
        let whole = Response::new(Body::from(b"{\"a\":1}".to_vec()));
        let whole = Visited::of(whole, Some(visit("/version")), None);
        assert!(inside());
        let bytes = whole.into_body().collect().await.expect("it cannot fail").to_bytes();
        assert_eq!(&bytes[..], b"{\"a\":1}");
        assert!(!inside());
        let entry = |name: &str| {
            let maps = find("", "v1", "configmaps").expect("it is in the table");
            let object = json!({"metadata": {"name": name}});
            let object = object.as_object().cloned().expect("it is one");
            Arc::new(Entry::new(maps, name, 7, object))
        };
        for gzip in [false, true] {
            let entries = vec![entry("a"), entry("b")];
            let items = Items::new(b"{\"items\":[".to_vec(), entries, b"]}", gzip);
            let list = Response::new(Body::Items(Box::new(items)));
            drop(Visited::of(list, Some(visit("/list")), None));
        }
        let mut packed = Response::new(Body::from(encoding::gzip(b"{\"b\":2}")));
        packed.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        drop(Visited::of(packed, Some(visit("/packed")), None));
        let stream = Body::stream(futures_util::stream::pending());
        let stream = Visited::of(Response::new(stream), Some(visit("/x")), None);
        assert!(inside());
        drop(stream);
        assert!(!inside());
        drop(visits);
        let kept = std::fs::read_to_string(log).expect("it is there");
        let kept: Vec<Value> =
            kept.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let stages: Vec<_> = kept.iter().map(|line| line["stage"].as_str().unwrap_or("")).collect();
        let complete = "ResponseComplete";
        assert_eq!(stages, [complete, complete, complete, complete, "ResponseStarted", complete]);
        assert_eq!(kept[0]["responseObject"], json!({"a": 1}));
        for list in &kept[1..3] {
            let names = list["responseObject"]["items"].as_array().expect("a list");
            let names: Vec<_> = names.iter().map(|item| &item["metadata"]["name"]).collect();
            assert_eq!(names, ["a", "b"]);
        }
        assert_eq!(kept[3]["responseObject"], json!({"b": 2}));
    }
}
