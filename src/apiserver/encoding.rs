//! The forms of bodies: which one a client takes for an answer (RFC 9110 §12.5.1), which one it sends, and gzip.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::status::Status;

/// The largest body of a request, before and after gzip.
pub const BODY_LIMIT: usize = 3 << 20;

/// Answers to get and list that are longer are worth gzip.
pub const GZIP_FROM: usize = 128 << 10;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How values are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoding {
    /// RFC 8259.
    Json,
    /// Of JSON's values.
    Yaml,
    /// In the envelope of [`crate::protobuf::seal`].
    Protobuf,
}

/// What of an object is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum View {
    /// All of it.
    Whole,
    /// A row per object, `v1` or `v1beta1` of `meta.k8s.io`.
    Table(&'static str),
    /// `PartialObjectMetadata` or its list, `v1` or `v1beta1` of `meta.k8s.io`.
    Metadata(&'static str),
    /// `APIGroupDiscoveryList`, `v2` or `v2beta1` of `apidiscovery.k8s.io`.
    Discovery(&'static str),
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Media {
    /// How it is written.
    pub encoding: Encoding,
    /// What is in it.
    pub view: View,
    /// `stream=watch` was asked for, and is said.
    pub stream: bool,
}

/// What an endpoint has besides whole objects in JSON.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offers {
    /// The kind has a message.
    pub protobuf: bool,
    /// It has objects that are listed: not the reviews.
    pub views: bool,
    /// It is `/api` or `/apis`.
    pub discovery: bool,
    /// It is a watch, which is not written in YAML.
    pub watch: bool,
}

impl Media {
    /// What most get.
    pub const JSON: Self = Self { encoding: Encoding::Json, view: View::Whole, stream: false };

    /// For the header `Content-Type`. Tables are not told from other JSON, nor metadata from other objects; discovery
    /// is, or clients take it for its old form.
    #[must_use]
    pub fn content_type(&self) -> String {
        let plain = match self.encoding {
            Encoding::Json => JSON,
            Encoding::Yaml => YAML,
            Encoding::Protobuf => PROTOBUF,
        };
        match self.view {
            View::Discovery(version) => {
                format!("{plain};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
            }
            // A stream of messages has frames, which JSON needs not.
            _ if self.stream && self.encoding == Encoding::Protobuf => {
                format!("{plain};stream=watch")
            }
            _ => plain.to_owned(),
        }
    }
}

/// The form to answer in: the first that is asked for and offered. Better quality goes first, then what names a type
/// and no pattern, then what stands before. `accept` has the values of all headers `Accept`; none is as good as any.
///
/// # Errors
/// 406.
pub fn negotiate(accept: &[&str], offers: Offers) -> Result<Media, Status> {
    let mut clauses: Vec<_> = accept.iter().flat_map(|header| clauses(header)).collect();
    if clauses.is_empty() {
        return Ok(Media::JSON);
    }
    sort(&mut clauses);
    clauses.iter().find_map(|clause| media(clause, offers)).ok_or_else(|| {
        let offered = [(JSON, true), (YAML, !offers.watch), (PROTOBUF, offers.protobuf)];
        let offered: Vec<_> =
            offered.into_iter().filter_map(|(name, is)| is.then_some(name)).collect();
        Status::not_acceptable(&offered)
    })
}

/// One of several plain types: of documents, which have no views. `offered` are equally good; the first stands for
/// any. None if none is acceptable.
#[must_use]
pub fn choose<'a>(accept: &[&str], offered: &[&'a str]) -> Option<&'a str> {
    let mut clauses: Vec<_> = accept.iter().flat_map(|header| clauses(header)).collect();
    sort(&mut clauses);
    if clauses.is_empty() {
        return offered.first().copied();
    }
    clauses.iter().find_map(|clause| offered.iter().copied().find(|name| clause.fits(name)))
}

/// A part of a header `Accept`.
#[derive(Debug)]
struct Clause<'a> {
    /// `application/json`, `application/*`, `*/*`.
    range: &'a str,
    /// Without the quality.
    parameters: Vec<(&'a str, &'a str)>,
    /// In thousandths.
    quality: u16,
}

impl Clause<'_> {
    fn fits(&self, name: &str) -> bool {
        let range = self.range;
        range == "*/*"
            || range.eq_ignore_ascii_case(name)
            || range.strip_suffix("/*").is_some_and(|class| {
                name.split_once('/').is_some_and(|(own, _)| own.eq_ignore_ascii_case(class))
            })
    }
}

fn sort(clauses: &mut [Clause<'_>]) {
    orlop_rt::sort_by_key(clauses, |clause| {
        let pattern =
            usize::from(clause.range.ends_with("/*")) + usize::from(clause.range == "*/*");
        (1000 - clause.quality, pattern)
    });
}

/// Those that are acceptable at all.
fn clauses(header: &str) -> impl Iterator<Item = Clause<'_>> {
    header.split(',').filter_map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let range = parts.next().filter(|range| !range.is_empty())?;
        let mut clause = Clause { range, parameters: Vec::new(), quality: 1000 };
        for part in parts.filter(|part| !part.is_empty()) {
            match part.split_once('=').unwrap_or((part, "")) {
                ("q", value) => clause.quality = quality(value),
                (name, value) => clause.parameters.push((name, value.trim_matches('"'))),
            }
        }
        (clause.quality > 0).then_some(clause)
    })
}

/// `0.25` in thousandths; what is none counts as one.
fn quality(text: &str) -> u16 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let thousandths = || {
        let digits: String = part.chars().chain("000".chars()).take(3).collect();
        digits.parse::<u16>().ok()
    };
    match whole {
        "0" | "" => thousandths().unwrap_or(1000),
        _ => 1000,
    }
}

fn media(clause: &Clause<'_>, offers: Offers) -> Option<Media> {
    [
        (JSON, Encoding::Json, true),
        (YAML, Encoding::Yaml, !offers.watch),
        (PROTOBUF, Encoding::Protobuf, offers.protobuf),
    ]
    .into_iter()
    .filter(|(name, _, offered)| *offered && clause.fits(name))
    .find_map(|(_, encoding, _)| {
        let (mut kind, mut group, mut version, mut stream) = (None, "", "", false);
        for (name, value) in &clause.parameters {
            match *name {
                "as" => kind = Some(*value),
                "g" => group = value,
                "v" => version = value,
                "charset" if !value.eq_ignore_ascii_case("utf-8") => return None,
                "stream" => {
                    stream = true;
                    if *value != "watch" || encoding == Encoding::Yaml {
                        return None;
                    }
                }
                // Told to servers that know it.
                _ => {}
            }
        }
        let view = match kind {
            None => View::Whole,
            Some(kind) => view(kind, group, version, encoding, offers)?,
        };
        Some(Media { encoding, view, stream })
    })
}

fn view(
    kind: &str,
    group: &str,
    version: &str,
    encoding: Encoding,
    offers: Offers,
) -> Option<View> {
    let one_of = |known: &[&'static str]| known.iter().copied().find(|known| *known == version);
    match (group, kind) {
        ("meta.k8s.io", "Table") if offers.views && encoding != Encoding::Protobuf => {
            one_of(&["v1", "v1beta1"]).map(View::Table)
        }
        ("meta.k8s.io", "PartialObjectMetadata" | "PartialObjectMetadataList") if offers.views => {
            one_of(&["v1", "v1beta1"]).map(View::Metadata)
        }
        ("apidiscovery.k8s.io", "APIGroupDiscoveryList")
            if offers.discovery && encoding == Encoding::Json =>
        {
            one_of(&["v2", "v2beta1"]).map(View::Discovery)
        }
        _ => None,
    }
}

/// How the body of a request is written, by its header `Content-Type`. Without one it is JSON.
///
/// # Errors
/// 415.
pub fn body(content_type: Option<&str>) -> Result<Encoding, Status> {
    match plain(content_type).as_str() {
        "" | JSON => Ok(Encoding::Json),
        YAML => Ok(Encoding::Yaml),
        PROTOBUF => Ok(Encoding::Protobuf),
        _ => Err(Status::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

/// What the body of a PATCH is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Patch {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// See [`crate::strategic`].
    Strategic,
    /// Server-side apply, in YAML, which JSON is too.
    Apply,
}

impl Patch {
    /// All of them, in the order in which clients are told.
    pub const ALL: [Self; 4] = [Self::Json, Self::Merge, Self::Strategic, Self::Apply];

    /// `application/merge-patch+json`.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// Which patch a body is, by its header `Content-Type`, of those there are.
///
/// # Errors
/// 415.
pub fn patch(content_type: Option<&str>, offered: &[Patch]) -> Result<Patch, Status> {
    let asked = plain(content_type);
    offered.iter().copied().find(|patch| patch.media_type() == asked).ok_or_else(|| {
        let names: Vec<_> = offered.iter().map(|patch| patch.media_type()).collect();
        Status::unsupported_media_type(&names)
    })
}

/// Without parameters.
fn plain(content_type: Option<&str>) -> String {
    content_type
        .and_then(|text| text.split(';').next())
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Does the client take gzip? By all its headers `Accept-Encoding` (RFC 9110 §12.5.3).
#[must_use]
pub fn takes_gzip(accept_encoding: &[&str]) -> bool {
    accept_encoding
        .iter()
        .flat_map(|header| clauses(header))
        .any(|clause| clause.range.eq_ignore_ascii_case("gzip"))
}

/// In gzip, fast.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes what is written")
}

/// The body of a request as its header `Content-Encoding` says it is packed, if that comes to no more than `limit`
/// bytes.
///
/// # Errors
/// 413; 400 when it is no gzip; 415 when it is packed in another way.
pub fn unpacked(
    content_encoding: Option<&str>,
    bytes: Vec<u8>,
    limit: usize,
) -> Result<Vec<u8>, Status> {
    let encoding = plain(content_encoding);
    let unpacked = match encoding.as_str() {
        "" | "identity" => bytes,
        "gzip" => gunzip(&bytes, limit)?,
        _ => return Err(Status::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    };
    if unpacked.len() > limit { Err(Status::too_large(limit)) } else { Ok(unpacked) }
}

/// Reads one byte more than there may be, and no further.
fn gunzip(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Status> {
    let mut unpacked = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(bytes)
        .take(most)
        .read_to_end(&mut unpacked)
        .map_err(|error| Status::bad_request(format!("the body is not gzip: {error}")))?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offers = Offers { protobuf: true, views: true, discovery: false, watch: false };

    fn chosen(accept: &str, offers: Offers) -> String {
        match negotiate(&[accept], offers) {
            Ok(media) => format!("{:?} {:?}", media.encoding, media.view),
            Err(status) => format!("{}", status.code),
        }
    }

    #[test]
    fn answers_are_in_the_first_form_that_is_offered() {
        let review = Offers { protobuf: true, ..Offers::default() };
        let watch = Offers { watch: true, ..ALL };
        let discovery = Offers { discovery: true, ..Offers::default() };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                       application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let asks = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList;profile=nopeer,\
                    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        for (accept, offers, expected) in [
            ("", ALL, "Json Whole"),
            ("*/*", ALL, "Json Whole"),
            ("application/*", ALL, "Json Whole"),
            ("application/json", ALL, "Json Whole"),
            ("application/json, */*", ALL, "Json Whole"),
            ("*/*, application/yaml", ALL, "Yaml Whole"),
            ("Application/YAML", ALL, "Yaml Whole"),
            ("application/yaml", watch, "406"),
            ("application/vnd.kubernetes.protobuf,application/json", ALL, "Protobuf Whole"),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Offers::default(),
                "Json Whole",
            ),
            ("application/vnd.kubernetes.protobuf", Offers::default(), "406"),
            ("application/vnd.kubernetes.protobuf;stream=watch", watch, "Protobuf Whole"),
            ("application/json;stream=watch", watch, "Json Whole"),
            ("application/json;stream=other", watch, "406"),
            (kubectl, ALL, "Json Table(\"v1\")"),
            (kubectl, review, "Json Whole"),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", ALL, "Json Table(\"v1beta1\")"),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", ALL, "406"),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", review, "406"),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", ALL, "Yaml Table(\"v1\")"),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", ALL, "406"),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                ALL,
                "Protobuf Metadata(\"v1\")",
            ),
            (
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
                ALL,
                "Json Metadata(\"v1\")",
            ),
            ("application/json;as=Pod;g=;v=v1", ALL, "406"),
            (asks, discovery, "Json Discovery(\"v2\")"),
            (asks, ALL, "Json Whole"),
            ("text/html", ALL, "406"),
            ("text/html, application/json;q=0.1", ALL, "Json Whole"),
            ("application/yaml;q=0.5, application/json;q=0.9", ALL, "Json Whole"),
            ("application/json;q=0, application/yaml", ALL, "Yaml Whole"),
            ("application/json;charset=utf-8", ALL, "Json Whole"),
            ("application/json;charset=latin1", ALL, "406"),
            (";;,,", ALL, "Json Whole"),
        ] {
            assert_eq!(chosen(accept, offers), expected, "{accept}");
        }
        assert_eq!(negotiate(&[], ALL), Ok(Media::JSON));
        let both = negotiate(&["text/html", "application/yaml"], ALL);
        assert_eq!(both.map(|media| media.encoding), Ok(Encoding::Yaml));
    }

    #[test]
    fn what_is_not_acceptable_says_what_would_be() {
        let refused = negotiate(&["text/html"], ALL).expect_err("text");
        assert_eq!((refused.code, refused.reason), (406, "NotAcceptable"));
        assert_eq!(
            refused.message,
            "only the following media types are accepted: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf"
        );
        let refused = patch(Some("text/plain"), &[Patch::Json, Patch::Merge]).expect_err("text");
        assert_eq!((refused.code, refused.reason), (415, "UnsupportedMediaType"));
        assert_eq!(
            refused.message,
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json"
        );
    }

    #[test]
    fn content_types_tell_what_clients_look_for() {
        let of =
            |accept, offers| negotiate(&[accept], offers).expect("it is acceptable").content_type();
        let discovery = Offers { discovery: true, ..Offers::default() };
        assert_eq!(of("application/json;as=Table;v=v1;g=meta.k8s.io", ALL), "application/json");
        assert_eq!(
            of("application/vnd.kubernetes.protobuf;stream=watch", Offers { watch: true, ..ALL }),
            "application/vnd.kubernetes.protobuf;stream=watch"
        );
        assert_eq!(
            of("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", discovery),
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        );
    }

    #[test]
    fn bodies_are_json_unless_they_say_otherwise() {
        assert_eq!(body(None), Ok(Encoding::Json));
        assert_eq!(body(Some("application/json; charset=utf-8")), Ok(Encoding::Json));
        assert_eq!(body(Some("application/yaml")), Ok(Encoding::Yaml));
        assert_eq!(body(Some("application/vnd.kubernetes.protobuf")), Ok(Encoding::Protobuf));
        assert_eq!(body(Some("application/cbor")).map_err(|status| status.code), Err(415));
        for known in Patch::ALL {
            assert_eq!(patch(Some(known.media_type()), &Patch::ALL), Ok(known));
        }
        assert_eq!(patch(None, &Patch::ALL).map_err(|status| status.code), Err(415));
    }

    #[test]
    fn documents_are_chosen_among_their_types() {
        let offered = ["application/json", "application/x+protobuf"];
        assert_eq!(choose(&[], &offered), Some("application/json"));
        assert_eq!(choose(&["application/x+protobuf, */*"], &offered), Some(offered[1]));
        assert_eq!(choose(&["text/html, */*"], &offered), Some(offered[0]));
        assert_eq!(choose(&["text/html"], &offered), None);
    }

    #[test]
    fn gzip_goes_out_and_comes_in_within_bounds() {
        assert!(takes_gzip(&["deflate, gzip"]) && takes_gzip(&["GZIP;q=0.5"]));
        assert!(!takes_gzip(&["gzip;q=0"]) && !takes_gzip(&["*"]) && !takes_gzip(&[]));
        let text = b"a pod ".repeat(100_000);
        let packed = gzip(&text);
        assert!(packed.len() < text.len() / 50);
        assert_eq!(unpacked(Some("gzip"), packed.clone(), text.len()).as_ref(), Ok(&text));
        assert_eq!(unpacked(None, text.clone(), text.len()), Ok(text.clone()));
        let code = |bytes: &[u8], encoding, limit| {
            unpacked(Some(encoding), bytes.to_vec(), limit).map_err(|status| status.code)
        };
        assert_eq!(code(&packed, "gzip", text.len() - 1), Err(413));
        assert_eq!(code(&packed[..20], "gzip", BODY_LIMIT), Err(400));
        assert_eq!(code(b"plain", "gzip", BODY_LIMIT), Err(400));
        assert_eq!(code(&packed, "br", BODY_LIMIT), Err(415));
        assert_eq!(code(&text, "identity", 5), Err(413));
        // A thousand times what it weighs, and never more than the limit in memory.
        let bomb = gzip(&vec![0; 16 << 20]);
        assert!(bomb.len() < 256 << 10);
        assert_eq!(code(&bomb, "gzip", BODY_LIMIT), Err(413));
    }
}
