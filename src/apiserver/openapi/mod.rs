//! The documents in which clients read how objects look and what can be done with them: OpenAPI 3.0 for each group
//! version, and Swagger 2.0 for all of them, in JSON and in the protobuf of old clients.
//!
//! - `definitions`: the types, described by what comes with this program.
//! - `operations`: paths and what can be done there.
//! - `gnostic`: version 2 in protobuf.
//!
//! Documents are made when the first of their kind is asked for, which takes a moment: [`answer`] is for threads that
//! may block. Only their compressed bytes stay in memory.

mod definitions;
mod gnostic;
mod operations;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write};
use std::sync::LazyLock;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

use crate::encoding;
use crate::resources::RESOURCES;
use crate::status::Status;
use definitions::{Definitions, Form, META};
use operations::Path;

/// Who asks for which document, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `/openapi/v3/apis/apps/v1`.
    pub path: &'a str,
    /// The parameter `hash`.
    pub hash: Option<&'a str>,
    /// The headers `Accept`.
    pub accept: &'a [&'a str],
    /// Does the client take gzip?
    pub gzip: bool,
    /// The header `If-None-Match`.
    pub if_none_match: Option<&'a str>,
    /// When.
    pub now: OffsetDateTime,
}

/// What is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// 200, 301, 304 or 404.
    pub code: u16,
    /// Besides those that all answers have.
    pub headers: Vec<(&'static str, String)>,
    /// In gzip if the headers say so.
    pub body: Cow<'static, [u8]>,
}

/// Is it the path of a document?
#[must_use]
pub fn is_document(path: &str) -> bool {
    matches!(path, "/openapi/v2" | "/openapi/v3") || path.starts_with("/openapi/v3/")
}

/// The answer to a request for a document. The first one takes about a second of a small machine.
///
/// # Errors
/// 406.
pub fn answer(request: &Request<'_>) -> Result<Answer, Status> {
    if request.path == "/openapi/v2" {
        return second(request);
    }
    if encoding::choose(request.accept, &[JSON]).is_none() {
        return Err(Status::not_acceptable(&[JSON]));
    }
    let third = &*THIRD;
    if request.path == "/openapi/v3" {
        return Ok(document(&third.index, request, JSON, Vec::new()));
    }
    let name = request.path.strip_prefix("/openapi/v3/").unwrap_or_default();
    let Some(found) = third.documents.get(name) else {
        let headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
        return Ok(Answer { code: 404, headers, body: b"404 page not found\n".into() });
    };
    Ok(match request.hash {
        None => document(found, request, JSON, Vec::new()),
        // It never changes.
        Some(hash) if hash.eq_ignore_ascii_case(&found.hash) => {
            let expires = (request.now + Duration::days(365)).to_offset(time::UtcOffset::UTC);
            let expires = expires.format(HTTP_DATE).unwrap_or_default();
            let headers =
                vec![("cache-control", "public, immutable".to_owned()), ("expires", expires)];
            document(found, request, JSON, headers)
        }
        Some(_) => Answer {
            code: 301,
            headers: vec![("location", location(name, &found.hash))],
            body: Cow::Borrowed(&[]),
        },
    })
}

const JSON: &str = "application/json";
const SECOND: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// As clients ask for it.
const SECOND_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// RFC 9110 §5.6.7.
const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

fn second(request: &Request<'_>) -> Result<Answer, Status> {
    match encoding::choose(request.accept, &[JSON, SECOND_ASKED, SECOND]) {
        Some(JSON) => Ok(document(&SECOND_JSON, request, JSON, Vec::new())),
        Some(_) => Ok(document(&SECOND_PROTOBUF, request, SECOND, Vec::new())),
        None => Err(Status::not_acceptable(&[JSON, SECOND])),
    }
}

fn location(name: &str, hash: &str) -> String {
    format!("/openapi/v3/{name}?hash={hash}")
}

/// What is known of a document is not sent again.
fn document(
    found: &'static Document,
    request: &Request<'_>,
    media_type: &str,
    mut headers: Vec<(&'static str, String)>,
) -> Answer {
    let tag = format!("\"{}\"", found.hash);
    let known = request.if_none_match.is_some_and(|tags| {
        tags.split(',').map(str::trim).any(|known| known.trim_start_matches("W/") == tag)
    });
    headers.push(("etag", tag));
    headers.push(("vary", "Accept, Accept-Encoding".to_owned()));
    if known {
        return Answer { code: 304, headers, body: Cow::Borrowed(&[]) };
    }
    headers.push(("content-type", media_type.to_owned()));
    if request.gzip {
        headers.push(("content-encoding", "gzip".to_owned()));
        return Answer { code: 200, headers, body: Cow::Borrowed(&found.packed) };
    }
    Answer { code: 200, headers, body: found.unpacked().into() }
}

/// A document as it is kept.
struct Document {
    /// Of its bytes, in hex.
    hash: String,
    /// In gzip.
    packed: Vec<u8>,
}

impl Document {
    fn unpacked(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        GzDecoder::new(&self.packed[..]).read_to_end(&mut bytes).expect("it was packed here");
        bytes
    }
}

/// Packs a document, and sums it up, while it is made.
struct Packer {
    sum: Context,
    packed: GzEncoder<Vec<u8>>,
}

impl Packer {
    fn new() -> Self {
        Self {
            sum: Context::new(&SHA256),
            packed: GzEncoder::new(Vec::new(), Compression::default()),
        }
    }

    /// `"name":value`, and the comma before all but the first.
    fn entry(&mut self, first: bool, name: &str, value: &Value) {
        let comma = if first { "" } else { "," };
        self.put(format!("{comma}{}:{value}", Value::from(name)).as_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.write_all(bytes).expect("memory takes what is written");
    }

    fn done(self) -> Document {
        let mut hash = String::new();
        for byte in self.sum.finish().as_ref() {
            hash += &format!("{byte:02X}");
        }
        let mut packed = self.packed.finish().expect("memory takes what is written");
        packed.shrink_to_fit();
        Document { hash, packed }
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sum.update(bytes);
        self.packed.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All of version 3.
struct Third {
    index: Document,
    /// By what follows `/openapi/v3/`.
    documents: BTreeMap<String, Document>,
}

static THIRD: LazyLock<Third> = LazyLock::new(|| {
    let definitions = Definitions::read();
    let mut documents = BTreeMap::new();
    for (name, paths) in parts() {
        documents.insert(name, third(&definitions, &paths));
    }
    let mut index = Packer::new();
    index.put(b"{\"paths\":{");
    for (place, (name, document)) in documents.iter().enumerate() {
        let entry = json!({"serverRelativeURL": location(name, &document.hash)});
        index.entry(place == 0, name, &entry);
    }
    index.put(b"}}");
    Third { index: index.done(), documents }
});

static SECOND_JSON: LazyLock<Document> = LazyLock::new(|| {
    let mut out = Packer::new();
    out.put(b"{\"swagger\":\"2.0\",");
    out.entry(true, "info", &info());
    out.put(b",\"paths\":{");
    let paths: Vec<Path> = parts().into_values().flatten().collect();
    for (place, path) in paths.iter().enumerate() {
        out.entry(place == 0, &path.path, &path.item(Form::V2));
    }
    out.put(b"},\"definitions\":{");
    let definitions = Definitions::read();
    for (place, name) in definitions.closure(spoken_of(&paths, Form::V2)).iter().enumerate() {
        out.entry(place == 0, name, &definitions.of(name, Form::V2));
    }
    let (security, all) = security();
    out.put(b"},");
    out.entry(true, "securityDefinitions", &security);
    out.entry(false, "security", &all);
    out.put(b"}");
    out.done()
});

static SECOND_PROTOBUF: LazyLock<Document> = LazyLock::new(|| {
    let paths: Vec<Path> = parts().into_values().flatten().collect();
    let definitions = Definitions::read();
    let names = definitions.closure(spoken_of(&paths, Form::V2));
    let mut out = Packer::new();
    out.put(&gnostic::document(
        &info(),
        paths.iter().map(|path| (path.path.as_str(), path.item(Form::V2))),
        names.iter().map(|name| (name.as_str(), definitions.of(name, Form::V2))),
    ));
    out.done()
});

fn third(definitions: &Definitions, paths: &[Path]) -> Document {
    let mut out = Packer::new();
    out.put(b"{\"openapi\":\"3.0.0\",");
    out.entry(true, "info", &info());
    out.put(b",\"paths\":{");
    for (place, path) in paths.iter().enumerate() {
        out.entry(place == 0, &path.path, &path.item(Form::V3));
    }
    out.put(b"},\"components\":{\"schemas\":{");
    for (place, name) in definitions.closure(spoken_of(paths, Form::V3)).iter().enumerate() {
        out.entry(place == 0, name, &definitions.of(name, Form::V3));
    }
    let (security, all) = security();
    out.put(b"},");
    out.entry(true, "securitySchemes", &security);
    out.put(b"},");
    out.entry(true, "security", &all);
    out.put(b"}");
    out.done()
}

fn spoken_of(paths: &[Path], form: Form) -> BTreeSet<String> {
    paths.iter().flat_map(|path| path.definitions(form)).collect()
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

/// How one proves who one is, and that all paths take it.
fn security() -> (Value, Value) {
    let token = json!({
        "type": "apiKey",
        "name": "authorization",
        "in": "header",
        "description": "A bearer token, behind the word Bearer.",
    });
    (json!({"BearerToken": token}), json!([{"BearerToken": []}]))
}

/// The paths of each document of version 3, by its name.
fn parts() -> BTreeMap<String, Vec<Path>> {
    let mut parts = BTreeMap::<String, Vec<Path>>::new();
    let meta = |name: &str| format!("{META}{name}");
    let mut add = |name: &str, id: &str, about: &str, answer: Option<&str>| {
        let path = format!("/{name}/");
        parts.insert(name.to_owned(), vec![operations::document(&path, id, about, answer)]);
    };
    add(
        "api",
        "getCoreAPIVersions",
        "Tells the versions of the core group.",
        Some(&meta("APIVersions")),
    );
    add("apis", "getAPIVersions", "Tells the groups.", Some(&meta("APIGroupList")));
    let version = "io.k8s.apimachinery.pkg.version.Info";
    add("version", "getCodeVersion", "Tells which version this is.", Some(version));
    add(
        ".well-known/openid-configuration",
        "getServiceAccountIssuerOpenIDConfiguration",
        "Tells who signs the tokens of service accounts.",
        None,
    );
    add(
        "openid/v1/jwks",
        "getServiceAccountIssuerOpenIDKeyset",
        "Tells the keys they are signed with.",
        None,
    );
    for resource in RESOURCES.iter() {
        let base = if resource.group.is_empty() { "api" } else { "apis" };
        let name = format!("{base}/{}", resource.api_version());
        let id =
            |what: &str, of: &str| format!("get{what}:{of}").replace(['/', '.', ':', '-'], "_");
        if !resource.group.is_empty() {
            let group = format!("apis/{}", resource.group);
            parts.entry(group.clone()).or_insert_with(|| {
                let path = format!("/{group}/");
                let about = "Tells the versions of the group.";
                let answer = Some(format!("{META}APIGroup"));
                vec![operations::document(
                    &path,
                    &id("APIGroup", resource.group),
                    about,
                    answer.as_deref(),
                )]
            });
        }
        let paths = parts.entry(name.clone()).or_insert_with(|| {
            let about = "Tells what there is.";
            let id = id("APIResources", &resource.api_version());
            let answer = Some(format!("{META}APIResourceList"));
            vec![operations::document(&format!("/{name}/"), &id, about, answer.as_deref())]
        });
        paths.extend(operations::of(resource));
    }
    parts
}
