//! Every type of the schema with every field filled: what goes through protobuf comes back as it was.

mod filled;

use orlop_apiserver::json::{self, Body};
use orlop_apiserver::protobuf;
use orlop_apiserver::schema::SCHEMA;

use filled::filled;

/// Deeper, messages stay empty: some hold themselves.
const DEPTH: usize = 7;

#[test]
fn every_type_of_the_schema_goes_through_protobuf_and_back() {
    for (count, of) in SCHEMA.ids().enumerate() {
        for seed in 0..2_usize {
            let mut salt = count * 31 + seed;
            let object = filled(of, DEPTH, &mut salt);
            let mut body = Body { object: object.clone(), findings: Vec::new() };
            json::check(&mut body, of)
                .unwrap_or_else(|error| panic!("{}: {error}", SCHEMA.get(of).name));
            assert_eq!(body, Body { object: object.clone(), findings: Vec::new() });
            let bytes = protobuf::encode(&object, of);
            let decoded = protobuf::decode(&bytes, of);
            let decoded =
                decoded.unwrap_or_else(|error| panic!("{}: {error}", SCHEMA.get(of).name));
            assert_eq!(decoded, object, "{}", SCHEMA.get(of).name);
            assert_eq!(protobuf::encode(&decoded, of), bytes, "{}", SCHEMA.get(of).name);
        }
    }
}
