//! Many objects at once, put where an API server will look for them: clients would take minutes to make them.

use orlop_store::{Limits, Location, Op, Store, Txn};
use serde_json::json;

/// The namespace they are in.
pub(crate) const NAMESPACE: &str = "many";

/// What the one of a number is called.
pub(crate) fn name(number: usize) -> String {
    format!("m{number:05}")
}

/// Puts so many config maps of so many bytes into a store that no server has open. Every other one has the label
/// `half=odd`, the others `half=even`.
pub(crate) async fn fill(location: &Location, count: usize, bytes: usize) {
    let store = Store::open(location, None, Limits::default()).await.unwrap();
    let numbers: Vec<usize> = (0..count).collect();
    for numbers in numbers.chunks(100) {
        let put = |&number: &usize| {
            let name = name(number);
            let map = json!({
                "kind": "ConfigMap",
                "apiVersion": "v1",
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "uid": format!("00000000-0000-4000-8000-{number:012}"),
                    "creationTimestamp": "2026-01-02T03:04:05Z",
                    "labels": {"half": if number % 2 == 0 { "even" } else { "odd" }},
                },
                "data": {"k": "x".repeat(bytes)},
            });
            let key = format!("/registry/configmaps/{NAMESPACE}/{name}").into();
            Op::Put { key, value: map.to_string().into(), lease: None }
        };
        let puts: Vec<Op> = numbers.iter().map(put).collect();
        assert!(store.txn(Txn::when([]).then(puts)).await.unwrap().succeeded);
    }
    store.close().await;
}
