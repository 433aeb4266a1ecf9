//! What is written over a cache that is behind the store, as another server's writes make it: it ends as if the store
//! had been read first.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use orlop_apiserver::object::{Object, User};
use orlop_apiserver::registry::{Done, How, Registry, Target, Writer};
use orlop_apiserver::resources::{Resource, find};
use orlop_apiserver::status::Status;
use orlop_apiserver::storage::{Media, Storage};
use orlop_apiserver::strategy::DeleteOptions;
use orlop_apiserver::strategy::service_ip::{NODE_PORTS, Ranges};
use orlop_rt::CancellationToken;
use orlop_store::{Limits, Location, Store};
use serde_json::{Value, json};

/// Two servers over one store, of which one sees nothing more of it.
struct Two {
    blind: Registry,
    other: Registry,
    user: User,
    _folder: tempfile::TempDir,
}

impl Two {
    /// They know the object.
    async fn over(object: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Embedded(folder.path().join("store"));
        let store = Store::open(&location, None, Limits::default()).await.unwrap();
        let server = async |shutdown: &CancellationToken| {
            let storage =
                Storage::open(store.clone(), Media::Json, Box::default(), Arc::default(), shutdown);
            let ranges = Ranges { addresses: Vec::new(), ports: NODE_PORTS };
            Registry::new(storage.await.unwrap(), Vec::new(), ranges)
        };
        let other = server(&CancellationToken::new()).await;
        let user = User::apiserver();
        other.create(Writer::new(&user), target(), map(object)).await.unwrap();
        // It reads all there is when it starts, and ends to follow at once.
        let ended = CancellationToken::new();
        ended.cancel();
        Self { blind: server(&ended).await, other, user, _folder: folder }
    }

    async fn set(&self, through: &Registry, value: &str) -> Object {
        let set = |mut object: Object| {
            object.insert("data".to_owned(), json!({"k": value}));
            Ok(object)
        };
        let writer = Writer::new(&self.user);
        let done = through.update(writer, target(), How::Patch, false, set).await.unwrap();
        done.0.object(maps())
    }

    async fn delete(&self, through: &Registry, options: Value) -> Result<Done, Status> {
        let options = DeleteOptions::read(&map(options));
        through.delete(Writer::new(&self.user), target(), &options).await
    }

    async fn stored(&self) -> Object {
        self.blind.storage().get(maps(), "default", "a").await.unwrap().unwrap().object
    }
}

fn maps() -> &'static Resource {
    find("", "v1", "configmaps").unwrap()
}

fn target() -> Target<'static> {
    Target::new(maps(), "default", "a")
}

fn map(value: Value) -> Object {
    let Value::Object(object) = value else { panic!("an object: {value}") };
    object
}

fn config_map() -> Value {
    json!({"metadata": {"name": "a", "namespace": "default"}, "data": {"k": "1"}})
}

fn revision(object: &Object) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

#[tokio::test]
async fn what_another_server_wrote_is_changed_and_not_written_over() {
    let two = Two::over(config_map()).await;
    let relabel = |mut object: Object| {
        object["metadata"]["labels"] = json!({"of": "other"});
        Ok(object)
    };
    let writer = Writer::new(&two.user);
    two.other.update(writer, target(), How::Patch, false, relabel).await.unwrap();
    let both = two.set(&two.blind, "2").await;
    assert_eq!(
        (&both["data"]["k"], &both["metadata"]["labels"]["of"]),
        (&json!("2"), &json!("other"))
    );
    assert_eq!(two.stored().await["metadata"]["labels"]["of"], "other");
}

#[tokio::test]
async fn what_would_change_nothing_or_is_refused_is_decided_on_what_is_there() {
    let two = Two::over(config_map()).await;
    let was = revision(&two.stored().await).to_owned();
    let now = two.set(&two.other, "2").await;
    // To the one that is blind it is "1" already.
    let written = two.set(&two.blind, "1").await;
    assert_eq!(written["data"]["k"], "1");
    assert!(revision(&written) > revision(&now), "{written:?}");
    // Of the revision that the other one made, which the blind one has never seen.
    let same = two.set(&two.other, "3").await;
    let put = |object: &Object, value: &str| {
        let mut object = object.clone();
        object.insert("data".to_owned(), json!({"k": value}));
        object
    };
    let given = put(&same, "4");
    let done = two
        .blind
        .update(Writer::new(&two.user), target(), How::Put, false, |_| Ok(given.clone()))
        .await;
    assert_eq!(done.unwrap().0.object(maps())["data"]["k"], "4");
    // And of the one that it knows, which is over.
    let mut late = put(&same, "5");
    late["metadata"]["resourceVersion"] = was.into();
    let refused = two
        .blind
        .update(Writer::new(&two.user), target(), How::Put, false, |_| Ok(late.clone()))
        .await;
    assert_eq!(refused.unwrap_err().reason, "Conflict");
    let dry = Writer { user: &two.user, dry_run: true };
    let shown = two.blind.update(dry, target(), How::Patch, false, Ok).await.unwrap().0;
    assert_eq!(shown.object(maps())["data"]["k"], "4", "not what it was once");
}

#[tokio::test]
async fn what_another_server_removed_or_made_is_gone_or_there() {
    let two = Two::over(config_map()).await;
    two.delete(&two.other, json!({})).await.unwrap();
    let gone = two.delete(&two.blind, json!({})).await;
    assert_eq!(gone.unwrap_err().reason, "NotFound");
    let writer = Writer::new(&two.user);
    let gone = two.blind.update(writer, target(), How::Patch, false, Ok).await;
    assert_eq!(gone.unwrap_err().reason, "NotFound");
    two.other.create(writer, target(), map(config_map())).await.unwrap();
    // Another object of the name.
    let again = two.set(&two.blind, "2").await;
    assert_eq!(again["metadata"]["uid"], two.stored().await["metadata"]["uid"]);
}

#[tokio::test]
async fn a_deletions_conditions_are_held_against_what_is_there() {
    let two = Two::over(config_map()).await;
    let was = revision(&two.stored().await).to_owned();
    let now = two.set(&two.other, "2").await;
    let of = |revision: &str| json!({"preconditions": {"resourceVersion": revision}});
    assert_eq!(two.delete(&two.blind, of(&was)).await.unwrap_err().reason, "Conflict");
    two.delete(&two.blind, of(revision(&now))).await.unwrap();
    assert!(two.other.storage().get(maps(), "default", "a").await.unwrap().is_none());
}

#[tokio::test]
async fn a_turn_is_over_when_another_server_has_had_one() {
    let two = Two::over(config_map()).await;
    let storage = [two.other.storage(), two.other.storage()];
    let [one, another] = [storage[0].turn().await.unwrap(), storage[1].turn().await.unwrap()];
    let services = find("", "v1", "services").unwrap();
    let service = |name: &str| map(json!({"metadata": {"name": name, "namespace": "default"}}));
    let put = async |name, expected, turn| {
        let place = (services, "default", name);
        storage[0].put(place, service(name), expected, None, Some(turn)).await
    };
    let first = put("a", 0, one).await.unwrap();
    assert!(format!("{:?}", put("b", 0, another).await).contains("Late"));
    assert!(format!("{:?}", put("a", 0, another).await).contains("Exists"));
    let again = two.other.storage().turn().await.unwrap();
    assert!(format!("{:?}", put("a", 1, again).await).contains("Changed"), "at another revision");
    put("a", first.revision, again).await.unwrap();
}
