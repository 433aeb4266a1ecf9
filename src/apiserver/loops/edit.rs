//! Changes of objects that are made to whatever they are by then.

use serde_json::{Map, Value, json};

use super::served;
use crate::object::{Object, at, items, metadata, text};
use crate::status::Status;

/// A change of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Takes the references to these owners out of the object of this uid.
    RemoveOwners {
        /// Of the object.
        uid: String,
        /// Of the owners.
        owners: Vec<String>,
    },
    /// Lets the owners of the object of this uid go before it.
    Unblock {
        /// Of the object.
        uid: String,
    },
    /// Takes a finalizer from the object of this uid.
    RemoveFinalizer {
        /// Of the object.
        uid: String,
        /// Which.
        finalizer: &'static str,
    },
    /// Lets a namespace go, which is empty.
    FinalizeNamespace {
        /// Of the namespace.
        uid: String,
    },
    /// Says how far a namespace is.
    Conditions {
        /// Of the namespace.
        uid: String,
        /// All that are known here: type, status, reason, message.
        conditions: Vec<[String; 4]>,
        /// When.
        now: String,
    },
    /// What a cluster role gathers.
    Rules(Vec<Value>),
    /// The data of a ConfigMap.
    Data(Map<String, Value>),
}

/// What keeps a namespace until it is empty.
const KUBERNETES: &str = "kubernetes";

impl Edit {
    /// The part of the object that is written.
    #[must_use]
    pub fn subresource(&self) -> &'static str {
        match self {
            Self::FinalizeNamespace { .. } => "finalize",
            Self::Conditions { .. } => "status",
            _ => "",
        }
    }

    /// Changes the object.
    ///
    /// # Errors
    /// It is another of the same name: the one that is meant is gone (404).
    pub fn apply(&self, object: &mut Object) -> Result<(), Status> {
        if let Some(uid) = self.uid()
            && text(object, "/metadata/uid") != uid
        {
            let name = text(object, "/metadata/name");
            return Err(Status::not_found(served("", "v1", "namespaces"), name));
        }
        match self {
            Self::RemoveOwners { owners, .. } => {
                remove(metadata(object), "ownerReferences", |own| {
                    owners.iter().any(|uid| own["uid"] == *uid.as_str())
                })
            }
            Self::Unblock { .. } => {
                let owners = metadata(object).get_mut("ownerReferences");
                for owner in owners.and_then(Value::as_array_mut).into_iter().flatten() {
                    owner["blockOwnerDeletion"] = false.into();
                }
            }
            Self::RemoveFinalizer { finalizer, .. } => {
                remove(metadata(object), "finalizers", |own| own == finalizer);
            }
            Self::FinalizeNamespace { .. } => {
                if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                    remove(spec, "finalizers", |own| own == KUBERNETES);
                }
            }
            Self::Conditions { conditions, now, .. } => condition(object, conditions, now),
            Self::Rules(rules) => drop(object.insert("rules".to_owned(), rules.clone().into())),
            Self::Data(data) => drop(object.insert("data".to_owned(), data.clone().into())),
        }
        Ok(())
    }

    fn uid(&self) -> Option<&str> {
        match self {
            Self::RemoveOwners { uid, .. }
            | Self::Unblock { uid }
            | Self::RemoveFinalizer { uid, .. }
            | Self::FinalizeNamespace { uid }
            | Self::Conditions { uid, .. } => Some(uid),
            Self::Rules(_) | Self::Data(_) => None,
        }
    }
}

/// Removes from a list, and the list if nothing is left.
fn remove(parent: &mut Object, list: &str, which: impl Fn(&Value) -> bool) {
    let Some(all) = parent.get_mut(list).and_then(Value::as_array_mut) else { return };
    all.retain(|item| !which(item));
    if all.is_empty() {
        parent.remove(list);
    }
}

/// Those that stay as they are keep the time since when they are so.
fn condition(object: &mut Object, conditions: &[[String; 4]], now: &str) {
    let mut all: Vec<Value> = items(object, "/status/conditions").cloned().collect();
    for [kind, status, reason, message] in conditions {
        let known = all.iter_mut().find(|known| known["type"] == *kind.as_str());
        let since = known.as_ref().filter(|known| known["status"] == *status.as_str());
        let since = since.and_then(|known| known["lastTransitionTime"].as_str()).unwrap_or(now);
        let new = json!({
            "type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
        });
        match known {
            Some(known) => *known = new,
            None => all.push(new),
        }
    }
    let status = object.entry("status").or_insert_with(|| Value::Object(Object::new()));
    if let Some(status) = status.as_object_mut() {
        status.insert("conditions".to_owned(), all.into());
    }
}

/// Does an object say all this already?
pub(super) fn has_conditions(object: &Object, conditions: &[[String; 4]]) -> bool {
    let all = at(object, "/status/conditions").and_then(Value::as_array);
    conditions.iter().all(|[kind, status, reason, message]| {
        all.into_iter().flatten().any(|known| {
            known["type"] == *kind.as_str()
                && known["status"] == *status.as_str()
                && known["reason"] == *reason.as_str()
                && known["message"] == *message.as_str()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Object {
        match json!({"metadata": {
            "name": "x", "uid": "u", "finalizers": ["a", "orphan"],
            "ownerReferences": [{"uid": "1", "blockOwnerDeletion": true}, {"uid": "2"}],
        }, "spec": {"finalizers": ["kubernetes", "mine"]}})
        {
            Value::Object(object) => object,
            _ => unreachable!("it is an object"),
        }
    }

    fn applied(edit: &Edit) -> Object {
        let mut object = object();
        edit.apply(&mut object).expect("it is the one that is meant");
        object
    }

    #[test]
    fn what_is_meant_is_changed_and_nothing_else() {
        let uid = || "u".to_owned();
        let owners = |owners: &[&str]| Edit::RemoveOwners {
            uid: uid(),
            owners: owners.iter().map(|uid| (*uid).to_owned()).collect(),
        };
        assert_eq!(
            applied(&owners(&["1", "3"]))["metadata"]["ownerReferences"],
            json!([{"uid": "2"}])
        );
        assert_eq!(applied(&owners(&["1", "2"]))["metadata"].get("ownerReferences"), None);
        let unblocked = applied(&Edit::Unblock { uid: uid() });
        assert_eq!(unblocked["metadata"]["ownerReferences"][0]["blockOwnerDeletion"], false);
        let freed = applied(&Edit::RemoveFinalizer { uid: uid(), finalizer: "orphan" });
        assert_eq!(freed["metadata"]["finalizers"], json!(["a"]));
        let finalize = Edit::FinalizeNamespace { uid: uid() };
        assert_eq!(finalize.subresource(), "finalize");
        assert_eq!(applied(&finalize)["spec"]["finalizers"], json!(["mine"]));
        let other = Edit::Unblock { uid: "v".to_owned() };
        assert_eq!(other.apply(&mut object()).expect_err("another one").code, 404);
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_does_not_change() {
        let said = |status: &str| [["T", status, "R", "m"].map(str::to_owned)].to_vec();
        let mut object = object();
        for (status, now, since) in [("True", "1", "1"), ("True", "2", "1"), ("False", "3", "3")] {
            let conditions = said(status);
            let edit = Edit::Conditions { uid: "u".to_owned(), conditions, now: now.to_owned() };
            edit.apply(&mut object).expect("the one");
            assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], since);
            assert!(has_conditions(&object, &said(status)));
        }
        assert_eq!(object["status"]["conditions"].as_array().map(Vec::len), Some(1));
        assert!(!has_conditions(&object, &said("True")));
    }
}
