//! `Events`: from a reader's wish to a stream of encoded events.

use std::time::Duration;

use futures_util::stream::{self, Stream};
use orlop_proto::machine::{self as proto, EventsRequest};
use tonic::Status;

use crate::events::{Events, Record, Tail, is_id};

/// The events `request` asks for.
///
/// # Errors
/// `InvalidArgument` for a request that makes no sense, `ResourceExhausted` when there are too many
/// readers.
pub(crate) fn follow(
    events: &Events,
    request: &EventsRequest,
) -> Result<impl Stream<Item = Result<proto::Event, Status>> + Send + use<>, Status> {
    let reader = events.watch(&tail(request)?);
    let reader = reader.map_err(|crowded| Status::resource_exhausted(crowded.to_string()))?;
    Ok(stream::unfold(reader, async |mut reader| {
        reader.next().await.map(|record| (Ok(event(&record)), reader))
    }))
}

/// The tail a reader of events asks for; at most one of the three selectors.
fn tail(request: &EventsRequest) -> Result<Tail, Status> {
    let EventsRequest { tail_events, tail_id, tail_seconds } = request;
    match (*tail_events, tail_id.as_str(), *tail_seconds) {
        (0, "", 0) => Ok(Tail::None),
        (count, "", 0) => Ok(usize::try_from(count).map_or(Tail::All, Tail::Last)),
        (0, id, 0) if is_id(id) => Ok(Tail::After(id.to_owned())),
        (0, id, 0) => Err(Status::invalid_argument(format!(
            "tail_id {id:?} is no id of an event: those have 20 characters, 0-9 and a-v"
        ))),
        (0, "", seconds) => {
            Ok(Tail::Within(Duration::from_secs(u64::try_from(seconds).unwrap_or_default())))
        }
        _ => Err(Status::invalid_argument(
            "only one of tail_events, tail_id and tail_seconds can be given",
        )),
    }
}

fn event(record: &Record) -> proto::Event {
    proto::Event { metadata: None, data: Some(record.data.clone()), id: record.id.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_has_one_selector_and_an_id_the_form_of_one() {
        let asked = |tail_events, tail_id: &str, tail_seconds| {
            let tail_id = tail_id.to_owned();
            tail(&EventsRequest { tail_events, tail_id, tail_seconds })
                .map_err(|status| (status.code(), status.message().to_owned()))
        };
        let id = "9m4e2mr0ui3e8a215n4g";
        assert_eq!(asked(0, "", 0), Ok(Tail::None));
        assert_eq!(asked(-1, "", 0), Ok(Tail::All));
        assert_eq!(asked(7, "", 0), Ok(Tail::Last(7)));
        assert_eq!(asked(0, id, 0), Ok(Tail::After(id.to_owned())));
        assert_eq!(asked(0, "", 90), Ok(Tail::Within(Duration::from_secs(90))));
        assert_eq!(asked(0, "", -1), Ok(Tail::Within(Duration::ZERO)));
        let text =
            "tail_id \"UNKNOWN\" is no id of an event: those have 20 characters, 0-9 and a-v";
        assert_eq!(asked(0, "UNKNOWN", 0), Err((tonic::Code::InvalidArgument, text.to_owned())));
        assert!(asked(1, id, 0).is_err() && asked(1, "", 1).is_err() && asked(0, id, 1).is_err());
    }
}
