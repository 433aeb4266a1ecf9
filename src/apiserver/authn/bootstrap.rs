//! The tokens by which a node joins: `ID.SECRET`, each the Secret `kube-system/bootstrap-token-ID`.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::object::{Object, Objects, User, at, text};
use crate::resources::find;

/// Of all of them.
const GROUP: &str = "system:bootstrappers";
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// Who holds the token and when it ends; none: it is no text of this form. The error is why it does not count.
pub(super) fn verify(
    token: &str,
    objects: &dyn Objects,
    now: SystemTime,
) -> Option<Result<(User, Option<SystemTime>), String>> {
    let (id, secret) = token.split_once('.')?;
    let of = |text: &str, length| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    (of(id, 6) && of(secret, 16)).then(|| judge(id, secret, objects, now))
}

fn judge(
    id: &str,
    secret: &str,
    objects: &dyn Objects,
    now: SystemTime,
) -> Result<(User, Option<SystemTime>), String> {
    let name = format!("bootstrap-token-{id}");
    let secrets = find("", "v1", "secrets").expect("secrets are served");
    let wrong = |why: &str| Err(format!("the Secret kube-system/{name} {why}"));
    let Some(stored) = objects.get(secrets, "kube-system", &name) else {
        return wrong("is not there");
    };
    if text(&stored, "/type") != TYPE {
        return wrong(&format!("is not of type {TYPE}"));
    }
    if at(&stored, "/metadata/deletionTimestamp").is_some() {
        return wrong("is being deleted");
    }
    // Digests are compared: how long that takes tells nothing of the secret.
    let digests = [secret, &value(&stored, "token-secret")]
        .map(|text| digest(&SHA256, text.as_bytes()).as_ref().to_vec());
    if value(&stored, "token-id") != id || digests[0] != digests[1] {
        return wrong("has another token");
    }
    let until = match &*value(&stored, "expiration") {
        "" => None,
        text => match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(time) => Some(SystemTime::from(time)),
            Err(_) => return wrong("has an expiration that is no time"),
        },
    };
    if until.is_some_and(|until| until <= now) {
        return wrong("has expired");
    }
    if value(&stored, "usage-bootstrap-authentication") != "true" {
        return wrong("is not for authentication");
    }
    let mut user = User { name: format!("system:bootstrap:{id}"), ..User::default() };
    user.join(GROUP);
    let groups = value(&stored, "auth-extra-groups");
    for group in groups.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        if !is_group(group) {
            return wrong(&format!("has the group {group:?}, which may not be given so"));
        }
        user.join(group);
    }
    Ok((user, until))
}

/// `\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`
fn is_group(group: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let name = group.strip_prefix(GROUP).and_then(|name| name.strip_prefix(':'));
    name.is_some_and(|name| {
        name.len() <= 256
            && name.bytes().last().is_some_and(plain)
            && name.bytes().all(|byte| plain(byte) || matches!(byte, b':' | b'-'))
    })
}

/// A text of the Secret's; empty if it is not there, or no text.
fn value(secret: &Object, key: &str) -> String {
    let encoded = secret.get("data").and_then(|data| data.get(key)?.as_str());
    let bytes = encoded.and_then(|text| STANDARD.decode(text).ok());
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_the_reference() {
        for (group, allowed) in [
            ("system:bootstrappers:worker", true),
            ("system:bootstrappers:a:b-c", true),
            ("system:bootstrappers:", false),
            ("system:bootstrappers", false),
            ("system:bootstrappers:a-", false),
            ("system:bootstrappers:A", false),
            ("system:masters", false),
        ] {
            assert_eq!(is_group(group), allowed, "{group}");
        }
        assert!(is_group(&format!("system:bootstrappers:{}", "a".repeat(256))));
        assert!(!is_group(&format!("system:bootstrappers:{}", "a".repeat(257))));
    }
}
