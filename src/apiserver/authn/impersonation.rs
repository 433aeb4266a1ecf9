//! Acting as somebody else: the `Impersonate-` headers, each of which needs the verb `impersonate` (`spec/kube-api.md`
//! §1, stage 6).

use std::collections::BTreeMap;

use http::HeaderMap;

use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, account};
use crate::object::User;
use crate::request::Asked;
use crate::status::Status;

/// The verb that each header needs.
pub const VERB: &str = "impersonate";

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// The group of what is no service account, user or group.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom a request is to be taken for; none: for its own user. `allow` says whether that one may [`VERB`] what it is
/// given.
///
/// # Errors
/// 400 when the headers cannot be read, or there is no user among them; what `allow` says of each.
pub fn target(
    headers: &HeaderMap,
    mut allow: impl FnMut(&Asked<'_>) -> Result<(), Status>,
) -> Result<Option<User>, Status> {
    let read = |value: &http::HeaderValue, name: &str| {
        let text = str::from_utf8(value.as_bytes()).ok();
        text.map(str::to_owned)
            .ok_or_else(|| Status::bad_request(format!("the header {name} is no text")))
    };
    let one = |name: &str| {
        let value = headers.get(name).map(|value| read(value, name)).transpose();
        value.map(Option::unwrap_or_default)
    };
    let (name, uid) = (one(USER)?, one(UID)?);
    let mut groups: Vec<String> =
        headers.get_all(GROUP).iter().map(|value| read(value, GROUP)).collect::<Result<_, _>>()?;
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            let value = read(value, header.as_str())?;
            extra.entry(unescaped(key)).or_default().push(value);
        }
    }
    if name.is_empty() {
        return if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            Ok(None)
        } else {
            let message = "Impersonate-Group, -Uid and -Extra- need Impersonate-User beside them";
            Err(Status::bad_request(message))
        };
    }

    let account = account::of_user(&name);
    let version = "v1";
    allow(&match account {
        Some((namespace, name)) => {
            Asked { version, namespace, plural: "serviceaccounts", name, ..Asked::default() }
        }
        None => Asked { version, plural: "users", name: &name, ..Asked::default() },
    })?;
    for group in &groups {
        allow(&Asked { version, plural: "groups", name: group, ..Asked::default() })?;
    }
    let further = Asked { group: AUTHENTICATION, version, ..Asked::default() };
    for (key, values) in &extra {
        for value in values {
            allow(&Asked { plural: "userextras", subresource: key, name: value, ..further })?;
        }
    }
    if !uid.is_empty() {
        allow(&Asked { plural: "uids", name: &uid, ..further })?;
    }

    // A service account is in its groups unless others are named.
    if let Some((namespace, _)) = account.filter(|_| groups.is_empty()) {
        groups.extend(account::groups(namespace));
    }
    let has = |groups: &[String], group: &str| groups.iter().any(|own| own == group);
    if name == ANONYMOUS {
        if !has(&groups, UNAUTHENTICATED) {
            groups.push(UNAUTHENTICATED.to_owned());
        }
    } else if !has(&groups, AUTHENTICATED) && !has(&groups, UNAUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    let mut user = User { name, uid, extra, ..User::default() };
    for group in groups {
        user.join(&group);
    }
    Ok(Some(user))
}

/// A key as it was before it became a header's name: `%` and two hex digits are a byte (RFC 3986 §2.1).
fn unescaped(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let hex =
            |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (first, after) {
            (b'%', [high, low, behind @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = behind;
                }
                _ => bytes.push(*first),
            },
            _ => bytes.push(*first),
        }
    }
    // What is no text after that was none before it.
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a line of a header");
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    /// What had to be allowed, in order, and whom it made.
    fn told(lines: &[&str]) -> (Vec<String>, Option<User>) {
        let mut asked = Vec::new();
        let user = target(&headers(lines), |what| {
            let Asked { group, namespace, plural, subresource, name, .. } = what;
            asked.push(format!("{group}/{namespace}/{plural}/{subresource}/{name}"));
            Ok(())
        });
        (asked, user.expect("all is allowed"))
    }

    #[test]
    fn each_header_is_asked_for_by_itself() {
        let (asked, user) = told(&[
            "Impersonate-User: anna",
            "Impersonate-Group: dev",
            "Impersonate-Group: ops",
            "Impersonate-Uid: 7",
            "Impersonate-Extra-Scopes: view",
            "Impersonate-Extra-Scopes: edit",
            "Impersonate-Extra-Acme.com%2Fproject: x",
        ]);
        assert_eq!(
            asked,
            [
                "//users//anna",
                "//groups//dev",
                "//groups//ops",
                "authentication.k8s.io//userextras/acme.com/project/x",
                "authentication.k8s.io//userextras/scopes/view",
                "authentication.k8s.io//userextras/scopes/edit",
                "authentication.k8s.io//uids//7",
            ]
        );
        let user = user.expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("anna", "7"));
        assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(user.extra["scopes"], ["view", "edit"]);
        assert_eq!(user.extra["acme.com/project"], ["x"]);
    }

    #[test]
    fn a_service_account_is_in_its_groups_unless_others_are_named() {
        let (asked, user) = told(&["Impersonate-User: system:serviceaccount:a:b"]);
        assert_eq!(asked, ["/a/serviceaccounts//b"]);
        let groups = ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"];
        assert_eq!(user.expect("a user").groups, groups);
        let (_, user) =
            told(&["Impersonate-User: system:serviceaccount:a:b", "Impersonate-Group: dev"]);
        assert_eq!(user.expect("a user").groups, ["dev", "system:authenticated"]);
        let (_, user) = told(&["Impersonate-User: system:anonymous"]);
        assert_eq!(user.expect("a user").groups, ["system:unauthenticated"]);
    }

    #[test]
    fn nobody_is_nobody_and_a_group_alone_is_refused() {
        assert_eq!(told(&["Accept: x"]), (Vec::new(), None));
        for line in ["Impersonate-Group: a", "Impersonate-Uid: a", "Impersonate-Extra-A: a"] {
            let refused = target(&headers(&[line]), |_| Ok(())).expect_err("no user");
            assert_eq!(refused.code, 400, "{line}");
        }
        let lines = headers(&["Impersonate-User: anna"]);
        let refused = target(&lines, |_| Err(Status::unauthorized())).expect_err("not allowed");
        assert_eq!(refused, Status::unauthorized());
    }

    #[test]
    fn keys_are_unescaped() {
        for (key, meant) in
            [("a%2fb", "a/b"), ("a%2", "a%2"), ("%zz", "%zz"), ("%ff", "%ff"), ("%25", "%")]
        {
            assert_eq!(unescaped(key), meant);
        }
    }
}
