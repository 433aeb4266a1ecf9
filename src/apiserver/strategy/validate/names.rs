//! The forms of names, and what the reference says of what has none of them.

use std::net::IpAddr;

/// A form of names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// RFC 1123: `a-1`, at most 63.
    Label,
    /// RFC 1123: `a-1.b`, at most 253.
    Subdomain,
    /// RFC 1035: `a-1`, a letter first, at most 63.
    Label1035,
    /// Of a path: anything but `.`, `..`, `/` and `%`.
    Segment,
    /// Of a label or annotation: `a.b/Name_1`.
    Qualified,
    /// What a label may be.
    LabelValue,
    /// Of a port: `http`, at most 15.
    Port,
    /// Of an environment variable.
    Variable,
    /// A key of a ConfigMap or Secret.
    Key,
    /// An IP address.
    Address,
    /// A range of them.
    Cidr,
    /// `a.b/c`, in front of the slash a domain.
    DomainPath,
    /// `25%` or a number, as text.
    Percent,
}

/// What is wrong with a text; nothing: it has the form.
pub(super) fn wrong(form: Form, text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut say = |wrong: bool, message: &str| {
        if wrong {
            all.push(message.to_owned());
        }
    };
    match form {
        Form::Label => {
            say(!is_label(text), LABEL);
            say(text.len() > 63, MOST_63);
        }
        Form::Subdomain => {
            say(text.len() > 253, "must be no more than 253 bytes");
            say(!is_subdomain(text), SUBDOMAIN);
        }
        Form::Label1035 => {
            let starts = text.starts_with(|first: char| first.is_ascii_lowercase());
            say(!starts || !is_label(text), LABEL_1035);
            say(text.len() > 63, MOST_63);
        }
        Form::Segment => {
            say(text == ".", "may not be '.'");
            say(text == "..", "may not be '..'");
            say(text.contains('/'), "may not contain '/'");
            say(text.contains('%'), "may not contain '%'");
        }
        Form::Qualified => all.extend(wrong_qualified(text)),
        Form::LabelValue => {
            say(text.len() > 63, MOST_63);
            say(!text.is_empty() && !is_name_part(text), LABEL_VALUE);
        }
        Form::Port => {
            let known =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            say(text.len() > 15, "must be no more than 15 characters");
            say(
                !text.bytes().all(known),
                "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            );
            say(
                !text.bytes().any(|byte| byte.is_ascii_lowercase()),
                "must contain at least one letter (a-z)",
            );
            say(text.contains("--"), "must not contain consecutive hyphens");
            say(
                text.starts_with('-') || text.ends_with('-'),
                "must not begin or end with a hyphen",
            );
        }
        Form::Variable => {
            let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
            say(
                !text.bytes().all(printable),
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            );
        }
        Form::Key => {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            say(text.len() > 253, "must be no more than 253 bytes");
            say(text.is_empty() || !text.bytes().all(known), KEY);
            say(text == ".", "must not be '.'");
            say(text == "..", "must not be '..'");
            say(text.starts_with("..") && text != "..", "must not start with '..'");
        }
        Form::Address => say(
            text.parse::<IpAddr>().is_err(),
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        Form::Cidr => say(
            cidr(text).is_none(),
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ),
        Form::DomainPath => match text.split_once('/') {
            Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
                say(!is_subdomain(domain), SUBDOMAIN);
                say(path.bytes().any(|byte| !is_path_byte(byte)), "must be a valid path");
            }
            _ => say(true, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        },
        Form::Percent => {
            let digits = text.strip_suffix('%').unwrap_or_default();
            say(digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()), PERCENT);
        }
    }
    all
}

/// An address and the length of a prefix of it.
pub(super) fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let plain = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|length| plain && *length <= most)?;
    Some((address, length))
}

/// A base of names that end with something generated: it may end with a hyphen or a dot.
pub(super) fn wrong_base(form: Form, base: &str) -> Vec<String> {
    let end = base.trim_end_matches(['-', '.']);
    let masked = if form != Form::Segment && end.len() < base.len() && base.len() > 1 {
        format!("{}a", &base[..base.len() - 1])
    } else {
        base.to_owned()
    };
    wrong(form, &masked)
}

fn wrong_qualified(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                all.push("prefix part must be non-empty".to_owned());
            } else {
                let wrong = wrong(Form::Subdomain, prefix);
                all.extend(wrong.into_iter().map(|what| format!("prefix part {what}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        all.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        all.push(format!("name part {MOST_63}"));
    }
    if !is_name_part(name) {
        all.push(format!("name part {QUALIFIED}"));
    }
    all
}

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().all(|byte| plain(byte) || byte == b'-')
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// Letters and digits of any case, and between them `-`, `_` and `.`.
fn is_name_part(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes().all(|byte| plain(byte) || b"-_.".contains(&byte))
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte)
}

const MOST_63: &str = "must be no more than 63 bytes";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
    'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
    '93%', regex used for validation is '[0-9]+%')";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_forms() {
        let long = "a".repeat(64);
        for (form, good, bad) in [
            (Form::Label, vec!["a", "0-a"], vec!["", "A", "-a", "a.b", "a-", &long]),
            (Form::Subdomain, vec!["a", "a.b-c.0", &long], vec!["", "a..b", ".a", "a_b"]),
            (Form::Label1035, vec!["a-0"], vec!["0a", "a-", "", &long]),
            (Form::Segment, vec!["system:node", "A b"], vec![".", "..", "a/b", "a%b"]),
            (
                Form::Qualified,
                vec!["a", "A_b.c", "x.y/Z"],
                vec!["", "/a", "a/", "a/b/c", "X/a", "-a", &long],
            ),
            (Form::LabelValue, vec!["", "A_b"], vec!["-", "a b", &long]),
            (Form::Port, vec!["http", "a-1"], vec!["80", "a--b", "-a", "Http", "a23456789012345x"]),
            (Form::Variable, vec!["A", "a-b.c", "1"], vec!["a=b", "ä"]),
            (Form::Key, vec!["a.b_C-1", "..."], vec!["", ".", "..", "..a", "a/b"]),
            (Form::Address, vec!["10.0.0.1", "::1"], vec!["", "10.0.0", "1.2.3.256"]),
            (
                Form::Cidr,
                vec!["10.0.0.0/8", "::/0"],
                vec!["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8"],
            ),
            (Form::DomainPath, vec!["a.b/c/d"], vec!["a", "a/", "/a", "A/b"]),
            (Form::Percent, vec!["0%", "150%"], vec!["%", "1", "-1%", "a%"]),
        ] {
            for text in good {
                let wrong = wrong(form, text);
                assert!(wrong.is_empty() || text == "...", "{form:?} {text}: {wrong:?}");
            }
            for text in bad {
                assert!(!wrong(form, text).is_empty(), "{form:?} {text:?}");
            }
        }
        assert!(wrong_base(Form::Subdomain, "a-").is_empty());
        assert!(!wrong_base(Form::Subdomain, "-").is_empty());
        assert!(!wrong_base(Form::Label, "A-").is_empty());
    }
}
