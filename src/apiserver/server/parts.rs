//! Parts of objects that are kinds of their own: scales, bindings, evictions, tokens.

use http::{Response, StatusCode};
use serde_json::Value;
use time::OffsetDateTime;

use super::body::Body;
use super::form;
use super::objects::{Call, success, warn};
use crate::authn::Authenticator;
use crate::object::{Object, Objects, at, text};
use crate::registry::{How, Registry, Target, Writer};
use crate::resources::{self, Subresource};
use crate::status::Status;
use crate::storage::cache::Selection;
use crate::strategy::{self, DeleteOptions, Eviction};
use crate::versions;

/// How often an eviction is decided anew when its budget was changed by somebody else.
const TRIES: usize = 5;

/// The kind of a scale.
pub(super) const SCALE: (&str, &str) = ("autoscaling/v1", "Scale");

impl Call<'_> {
    /// The scale of an object.
    pub(super) async fn get_scale(&self, registry: &Registry) -> Result<Response<Body>, Status> {
        let media = self.plain()?;
        let entry = registry.get(Target { subresource: "", ..self.target }).await?;
        let resource = self.target.resource;
        let object = versions::present(resource, entry.object());
        Ok(self.other(StatusCode::OK, media, strategy::scale(resource, &object)))
    }

    /// Writes the scale of an object.
    pub(super) async fn scale(
        &self,
        registry: &Registry,
        writer: Writer<'_>,
        how: How,
        warnings: &[String],
        mut change: impl FnMut(Object) -> Result<Object, Status> + Send,
    ) -> Result<Response<Body>, Status> {
        let media = self.plain()?;
        let resource = self.target.resource;
        let (done, _) = registry
            .update(writer, self.target, how, false, |mut object| {
                let scale = change(strategy::scale(resource, &object))?;
                strategy::rescale(&scale, &mut object)?;
                Ok(object)
            })
            .await?;
        let scale = strategy::scale(resource, &done.object(resource));
        let mut response = self.other(StatusCode::OK, media, scale);
        warn(&mut response, warnings);
        Ok(response)
    }

    /// What is posted to a part of an object.
    pub(super) async fn create_part(
        &self,
        registry: &Registry,
        authenticator: &Authenticator,
        writer: Writer<'_>,
        sub: &Subresource,
        body: &[u8],
    ) -> Result<Response<Body>, Status> {
        let media = self.plain()?;
        let Some((group, version, kind)) = sub.kind else {
            return Err(Status::method_not_allowed());
        };
        let api_version =
            if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let of = form::schema(&api_version, kind).ok_or_else(Status::no_resource)?;
        let read = self.read(body, &api_version, kind, of)?;
        let warnings = self.judge(&read.findings, &api_version, kind)?;
        let done = match sub.name {
            "binding" => {
                bind(registry, writer, self.target, &read.object).await?;
                success(None)
            }
            "eviction" => {
                evict(registry, writer, self.target, &read.object).await?;
                success(None)
            }
            "token" => {
                let account = registry.get(Target { subresource: "", ..self.target }).await?;
                let objects: &dyn Objects = &**registry.storage().cache();
                let account = versions::present(self.target.resource, account.object());
                let now = std::time::SystemTime::now();
                authenticator.accounts().issue(&account, &read.object, objects, now)?
            }
            _ => return Err(Status::method_not_allowed()),
        };
        let mut response = self.other(StatusCode::CREATED, media, done);
        warn(&mut response, &warnings);
        Ok(response)
    }
}

/// Binds a pod to a node.
pub(super) async fn bind(
    registry: &Registry,
    writer: Writer<'_>,
    target: Target<'_>,
    binding: &Object,
) -> Result<(), Status> {
    let name = text(binding, "/metadata/name");
    if !name.is_empty() && name != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let bound = registry.update(writer, target, How::Patch, false, |mut pod| {
        strategy::bind(binding, &mut pod, OffsetDateTime::now_utc())?;
        Ok(pod)
    });
    bound.await.map(drop)
}

/// Removes a pod if its disruption budget lets it go.
async fn evict(
    registry: &Registry,
    writer: Writer<'_>,
    target: Target<'_>,
    eviction: &Object,
) -> Result<(), Status> {
    let name = text(eviction, "/metadata/name");
    if !name.is_empty() && name != target.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let given = at(eviction, "/deleteOptions").and_then(Value::as_object);
    let options = given.map(DeleteOptions::read).unwrap_or_default();
    let causes = options.validate();
    if !causes.is_empty() {
        return Err(Status::invalid_options("DeleteOptions", causes));
    }
    let writer = Writer { dry_run: writer.dry_run || !options.dry_run.is_empty(), ..writer };
    let pod = Target { subresource: "", ..target };
    let budgets =
        resources::find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_resource)?;
    for left in (0..TRIES).rev() {
        let object = registry.get(pod).await?.object();
        let all = registry.list(budgets, &Selection::all(target.namespace), 0).await?;
        let all: Vec<Object> =
            all.entries.iter().map(|entry| versions::present(budgets, entry.object())).collect();
        let budget = match strategy::evict(&object, &all, OffsetDateTime::now_utc())? {
            Eviction::Delete => break,
            Eviction::Disrupt(_) if writer.dry_run => break,
            Eviction::Disrupt(budget) => budget,
        };
        let name = text(&budget, "/metadata/name").to_owned();
        let status = Target::new(budgets, target.namespace, &name).part("status");
        let stored = registry.update(writer, status, How::Put, false, |_| Ok(budget.clone())).await;
        match stored {
            Ok(_) => break,
            Err(status) if status.code == 409 && left > 0 => {}
            Err(status) => return Err(status),
        }
    }
    registry.delete(writer, pod, &options).await.map(drop)
}
