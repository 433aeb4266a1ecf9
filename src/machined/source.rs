//! Where the machine configuration comes from: the word of `talos.config=`, read and understood.

use std::path::PathBuf;

use http::Uri;

/// A place to fetch the machine configuration from (spec §7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `metal-iso`: the file `config.yaml` of the volume with this label.
    Volume,
    /// `http://…`.
    Http(Uri),
    /// `file://…`.
    File(PathBuf),
}

/// The label of the volume that [`Source::Volume`] means.
pub(crate) const VOLUME_LABEL: &str = "metal-iso";

/// Why the word of `talos.config=` names no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("talos.config={0}: not a URL; give http://HOST/PATH, file:///PATH or metal-iso")]
    NotUrl(String),
    #[error("talos.config={0}: the scheme is not supported; give http://, file:// or metal-iso")]
    Scheme(String),
}

impl Source {
    /// Understands `word`; a query key `uuid` is filled with `uuid`, the machine's SMBIOS UUID.
    pub(crate) fn parse(word: &str, uuid: &str) -> Result<Self, SourceError> {
        if word == VOLUME_LABEL {
            return Ok(Self::Volume);
        }
        if let Some(path) = word.strip_prefix("file://") {
            return Ok(Self::File(path.into()));
        }
        let uri: Uri =
            fill_uuid(word, uuid).parse().map_err(|_| SourceError::NotUrl(word.to_owned()))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(_)) => Ok(Self::Http(uri)),
            (Some(_), _) => Err(SourceError::Scheme(word.to_owned())),
            _ => Err(SourceError::NotUrl(word.to_owned())),
        }
    }

    /// Whether it takes a working network to get there.
    pub(crate) fn needs_network(&self) -> bool {
        matches!(self, Self::Http(_))
    }

    /// The file name that errors in the document are reported under.
    pub(crate) fn file_name(&self) -> &str {
        let name = match self {
            Self::Volume => None,
            Self::Http(uri) => uri.path().rsplit('/').next(),
            Self::File(path) => path.file_name().and_then(|name| name.to_str()),
        };
        name.filter(|name| !name.is_empty()).unwrap_or("config.yaml")
    }
}

fn fill_uuid(url: &str, uuid: &str) -> String {
    let Some((base, query)) = url.split_once('?') else { return url.to_owned() };
    let query: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=').map_or(pair, |(key, _)| key) {
            "uuid" => format!("uuid={uuid}"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{base}?{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood() {
        let parse = |word| Source::parse(word, "ab-cd");
        assert_eq!(parse("metal-iso"), Ok(Source::Volume));
        assert_eq!(parse("file:///a/b.yaml"), Ok(Source::File("/a/b.yaml".into())));
        assert!(parse("http://10.0.2.2:8080/machine.yaml").is_ok_and(|source| {
            source.needs_network() && source.file_name() == "machine.yaml"
        }));
        assert_eq!(parse("tftp://h/c"), Err(SourceError::Scheme("tftp://h/c".to_owned())));
        assert_eq!(parse("nonsense"), Err(SourceError::NotUrl("nonsense".to_owned())));
    }

    #[test]
    fn the_uuid_goes_into_the_query_only_where_asked_for() {
        assert_eq!(fill_uuid("http://h/c?a=1&uuid=&b=2", "x-y"), "http://h/c?a=1&uuid=x-y&b=2");
        assert_eq!(fill_uuid("http://h/c?uuid", "x"), "http://h/c?uuid=x");
        assert_eq!(fill_uuid("http://h/uuid=", "x"), "http://h/uuid=");
    }
}
