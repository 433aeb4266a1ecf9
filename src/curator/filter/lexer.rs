//! Words of an expression.

use super::Error;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Also `true`, `in` and reserved words.
    Word(String),
    /// Without a sign.
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// An operator or a bracket.
    Mark(&'static str),
    End,
}

/// The longer ones first.
const MARKS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "-", "+", "*", "/", "%", "?", ":", ".", ",",
    "[", "]", "{", "}", "(", ")",
];

/// All words with where they begin, and the end.
pub(super) fn words(text: &str) -> Result<Vec<(usize, Token)>, Error> {
    let mut lexer = Lexer { text, at: 0 };
    let mut words = Vec::new();
    loop {
        lexer.skip();
        let at = lexer.at;
        let token = lexer.next().map_err(|why| Error::at(text, at, why))?;
        let end = token == Token::End;
        words.push((at, token));
        if end {
            return Ok(words);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let spaces = rest.len() - rest.trim_start_matches(WHITE).len();
            self.at += spaces;
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    fn next(&mut self) -> Result<Token, String> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if let Some(token) = self.quoted()? {
            return Ok(token);
        }
        let after_point = rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if first.is_ascii_digit() || (first == '.' && after_point) {
            return self.number();
        }
        if first == '_' || first.is_ascii_alphabetic() {
            let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            let word = &rest[..end.unwrap_or(rest.len())];
            self.at += word.len();
            return Ok(Token::Word(word.to_owned()));
        }
        match MARKS.into_iter().find(|mark| rest.starts_with(mark)) {
            Some(mark) => {
                self.at += mark.len();
                Ok(Token::Mark(mark))
            }
            None => Err(format!("{first:?} is not expected here")),
        }
    }

    fn number(&mut self) -> Result<Token, String> {
        let rest = self.rest();
        let count = |text: &str, is: fn(&u8) -> bool| text.bytes().take_while(is).count();
        let digits = |text: &str| count(text, u8::is_ascii_digit);
        let hex = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X"));
        if let Some(hex) = hex.filter(|hex| count(hex, u8::is_ascii_hexdigit) > 0) {
            let length = count(hex, u8::is_ascii_hexdigit);
            self.at += 2 + length;
            return self.whole(u64::from_str_radix(&hex[..length], 16).ok(), rest);
        }
        let mut length = digits(rest);
        let mut whole = true;
        if rest[length..].starts_with('.') && digits(&rest[length + 1..]) > 0 {
            whole = false;
            length += 1 + digits(&rest[length + 1..]);
        }
        if rest[length..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
            let exponent = digits(&rest[length + 1 + sign..]);
            if exponent > 0 {
                whole = false;
                length += 1 + sign + exponent;
            }
        }
        self.at += length;
        let digits = &rest[..length];
        if whole {
            return self.whole(digits.parse().ok(), rest);
        }
        digits.parse().map(Token::Double).map_err(|_| format!("{digits} is no number"))
    }

    fn whole(&mut self, value: Option<u64>, from: &str) -> Result<Token, String> {
        let unsigned = self.rest().starts_with(['u', 'U']);
        self.at += usize::from(unsigned);
        let length = from.len() - self.rest().len();
        let value = value.ok_or_else(|| format!("{} is out of range", &from[..length]))?;
        Ok(if unsigned { Token::Uint(value) } else { Token::Int(value) })
    }

    /// A text or bytes, if here is one: `'…'`, `"…"`, thrice the mark for several lines; before it `r` for one without
    /// escapes, `b` for bytes.
    fn quoted(&mut self) -> Result<Option<Token>, String> {
        let rest = self.rest();
        let prefix = rest.bytes().take_while(|byte| b"rRbB".contains(byte)).count();
        let letters = rest[..prefix].to_ascii_lowercase();
        let Some(quote) = rest[prefix..].chars().next().filter(|c| ['\'', '"'].contains(c)) else {
            return Ok(None);
        };
        if !["", "r", "b", "br", "rb"].contains(&&*letters) {
            return Ok(None);
        }
        let (raw, bytes) = (letters.contains('r'), letters.contains('b'));
        let thrice = quote.to_string().repeat(3);
        let open = &rest[prefix..];
        let mark = if open.starts_with(&thrice) { &*thrice } else { &thrice[..1] };
        let mut body = &open[mark.len()..];
        let mut out = Out { bytes: Vec::new(), octets: bytes };
        loop {
            if let Some(after) = body.strip_prefix(mark) {
                self.at += rest.len() - after.len();
                break;
            }
            let Some(c) = body.chars().next() else {
                return Err("the text has no end".to_owned());
            };
            if c == '\\' && !raw {
                body = out.escape(&body[1..])?;
            } else if matches!(c, '\n' | '\r') && mark.len() == 1 {
                return Err("the text has no end in its line".to_owned());
            } else {
                out.character(c);
                body = &body[c.len_utf8()..];
            }
        }
        if bytes {
            return Ok(Some(Token::Bytes(out.bytes)));
        }
        match String::from_utf8(out.bytes) {
            Ok(text) => Ok(Some(Token::Text(text))),
            Err(_) => Err("the text is no Unicode".to_owned()),
        }
    }
}

const WHITE: [char; 5] = ['\t', '\n', '\u{c}', '\r', ' '];

struct Out {
    bytes: Vec<u8>,
    /// `\xff` is one byte, else one character.
    octets: bool,
}

impl Out {
    fn character(&mut self, c: char) {
        self.bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }

    /// One escape, behind its backslash; gives what follows.
    fn escape<'a>(&mut self, text: &'a str) -> Result<&'a str, String> {
        let first = text.chars().next().ok_or("the text has no end")?;
        let after = &text[first.len_utf8()..];
        let simple = match first {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '?' | '"' | '\'' | '`' => u8::try_from(first).unwrap_or_default(),
            'x' | 'X' => return self.code(after, 2, 16),
            'u' if !self.octets => return self.code(after, 4, 16),
            'U' if !self.octets => return self.code(after, 8, 16),
            '0'..='3' => return self.code(text, 3, 8),
            _ => return Err(format!("\\{first} is no escape")),
        };
        self.bytes.push(simple);
        Ok(after)
    }

    fn code<'a>(&mut self, text: &'a str, length: usize, radix: u32) -> Result<&'a str, String> {
        let digits = text.get(..length).filter(|it| it.chars().all(|c| c.is_digit(radix)));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, radix).ok());
        let wrong =
            || format!("an escape with a code has {length} digits, of a character there is");
        match (code, self.octets) {
            (Some(code), true) => self.bytes.push(u8::try_from(code).map_err(|_| wrong())?),
            (Some(code), false) => self.character(char::from_u32(code).ok_or_else(wrong)?),
            (None, _) => return Err(wrong()),
        }
        Ok(&text[length..])
    }
}
