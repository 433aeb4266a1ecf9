//! What the tests of the plug-ins run against: caches and a store in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::{Admission, Host, Pending};
use crate::authz::{Action, Authorizer, Decision, Held};
use crate::object::{Change, Object, Objects, Operation, User, text};
use crate::resources::Resource;
use crate::status::Status;

type Key = (&'static str, String, String);

/// A server with nothing in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What the caches have.
    cached: BTreeMap<Key, Object>,
    /// What only the store has.
    stored: BTreeMap<Key, Object>,
    reads: Vec<String>,
    /// What a user may: `alice approve signers a.b/c`.
    allowed: Vec<String>,
    revision: u64,
}

/// A group version and a plural.
fn resource(group_version: &str, plural: &str) -> &'static Resource {
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    super::served(group, version, plural)
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

fn key(resource: &'static Resource, namespace: &str, name: &str) -> Key {
    (resource.plural, namespace.to_owned(), name.to_owned())
}

/// What is said of an end that is not good; empty for a good one.
pub(crate) fn message<T>(result: Result<T, Status>) -> String {
    result.err().map_or_else(String::new, |status| status.message)
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One that has the namespace `a`.
    pub(crate) fn with_namespace() -> Self {
        let fake = Self::new();
        fake.put("v1", "namespaces", serde_json::json!({"metadata": {"name": "a"}}));
        fake
    }

    /// One that has, beside it, the service account every pod of it has.
    pub(crate) fn ready() -> Self {
        let fake = Self::with_namespace();
        let account = serde_json::json!({
            "metadata": {"namespace": "a", "name": "default"}, "automountServiceAccountToken": false,
        });
        fake.put("v1", "serviceaccounts", account);
        fake
    }

    /// Puts an object into the caches.
    pub(crate) fn put(&self, group_version: &str, plural: &str, value: Value) {
        let (key, mut object) = keyed(group_version, plural, value);
        let mut state = self.0.lock().expect("no test panics here");
        state.revision += 1;
        let revision = state.revision.to_string();
        crate::object::metadata(&mut object).insert("resourceVersion".to_owned(), revision.into());
        state.cached.insert(key, object);
    }

    /// Puts an object where only the store has it.
    pub(crate) fn stored(&self, group_version: &str, plural: &str, value: Value) {
        let (key, object) = keyed(group_version, plural, value);
        self.0.lock().expect("no test panics here").stored.insert(key, object);
    }

    pub(crate) fn allow(&self, what: &str) {
        self.0.lock().expect("no test panics here").allowed.push(what.to_owned());
    }

    pub(crate) fn reads(&self) -> Vec<String> {
        self.0.lock().expect("no test panics here").reads.clone()
    }

    pub(crate) fn create(
        &self,
        group_version: &str,
        plural: &str,
        namespace: &str,
        value: Value,
    ) -> Result<Value, Status> {
        self.run(Operation::Create, (group_version, plural, ""), namespace, value, None)
    }

    pub(crate) fn update(
        &self,
        group_version: &str,
        plural: &str,
        namespace: &str,
        old: Value,
        value: Value,
    ) -> Result<Value, Status> {
        self.run(Operation::Update, (group_version, plural, ""), namespace, value, Some(old))
    }

    /// Both passes over a write by `alice`.
    pub(crate) fn run(
        &self,
        operation: Operation,
        (group_version, plural, subresource): (&str, &str, &str),
        namespace: &str,
        value: Value,
        old: Option<Value>,
    ) -> Result<Value, Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let written = self.write(
            operation,
            (group_version, plural, subresource),
            namespace,
            value,
            old,
            false,
        );
        runtime.block_on(written)
    }

    pub(crate) async fn write(
        &self,
        operation: Operation,
        (group_version, plural, subresource): (&str, &str, &str),
        namespace: &str,
        value: Value,
        old: Option<Value>,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let me = Arc::new(self.clone());
        let mut admission = Admission::new(me.clone(), me.clone(), me, Arc::default());
        admission.suffix = || "x2z4b".to_owned();
        let user = User { name: "alice".to_owned(), ..User::default() };
        let mut written = object(value);
        let name = text(&written, "/metadata/name").to_owned();
        let old = old.map(object);
        let mut change = Change {
            user: &user,
            operation,
            resource: resource(group_version, plural),
            subresource,
            namespace,
            name: &name,
            object: &mut written,
            old: old.as_ref(),
            dry_run,
        };
        admission.mutate(&mut change).await?;
        admission.validate(&change).await?;
        Ok(written.into())
    }
}

fn keyed(group_version: &str, plural: &str, value: Value) -> (Key, Object) {
    let object = object(value);
    let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
    (key(resource(group_version, plural), namespace, name), object)
}

impl Objects for Fake {
    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Object> {
        let state = self.0.lock().expect("no test panics here");
        state.cached.get(&key(resource, namespace, name)).cloned()
    }

    fn list(&self, resource: &'static Resource, namespace: &str) -> Vec<Object> {
        let state = self.0.lock().expect("no test panics here");
        let fits =
            |key: &Key| key.0 == resource.plural && (namespace.is_empty() || key.1 == namespace);
        let fitting = state.cached.iter().filter(|(key, _)| fits(key));
        fitting.map(|(_, object)| object.clone()).collect()
    }
}

impl Host for Fake {
    fn read<'a>(
        &'a self,
        resource: &'static Resource,
        namespace: &'a str,
        name: &'a str,
    ) -> Pending<'a, Option<Object>> {
        let mut state = self.0.lock().expect("no test panics here");
        state.reads.push(format!("{} {name}", resource.plural));
        let key = key(resource, namespace, name);
        let found = state.cached.get(&key).or_else(|| state.stored.get(&key)).cloned();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn charge(&self, quota: Object) -> Pending<'_, Object> {
        let quotas = super::served("", "v1", "resourcequotas");
        let (namespace, name) =
            (text(&quota, "/metadata/namespace"), text(&quota, "/metadata/name"));
        let key = key(quotas, namespace, name);
        // Others run between the reading and this.
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut state = self.0.lock().expect("no test panics here");
            let version = |object: &Object| text(object, "/metadata/resourceVersion").to_owned();
            if state.cached.get(&key).map(version) != Some(version(&quota)) {
                let why = "the object has been modified; please apply your changes to the latest version and try again";
                return Err(Status::conflict(quotas, &key.2, why));
            }
            state.revision += 1;
            let mut quota = quota;
            let revision = state.revision.to_string();
            crate::object::metadata(&mut quota)
                .insert("resourceVersion".to_owned(), revision.into());
            state.cached.insert(key, quota.clone());
            Ok(quota)
        })
    }
}

impl Authorizer for Fake {
    fn decide(&self, action: &Action<'_>) -> Decision {
        let asked = action.asked.expect("a resource");
        let what = format!("{} {} {} {}", action.user.name, action.verb, asked.plural, asked.name);
        if self.0.lock().expect("no test panics here").allowed.contains(&what) {
            Decision::Allow("".into())
        } else {
            Decision::NoOpinion(String::new())
        }
    }

    fn held(&self, _: &User, _: &str) -> Held {
        Held::default()
    }
}
