//! The verbs as HTTP has them: what a request's path, parameters and body mean, and what is answered.

use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY, WARNING};
use http::{HeaderMap, Response, StatusCode};
use orlop_rt::CancellationToken;
use serde_json::{Value, json};

use super::body::Body;
use super::form::{self, Form, ListMeta};
use super::parts::{self, SCALE};
use super::patch;
use super::query::{self, Query, Reading, Revision};
use super::watch::Watching;
use crate::authn::Authenticator;
use crate::encoding::{self, Encoding, Media, Offers, Patch};
use crate::object::{Object, User, text};
use crate::registry::{Done, How, Registry, Target, Writer};
use crate::resources::Resource;
use crate::schema::TypeId;
use crate::status::Status;
use crate::storage::cache::Listed;
use crate::strategy::DeleteOptions;
use crate::{json as reader, protobuf, table, yaml};

/// Objects of a collection that are deleted at a time: they share flushes of the disk.
const DELETIONS: usize = 64;
/// Warnings that a client gets of one request.
const MOST_WARNINGS: usize = 32;

/// A request about objects.
pub(crate) struct Call<'a> {
    pub(crate) user: &'a User,
    pub(crate) verb: &'static str,
    pub(crate) target: Target<'a>,
    pub(crate) query: &'a Query<'a>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) shutdown: &'a CancellationToken,
}

/// What a body is when it is read.
pub(super) struct Read {
    pub(super) object: Object,
    /// What a strict reader refuses.
    pub(super) findings: Vec<String>,
}

impl<'a> Call<'a> {
    /// Does what is asked. `body` is empty for what has none.
    pub(crate) async fn answer(
        &self,
        registry: &Registry,
        authenticator: &Authenticator,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let resource = self.target.resource;
        let part = self.target.subresource.split('/').next().unwrap_or_default();
        if matches!(part, "attach" | "exec" | "log" | "portforward" | "proxy") {
            return Err(Status::not_implemented(format!(
                "{}/{part} is asked of what runs there, and this server reaches neither kubelets nor services yet",
                resource.plural
            )));
        }
        match self.verb {
            "get" if self.target.subresource == "scale" => self.get_scale(registry).await,
            "get" => self.get(registry).await,
            "list" => self.list(registry).await,
            "watch" => self.watch(registry).await,
            "create" => self.create(registry, authenticator, body).await,
            "update" => self.put(registry, body).await,
            "patch" => self.patch(registry, body).await,
            "delete" => self.delete(registry, body).await,
            "deletecollection" => self.delete_collection(registry, body).await,
            _ => Err(Status::method_not_allowed()),
        }
        .inspect_err(|status| {
            tracing::debug!(resource = resource.plural, code = status.code, message = %status.message, "refused");
        })
    }

    fn form(&self, watch: bool) -> Result<Form, Status> {
        let offers = Offers { protobuf: true, views: true, discovery: false, watch };
        let media = encoding::negotiate(&texts(self.headers, "accept"), offers)?;
        let include = self.query.get("includeObject").unwrap_or_default();
        let include = table::Include::parse(include).ok_or_else(|| {
            Status::bad_request(format!(
                "the parameter includeObject is None, Metadata or Object, not {include:?}"
            ))
        })?;
        Ok(Form { resource: self.target.resource, media, include })
    }

    /// The form of an answer that is no object of the resource: a scale, a review.
    pub(super) fn plain(&self) -> Result<Media, Status> {
        let offers = Offers { protobuf: true, ..Offers::default() };
        encoding::negotiate(&texts(self.headers, "accept"), offers)
    }

    fn gzip(&self) -> bool {
        encoding::takes_gzip(&texts(self.headers, "accept-encoding"))
    }

    fn writer(&self, options: &str) -> Result<Writer<'a>, Status> {
        Ok(Writer { user: self.user, dry_run: self.query.dry_run(options)? })
    }

    async fn get(&self, registry: &Registry) -> Result<Response<Body>, Status> {
        let form = self.form(false)?;
        let entry = match query::get_revision(self.query)? {
            Revision::Any => registry.cached(self.target)?,
            Revision::AtLeast(revision) => {
                registry.storage().at_least(revision).await?;
                registry.cached(self.target)?
            }
            Revision::Newest | Revision::Exactly(_) => registry.get(self.target).await?,
        };
        let gzip = entry.body.len() > encoding::GZIP_FROM && self.gzip();
        Ok(packed(answer(StatusCode::OK, form.media, form.object(&entry, gzip)), gzip))
    }

    pub(super) fn other(&self, code: StatusCode, media: Media, object: Object) -> Response<Body> {
        answer(code, media, form::encode(media.encoding, &Value::Object(object)).into())
    }

    async fn list(&self, registry: &Registry) -> Result<Response<Body>, Status> {
        let form = self.form(false)?;
        let Target { resource, namespace, name, .. } = self.target;
        let reading = query::reading(resource, namespace, name, self.query, false)?;
        let listed = read_list(registry, resource, &reading).await?;
        let meta = list_meta(&reading, &listed);
        let size: usize = listed.entries.iter().map(|entry| entry.body.len()).sum();
        let gzip = size > encoding::GZIP_FROM && self.gzip();
        let body = form.list(listed.entries, &meta, gzip);
        Ok(packed(answer(StatusCode::OK, form.media, body), gzip))
    }

    async fn watch(&self, registry: &Registry) -> Result<Response<Body>, Status> {
        let form = self.form(true)?;
        let Target { resource, namespace, name, .. } = self.target;
        let reading = query::reading(resource, namespace, name, self.query, true)?;
        let storage = registry.storage().clone();
        let begun = Watching::begin(storage, form, reading, self.shutdown.clone()).await;
        let body = match begun {
            Ok(watching) => {
                Body::stream(futures_util::stream::unfold(watching, |mut watching| async move {
                    Some((watching.next().await?, watching))
                }))
            }
            // Clients know it from a stream that is there.
            Err(status) if matches!(status.code, 410 | 504) => {
                Body::Whole(form.frame("ERROR", status.body()))
            }
            Err(status) => return Err(status),
        };
        let media = Media {
            stream: form.media.stream || form.media.encoding == Encoding::Protobuf,
            ..form.media
        };
        Ok(answer(StatusCode::OK, media, body))
    }

    async fn create(
        &self,
        registry: &Registry,
        authenticator: &Authenticator,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let writer = self.writer("CreateOptions")?;
        let Target { resource, namespace, name, subresource } = self.target;
        if let Some(sub) = resource.subresource(subresource) {
            return self.create_part(registry, authenticator, writer, sub, body).await;
        }
        let form = self.form(false)?;
        let read = self.read(body, &resource.api_version(), resource.kind, resource.schema)?;
        let warnings = self.judge(&read.findings, &resource.api_version(), resource.kind)?;
        if resource.plural == "bindings" {
            let name = text(&read.object, "/metadata/name").to_owned();
            let pods = crate::resources::find("", "v1", "pods").ok_or_else(Status::no_resource)?;
            let target = Target::new(pods, namespace, &name).part("binding");
            parts::bind(registry, writer, target, &read.object).await?;
            return Ok(self.other(StatusCode::CREATED, self.plain()?, success(None)));
        }
        let target = Target::new(resource, namespace, name);
        let done = registry.create(writer, target, read.object).await?;
        let mut response = self.done(StatusCode::CREATED, form, &done);
        warn(&mut response, &warnings);
        Ok(response)
    }

    async fn put(&self, registry: &Registry, body: &[u8]) -> Result<Response<Body>, Status> {
        let writer = self.writer("UpdateOptions")?;
        let resource = self.target.resource;
        if self.target.subresource == "scale" {
            let (api_version, kind) = SCALE;
            let of = form::schema(api_version, kind).ok_or_else(Status::no_resource)?;
            let read = self.read(body, api_version, kind, of)?;
            let warnings = self.judge(&read.findings, api_version, kind)?;
            let given = |_| Ok(read.object.clone());
            return self.scale(registry, writer, How::Put, &warnings, given).await;
        }
        let form = self.form(false)?;
        let read = self.read(body, &resource.api_version(), resource.kind, resource.schema)?;
        let warnings = self.judge(&read.findings, &resource.api_version(), resource.kind)?;
        let may_create = matches!(
            (resource.group, resource.plural),
            ("coordination.k8s.io", "leases")
                | ("", "endpoints" | "events" | "limitranges" | "services")
                | ("events.k8s.io", "events")
                | ("rbac.authorization.k8s.io", _)
        );
        let (done, made) = registry
            .update(writer, self.target, How::Put, may_create, |_| Ok(read.object.clone()))
            .await?;
        let code = if made { StatusCode::CREATED } else { StatusCode::OK };
        let mut response = self.done(code, form, &done);
        warn(&mut response, &warnings);
        Ok(response)
    }

    async fn patch(&self, registry: &Registry, body: &[u8]) -> Result<Response<Body>, Status> {
        let offered = [Patch::Json, Patch::Merge, Patch::Strategic];
        let sent = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let patch = encoding::patch(sent, &offered)?;
        let writer = self.writer("PatchOptions")?;
        let resource = self.target.resource;
        if self.query.get("force").is_some() {
            let cause = crate::status::Cause::forbidden(
                "force",
                "may not be specified for non-apply patch",
            );
            return Err(Status::invalid_options("PatchOptions", vec![cause]));
        }
        let (change, mut findings) = patch::read(patch, body)?;
        let scales = self.target.subresource == "scale";
        let (api_version, kind, of) = if scales {
            let (api_version, kind) = SCALE;
            let of = form::schema(api_version, kind).ok_or_else(Status::no_resource)?;
            (api_version.to_owned(), kind, of)
        } else {
            (resource.api_version(), resource.kind, resource.schema)
        };
        let name = self.target.name;
        let mut found = Vec::new();
        let patched = |object: Object| {
            let object = change.apply(resource, name, of, object)?;
            let mut body = reader::Body { object, findings: Vec::new() };
            reader::check(&mut body, of)
                .map_err(|error| cannot_be_handled(&api_version, kind, &error.to_string()))?;
            same_kind(&body.object, &api_version, kind)?;
            found.clone_from(&body.findings);
            self.judge(&body.findings, &api_version, kind)?;
            Ok(body.object)
        };
        self.judge(&findings, &api_version, kind)?;
        let mut response = if scales {
            self.scale(registry, writer, How::Patch, &[], patched).await?
        } else {
            let form = self.form(false)?;
            let (done, _) =
                registry.update(writer, self.target, How::Patch, false, patched).await?;
            self.done(StatusCode::OK, form, &done)
        };
        findings.extend(found);
        warn(&mut response, &self.judge(&findings, &api_version, kind)?);
        Ok(response)
    }

    async fn delete(&self, registry: &Registry, body: &[u8]) -> Result<Response<Body>, Status> {
        let (options, writer) = self.delete_options(body)?;
        let form = self.form(false)?;
        let done = registry.delete(writer, self.target, &options).await?;
        let object = done.object(self.target.resource);
        match &done {
            // Pods are told as they were; of others that they are gone.
            Done::Removed(_) | Done::Dry(_) if self.target.resource.plural != "pods" => {
                Ok(self.other(StatusCode::OK, self.plain()?, success(Some((self.target, &object)))))
            }
            Done::Stored(_) if options.orphan_dependents == Some(false) => {
                Ok(self.done(StatusCode::ACCEPTED, form, &done))
            }
            _ => Ok(self.done(StatusCode::OK, form, &done)),
        }
    }

    async fn delete_collection(
        &self,
        registry: &Registry,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let (options, writer) = self.delete_options(body)?;
        let form = self.form(false)?;
        let Target { resource, namespace, name, .. } = self.target;
        let reading = query::reading(resource, namespace, name, self.query, false)?;
        let listed = read_list(registry, resource, &reading).await?;
        let meta = list_meta(&reading, &listed);
        let options = &options;
        let entries = futures_util::stream::iter(listed.entries.clone());
        let deletions = entries.map(|entry| async move {
            let target = Target::new(resource, entry.namespace(), entry.name());
            match registry.delete(writer, target, options).await {
                Ok(_) => Ok(()),
                // Others may remove, too.
                Err(status) if status.code == 404 => Ok(()),
                Err(status) => Err(status),
            }
        });
        deletions.buffer_unordered(DELETIONS).try_collect::<()>().await?;
        Ok(answer(StatusCode::OK, form.media, form.list(listed.entries, &meta, false)))
    }

    fn delete_options(&self, body: &[u8]) -> Result<(DeleteOptions, Writer<'a>), Status> {
        let mut given = if body.is_empty() { Object::new() } else { self.read_any(body)? };
        // What the body does not say, the parameters may.
        let mut add = |field: &str, value: Option<Value>| {
            if let (Some(value), false) = (value, given.contains_key(field)) {
                given.insert(field.to_owned(), value);
            }
        };
        let text = |name| self.query.get(name).map(Value::from);
        add("propagationPolicy", text("propagationPolicy"));
        add("orphanDependents", self.query.flag("orphanDependents")?.map(Value::from));
        add("gracePeriodSeconds", self.query.number("gracePeriodSeconds")?.map(Value::from));
        add("dryRun", text("dryRun").map(|value| json!([value])));
        let options = DeleteOptions::read(&given);
        let causes = options.validate();
        if !causes.is_empty() {
            return Err(Status::invalid_options("DeleteOptions", causes));
        }
        let writer = Writer { user: self.user, dry_run: !options.dry_run.is_empty() };
        Ok((options, writer))
    }

    /// `DeleteOptions` in any group and version that has them, or without any.
    fn read_any(&self, body: &[u8]) -> Result<Object, Status> {
        let of = form::schema("meta.k8s.io/v1", "DeleteOptions").ok_or_else(Status::no_resource)?;
        let mut object = self.decode(body, of, "v1", "DeleteOptions")?.object;
        if object.get("kind").is_some_and(|kind| kind != "DeleteOptions") {
            let kind = text(&object, "/kind");
            return Err(Status::bad_request(format!(
                "the body of a deletion is DeleteOptions, not a {kind}"
            )));
        }
        object.remove("kind");
        object.remove("apiVersion");
        Ok(object)
    }

    fn done(&self, code: StatusCode, form: Form, done: &Done) -> Response<Body> {
        let body = match done {
            Done::Stored(entry) | Done::Removed(entry) => form.object(entry, false),
            Done::Dry(object) => form.encode(&form.one(object.clone(), true)).into(),
        };
        answer(code, form.media, body)
    }

    /// Reads a review, and how it is answered.
    pub(super) fn read_review(&self, body: &[u8]) -> Result<(Object, Media), Status> {
        let resource = self.target.resource;
        let (api_version, kind) = (resource.api_version(), resource.kind);
        let media = self.plain()?;
        let mut read = self.read(body, &api_version, kind, resource.schema)?;
        self.judge(&read.findings, &api_version, kind)?;
        read.object.insert("kind".to_owned(), kind.into());
        read.object.insert("apiVersion".to_owned(), api_version.into());
        Ok((read.object, media))
    }

    /// Reads a body of a kind.
    pub(super) fn read(
        &self,
        body: &[u8],
        api_version: &str,
        kind: &str,
        of: TypeId,
    ) -> Result<Read, Status> {
        self.decode(body, of, api_version, kind)
    }

    fn decode(
        &self,
        body: &[u8],
        of: TypeId,
        api_version: &str,
        kind: &str,
    ) -> Result<Read, Status> {
        let sent = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let refused = |error: &dyn std::error::Error| {
            cannot_be_handled(api_version, kind, &error.to_string())
        };
        let mut body = match encoding::body(sent)? {
            Encoding::Json => reader::parse(body).map_err(|error| refused(&error))?,
            Encoding::Yaml => yaml::parse(body).map_err(|error| refused(&error))?,
            Encoding::Protobuf => {
                let sealed = protobuf::open(body).map_err(|error| refused(&error))?;
                let mut object =
                    protobuf::decode(sealed.raw, of).map_err(|error| refused(&error))?;
                for (name, value) in [("kind", sealed.kind), ("apiVersion", sealed.api_version)] {
                    if !value.is_empty() {
                        object.insert(name.to_owned(), value.into());
                    }
                }
                reader::Body { object, findings: Vec::new() }
            }
        };
        same_kind(&body.object, api_version, kind)?;
        reader::check(&mut body, of).map_err(|error| refused(&error))?;
        Ok(Read { object: body.object, findings: body.findings })
    }

    /// What is told of what a strict reader found, as the client wants it.
    pub(super) fn judge(
        &self,
        findings: &[String],
        api_version: &str,
        kind: &str,
    ) -> Result<Vec<String>, Status> {
        match self.query.get("fieldValidation") {
            Some("Strict") if !findings.is_empty() => {
                let why = format!("strict decoding error: {}", findings.join(", "));
                Err(cannot_be_handled(api_version, kind, &why))
            }
            Some("Strict" | "Ignore") => Ok(Vec::new()),
            None | Some("Warn") => Ok(findings.to_vec()),
            Some(other) => {
                let known = ["Ignore", "Strict", "Warn"];
                let cause =
                    crate::status::Cause::not_supported("fieldValidation", &json!(other), &known);
                Err(Status::invalid_options("CreateOptions", vec![cause]))
            }
        }
    }
}

fn cannot_be_handled(api_version: &str, kind: &str, why: &str) -> Status {
    let version = api_version.rsplit('/').next().unwrap_or_default();
    Status::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
    ))
}

/// An object that says of which kind it is must be of the one that belongs here. Objects that say nothing are.
fn same_kind(object: &Object, api_version: &str, kind: &str) -> Result<(), Status> {
    if kind == "DeleteOptions" {
        return Ok(());
    }
    let given = (text(object, "/apiVersion"), text(object, "/kind"));
    let is = |given: &str, expected: &str| given.is_empty() || given == expected;
    // kubectl 1.20 evicts by the name of before.
    let old_eviction = kind == "Eviction" && given.0 == "policy/v1beta1";
    if !is(given.1, kind) {
        let version = given.0.rsplit('/').next().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "{} in version {version:?} cannot be handled as a {kind}: converting to {kind}: unknown conversion",
            given.1
        )));
    }
    if !is(given.0, api_version) && !old_eviction {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({api_version})",
            given.0
        )));
    }
    Ok(())
}

/// Reads a list as it is asked for.
async fn read_list(
    registry: &Registry,
    resource: &'static Resource,
    reading: &Reading,
) -> Result<Listed, Status> {
    let storage = registry.storage();
    let Reading { selection, limit, .. } = reading;
    if let Some((after, at)) = &reading.from {
        let listed = storage.list(resource.stored(), selection, after, *limit, *at).await;
        return match listed {
            Ok(listed) => Ok(listed),
            // The client may go on from there with what is there now.
            Err(mut status) if status.code == 410 => {
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
                    .clone_into(&mut status.message);
                status.details.token = query::token(after, None);
                Err(status)
            }
            Err(status) => Err(status),
        };
    }
    match reading.revision {
        Revision::Newest => registry.list(resource.stored(), selection, *limit).await,
        Revision::Exactly(revision) => {
            storage.list(resource.stored(), selection, "", *limit, Some(revision)).await
        }
        Revision::Any | Revision::AtLeast(_) => {
            if let Revision::AtLeast(revision) = reading.revision {
                storage.at_least(revision).await?;
            }
            Ok(storage.select(resource.stored(), selection, *limit))
        }
    }
}

fn list_meta(reading: &Reading, listed: &Listed) -> ListMeta {
    let more = listed.remaining > 0;
    let last = listed.entries.last().filter(|_| more);
    ListMeta {
        revision: listed.revision,
        token: last.map(|last| query::token(last.place(), Some(listed.revision))),
        remaining: (more && !reading.selection.selects()).then_some(listed.remaining),
    }
}

/// What is told of an object that is gone, or of something that was done.
pub(super) fn success(gone: Option<(Target<'_>, &Object)>) -> Object {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
    });
    if let Some((target, object)) = gone {
        let mut details = json!({
            "name": text(object, "/metadata/name"),
            "kind": target.resource.plural,
            "uid": text(object, "/metadata/uid"),
        });
        if !target.resource.group.is_empty() {
            details["group"] = target.resource.group.into();
        }
        status["details"] = details;
    } else {
        status["code"] = 201.into();
    }
    match status {
        Value::Object(status) => status,
        _ => Object::new(),
    }
}

/// All values of a header.
pub(crate) fn texts<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
}

/// An answer with a body in a form.
pub(crate) fn answer(code: StatusCode, media: Media, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    if let Ok(value) = HeaderValue::from_str(&media.content_type()) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

/// Says that the body of an answer is packed, if it is.
fn packed(mut response: Response<Body>, gzip: bool) -> Response<Body> {
    if gzip {
        let headers = response.headers_mut();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// Adds a header `Warning` for each (RFC 7234 §5.5), as kubectl prints them.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings.iter().take(MOST_WARNINGS) {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
