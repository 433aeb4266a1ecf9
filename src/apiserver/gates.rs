//! What every write passes: nobody grants what they do not hold, and the cluster's own rules.

use std::sync::Arc;

use crate::admission::{Admission, Host, Pending};
use crate::authz::{Authorizers, Rbac, escalation};
use crate::object::{Change, Object, text};
use crate::registry::{Gate, Passed};
use crate::resources::{self, Resource};
use crate::status::Status;
use crate::storage::{Refused, Storage};
use crate::versions;

/// See [`escalation`].
#[derive(Debug)]
pub(crate) struct Escalation {
    pub(crate) authorizers: Authorizers,
    pub(crate) rbac: Arc<Rbac>,
}

impl Gate for Escalation {
    fn change<'a>(&'a self, _: &'a mut Change<'_>) -> Passed<'a> {
        Box::pin(async { Ok(()) })
    }

    fn check<'a>(&'a self, change: &'a Change<'_>) -> Passed<'a> {
        let checked = escalation::check(change, &self.authorizers, &self.rbac);
        Box::pin(async { checked })
    }
}

impl Gate for Admission {
    fn change<'a>(&'a self, change: &'a mut Change<'_>) -> Passed<'a> {
        Box::pin(self.mutate(change))
    }

    fn check<'a>(&'a self, change: &'a Change<'_>) -> Passed<'a> {
        Box::pin(self.validate(change))
    }
}

/// What admission asks of the store.
#[derive(Clone, Debug)]
pub(crate) struct Behind(pub(crate) Storage);

impl Host for Behind {
    fn read<'a>(
        &'a self,
        resource: &'static Resource,
        namespace: &'a str,
        name: &'a str,
    ) -> Pending<'a, Option<Object>> {
        Box::pin(async move {
            let found = self.0.get(resource, namespace, name).await?;
            Ok(found.map(|stored| versions::present(resource, stored.object)))
        })
    }

    fn charge(&self, mut quota: Object) -> Pending<'_, Object> {
        Box::pin(async move {
            let resource =
                resources::find("", "v1", "resourcequotas").ok_or_else(Status::no_resource)?;
            let (namespace, name) = (
                text(&quota, "/metadata/namespace").to_owned(),
                text(&quota, "/metadata/name").to_owned(),
            );
            let expected = text(&quota, "/metadata/resourceVersion").parse().unwrap_or_default();
            quota.remove("kind");
            quota.remove("apiVersion");
            let target = (resource, &*namespace, &*name);
            let stored = self.0.put(target, quota, expected, None, None).await;
            match stored {
                Ok(entry) => Ok(versions::present(resource, entry.object())),
                Err(Refused::Status(status)) => Err(status),
                Err(Refused::Exists | Refused::Changed(_) | Refused::Late) => {
                    Err(Status::conflict(resource, &name, "it was charged by somebody else"))
                }
            }
        })
    }
}

/// RBAC follows what is stored.
impl crate::storage::cache::Observer for Rbac {
    fn wants(&self, resource: &'static Resource) -> bool {
        resource.group == "rbac.authorization.k8s.io"
    }

    fn observe(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        object: Option<&Object>,
    ) {
        Rbac::observe(self, resource, namespace, name, object);
    }
}
