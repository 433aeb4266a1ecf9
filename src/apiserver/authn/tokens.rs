//! The static token file: lines of `token,user,uid,"group1,group2"`, written as RFC 4180 has it.

use std::collections::HashMap;
use std::fmt;

use ring::digest::{SHA256, digest};

use crate::object::User;

/// The tokens of the file, by their digests: how long a look takes tells nothing of a token.
#[derive(Default)]
pub struct Tokens(HashMap<[u8; 32], User>);

/// What is wrong with the file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {why}")]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// What is not as it should be.
    pub why: &'static str,
}

impl Tokens {
    /// Reads a file's text; of lines with the same token the last counts.
    ///
    /// # Errors
    /// The first line that is none of at least token, user and uid.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let mut tokens = HashMap::new();
        for (line, record) in records(text)? {
            let problem = |why| Err(Problem { line, why });
            let [token, name, uid, rest @ ..] = &record[..] else {
                return problem("it has fewer than three columns: token,user,uid");
            };
            if token.is_empty() {
                return problem("its token is empty");
            }
            if name.is_empty() {
                return problem("its user is empty");
            }
            let mut user = User { name: name.clone(), uid: uid.clone(), ..User::default() };
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            for group in groups.split(',').map(str::trim).filter(|group| !group.is_empty()) {
                user.join(group);
            }
            tokens.insert(key(token), user);
        }
        Ok(Self(tokens))
    }

    /// Whose token it is.
    #[must_use]
    pub fn find(&self, token: &str) -> Option<&User> {
        if self.0.is_empty() { None } else { self.0.get(&key(token)) }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.values().map(|user| &user.name)).finish()
    }
}

fn key(token: &str) -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    key
}

/// The records of a CSV text, each with its first line's number; empty lines are none.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, Problem> {
    let (mut records, mut line) = (Vec::new(), 1);
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')) {
            (rest, line) = (after, line + 1);
            continue;
        }
        let first = line;
        let mut record = Vec::new();
        loop {
            let (field, after) = field(rest).map_err(|why| Problem { line: first, why })?;
            line += rest[..rest.len() - after.len()].matches('\n').count();
            record.push(field);
            rest = match after.strip_prefix(',') {
                Some(after) => after,
                None => {
                    rest = after;
                    break;
                }
            };
        }
        records.push((first, record));
    }
    Ok(records)
}

/// A field and what follows it: a comma, the end of the line or of the text.
fn field(text: &str) -> Result<(String, &str), &'static str> {
    let ends = |after: &str| {
        after.is_empty() || after.starts_with([',', '\n']) || after.starts_with("\r\n")
    };
    let Some(mut quoted) = text.strip_prefix('"') else {
        let line = text.find(['\n', ',']).unwrap_or(text.len());
        let end = if text[line..].starts_with('\n') && text[..line].ends_with('\r') {
            line - 1
        } else {
            line
        };
        if text[..end].contains('"') {
            return Err("a quote is inside a field that is not quoted");
        }
        return Ok((text[..end].to_owned(), &text[end..]));
    };
    let mut field = String::new();
    loop {
        let end = quoted.find('"').ok_or("a quoted field has no end")?;
        field.push_str(&quoted[..end]);
        quoted = &quoted[end + 1..];
        match quoted.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                quoted = after;
            }
            None if ends(quoted) => return Ok((field, quoted)),
            None => return Err("something follows the quote that ends a field"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(text: &str, token: &str) -> Option<String> {
        let tokens = Tokens::parse(text).unwrap_or_else(|problem| panic!("{text:?}: {problem}"));
        let user = tokens.find(token)?;
        Some(format!("{}/{} {:?}", user.name, user.uid, user.groups))
    }

    #[test]
    fn users_are_found_by_their_tokens() {
        let text = "abc,anna,1,\"admins, users,admins\"\r\n\ndef,\"o\"\"hara\",,dev\nghi,eve,3,,x\njkl,jo,4";
        for (token, user) in [
            ("abc", Some("anna/1 [\"admins\", \"users\"]")),
            ("def", Some("o\"hara/ [\"dev\"]")),
            ("ghi", Some("eve/3 []")),
            ("jkl", Some("jo/4 []")),
            ("ab", None),
            ("", None),
        ] {
            assert_eq!(told(text, token).as_deref(), user, "{token}");
        }
        assert_eq!(told("a,x,1\na,y,2\n", "a").as_deref(), Some("y/2 []"));
        assert_eq!(told("", "a"), None);
    }

    #[test]
    fn a_line_that_is_none_is_told_by_its_number() {
        for (text, line, why) in [
            ("a,b,c\nd,e\n", 2, "it has fewer than three columns: token,user,uid"),
            ("a,\"b\nb\",c\n,d,e", 3, "its token is empty"),
            ("a,,c", 1, "its user is empty"),
            ("\n\na,b\"b,c", 3, "a quote is inside a field that is not quoted"),
            ("a,\"b", 1, "a quoted field has no end"),
            ("a,\"b\"c,d", 1, "something follows the quote that ends a field"),
        ] {
            assert_eq!(Tokens::parse(text).err(), Some(Problem { line, why }), "{text:?}");
        }
    }

    #[test]
    fn debug_output_shows_no_token() {
        let tokens = Tokens::parse("secret,anna,1").expect("sound");
        assert_eq!(format!("{tokens:?}"), "{\"anna\"}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in proptest::collection::vec(("[ -~]{1,9}", "[ -~\n]{1,9}", "[ -~]{0,9}"), 0..5)) {
            let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let text: String = rows
                .iter()
                .map(|(token, name, uid)| format!("{},{},{}\n", quoted(token), quoted(name), quoted(uid)))
                .collect();
            let tokens = Tokens::parse(&text).expect("sound");
            for (token, ..) in &rows {
                let (_, name, uid) = rows.iter().rfind(|(other, ..)| other == token).expect("it is there");
                let user = tokens.find(token).expect("it was written");
                prop_assert_eq!((&user.name, &user.uid), (name, uid));
            }
        }

        #[test]
        fn any_text_never_panics(text in "[a,\"\r\n]{0,20}") {
            let _ = Tokens::parse(&text);
        }
    }
}
