//! What a request is about, told from its method, path and query alone: the words that authorization, audit and
//! metrics use.

/// What is asked, as authorization sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Info<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; of other paths the method.
    pub verb: &'static str,
    /// None: a path that is no resource, as `/healthz`.
    pub resource: Option<Asked<'a>>,
}

/// A resource in a path.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Asked<'a> {
    /// Empty: core.
    pub group: &'a str,
    /// `v1`.
    pub version: &'a str,
    /// Empty: all namespaces, or a resource that is in none.
    pub namespace: &'a str,
    /// `pods`.
    pub plural: &'a str,
    /// Empty: the collection. For a list or watch it is what `fieldSelector=metadata.name=…` names.
    pub name: &'a str,
    /// Empty: the object itself. What follows it in the path is the subresource's own.
    pub subresource: &'a str,
}

/// Tells what a request is about. `path` is decoded; `query` has the parameters in their order.
///
/// The path `/api/v1/namespaces/a` is the namespace `a`, `/api/v1/namespaces/a/pods` the pods in it, and
/// `/api/v1/namespaces/a/status` the status of it.
#[must_use]
pub fn info<'a>(method: &str, path: &'a str, query: &[(&'a str, &'a str)]) -> Info<'a> {
    let verb = plain_verb(method);
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match &parts[..] {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Info { verb, resource: None },
    };
    // The old form of a watch.
    let (watches, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    let own = |name: &&str| matches!(*name, "status" | "finalize");
    let (namespace, rest) = match rest {
        ["namespaces", name] => (*name, rest),
        ["namespaces", name, sub] if own(sub) => (*name, rest),
        ["namespaces", name, rest @ ..] => (*name, rest),
        rest => ("", rest),
    };
    let [plural, rest @ ..] = rest else { return Info { verb, resource: None } };
    if plural.is_empty() {
        return Info { verb, resource: None };
    }
    let mut asked = Asked { group, version, namespace, plural, ..Asked::default() };
    asked.name = rest.first().copied().unwrap_or_default();
    asked.subresource = rest.get(1).copied().unwrap_or_default();
    let parameter =
        |name: &str| query.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let asks_to_watch = parameter("watch").is_some_and(|value| !matches!(value, "false" | "0"));
    let verb = match method {
        "GET" | "HEAD" if watches => "watch",
        "GET" | "HEAD" if asked.name.is_empty() && asks_to_watch => "watch",
        "GET" | "HEAD" if asked.name.is_empty() => "list",
        "GET" | "HEAD" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if asked.name.is_empty() => "deletecollection",
        "DELETE" => "delete",
        _ => verb,
    };
    if asked.name.is_empty() && matches!(verb, "list" | "watch" | "deletecollection") {
        asked.name = parameter("fieldSelector").and_then(named).unwrap_or_default();
    }
    Info { verb, resource: Some(asked) }
}

/// The one name a field selector asks for.
fn named(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|term| {
        let value = term.trim().strip_prefix("metadata.name=")?;
        let value = value.strip_prefix('=').unwrap_or(value);
        // A value with an escape is no name.
        (!value.contains('\\')).then_some(value)
    })
}

fn plain_verb(method: &str) -> &'static str {
    match method {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `verb group/version namespace plural name subresource`, with `-` for what is empty.
    fn told(method: &str, path: &str) -> String {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let info = info(method, path, &query);
        let Some(asked) = info.resource else { return info.verb.to_owned() };
        let words = [asked.namespace, asked.plural, asked.name, asked.subresource];
        let words = words.map(|word| if word.is_empty() { "-" } else { word });
        format!("{} {}/{} {}", info.verb, asked.group, asked.version, words.join(" "))
    }

    #[test]
    fn paths_and_methods_are_told_as_the_reference_does() {
        for (method, path, expected) in [
            ("GET", "/healthz", "get"),
            ("GET", "/", "get"),
            ("GET", "/api", "get"),
            ("GET", "/api/v1", "get"),
            ("GET", "/apis/apps", "get"),
            ("GET", "/apis/apps/v1", "get"),
            ("GET", "/api/v1/pods", "list /v1 - pods - -"),
            ("GET", "/api/v1/namespaces", "list /v1 - namespaces - -"),
            ("GET", "/api/v1/namespaces/a", "get /v1 a namespaces a -"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update /v1 a namespaces a finalize"),
            ("GET", "/api/v1/namespaces/a/pods", "list /v1 a pods - -"),
            ("GET", "/api/v1/namespaces/a/pods?watch=1", "watch /v1 a pods - -"),
            ("GET", "/api/v1/namespaces/a/pods?watch=false", "list /v1 a pods - -"),
            ("GET", "/api/v1/namespaces/a/pods?watch=", "watch /v1 a pods - -"),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch /v1 a pods - -"),
            (
                "GET",
                "/api/v1/namespaces/a/pods?fieldSelector=metadata.name=x",
                "list /v1 a pods x -",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods?watch=true&fieldSelector=spec.nodeName=n,metadata.name==x",
                "watch /v1 a pods x -",
            ),
            ("GET", "/api/v1/namespaces/a/pods/x", "get /v1 a pods x -"),
            ("GET", "/api/v1/namespaces/a/pods/x?watch=true", "get /v1 a pods x -"),
            ("GET", "/api/v1/namespaces/a/pods/x/log", "get /v1 a pods x log"),
            ("POST", "/api/v1/namespaces/a/pods/x/eviction", "create /v1 a pods x eviction"),
            ("GET", "/api/v1/nodes/n/proxy/metrics/cadvisor", "get /v1 - nodes n proxy"),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "create apps/v1 a deployments - -"),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch apps/v1 a deployments d scale",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments/d",
                "delete apps/v1 a deployments d -",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection apps/v1 a deployments - -",
            ),
            ("HEAD", "/api/v1/nodes/n", "get /v1 - nodes n -"),
            ("GET", "/api/v1/watch", "list /v1 - watch - -"),
        ] {
            assert_eq!(told(method, path), expected, "{method} {path}");
        }
    }
}
