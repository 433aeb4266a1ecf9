//! From words to a tree, by the grammar of the Common Expression Language. Nothing has a meaning yet.

use super::lexer::{Token, words};
use super::value::Value;
use super::{DEPTH, Error};

/// A part of an expression.
#[derive(Debug)]
pub(super) struct Tree {
    /// The first byte of it that an error may point at.
    pub(super) at: usize,
    depth: usize,
    pub(super) node: Node,
}

#[derive(Debug)]
pub(super) enum Node {
    Literal(Value),
    /// A name; with a dot before it (`absolute`) never that of a macro's variable.
    Name {
        name: String,
        absolute: bool,
    },
    Select(Box<Tree>, String),
    /// A function, a method, or an operator by its mark (`[]`, `!`, `-`, `==`, `in` …).
    Call {
        target: Option<Box<Tree>>,
        name: String,
        args: Vec<Tree>,
    },
    List(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
    And(Vec<Tree>),
    Or(Vec<Tree>),
    If(Box<[Tree; 3]>),
}

/// Words that no name may be.
const RESERVED: [&str; 21] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

pub(super) fn parse(text: &str) -> Result<Tree, Error> {
    let mut parser = Parser { text, words: words(text)?, next: 0, depth: 0 };
    let tree = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(tree),
        _ => Err(parser.unexpected("the end, or an operator")),
    }
}

struct Parser<'a> {
    text: &'a str,
    words: Vec<(usize, Token)>,
    next: usize,
    /// Of the calls of this parser that wait for each other.
    depth: usize,
}

/// Binary operators that bind more than `&&`, the loosest first.
const RELATIONS: [&str; 6] = ["==", "!=", "<=", ">=", "<", ">"];
const SUMS: [&str; 2] = ["+", "-"];
const PRODUCTS: [&str; 3] = ["*", "/", "%"];

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.words.get(self.next).map_or(&Token::End, |(_, token)| token)
    }

    fn at(&self) -> usize {
        self.words.get(self.next).map_or(self.text.len(), |(at, _)| *at)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn takes(&mut self, mark: &str) -> bool {
        let is = matches!(self.peek(), Token::Mark(it) if *it == mark);
        self.next += usize::from(is);
        is
    }

    fn takes_one_of(&mut self, marks: &[&'static str]) -> Option<&'static str> {
        let found = match self.peek() {
            Token::Mark(mark) => marks.iter().copied().find(|it| it == mark),
            _ => None,
        };
        self.next += usize::from(found.is_some());
        found
    }

    fn needs(&mut self, mark: &str) -> Result<(), Error> {
        if self.takes(mark) { Ok(()) } else { Err(self.unexpected(&format!("{mark:?}"))) }
    }

    fn unexpected(&self, expected: &str) -> Error {
        let found = match self.peek() {
            Token::End => "the end".to_owned(),
            Token::Word(word) => format!("{word:?}"),
            Token::Mark(mark) => format!("{mark:?}"),
            Token::Int(_) | Token::Uint(_) | Token::Double(_) => "a number".to_owned(),
            Token::Text(_) | Token::Bytes(_) => "a text".to_owned(),
        };
        Error::at(self.text, self.at(), format!("{expected} is expected here, not {found}"))
    }

    fn too_deep(&self) -> Error {
        Error::at(self.text, self.at(), format!("more than {DEPTH} expressions within each other"))
    }

    /// A tree above these.
    fn tree(&self, at: usize, node: Node) -> Result<Tree, Error> {
        let most = |trees: &[Tree]| trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
        let below = match &node {
            Node::Literal(_) | Node::Name { .. } => 0,
            Node::Select(of, _) => of.depth,
            Node::Call { target, args, .. } => {
                target.as_ref().map_or(0, |target| target.depth).max(most(args))
            }
            Node::List(trees) | Node::And(trees) | Node::Or(trees) => most(trees),
            Node::Map(pairs) => {
                pairs.iter().map(|(key, value)| key.depth.max(value.depth)).max().unwrap_or(0)
            }
            Node::If(trees) => most(&trees[..]),
        };
        if below >= DEPTH { Err(self.too_deep()) } else { Ok(Tree { at, depth: below + 1, node }) }
    }

    fn call(&self, at: usize, name: &str, args: Vec<Tree>) -> Result<Tree, Error> {
        self.tree(at, Node::Call { target: None, name: name.to_owned(), args })
    }

    fn expression(&mut self) -> Result<Tree, Error> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.too_deep());
        }
        let at = self.at();
        let condition = self.or()?;
        let tree = if self.takes("?") {
            let then = self.or()?;
            self.needs(":")?;
            let otherwise = self.expression()?;
            self.tree(at, Node::If(Box::new([condition, then, otherwise])))
        } else {
            Ok(condition)
        };
        self.depth -= 1;
        tree
    }

    /// Alternatives of one level are one node, so that a list of a hundred nodes is not a hundred levels.
    fn or(&mut self) -> Result<Tree, Error> {
        let at = self.at();
        let mut trees = vec![self.and()?];
        while self.takes("||") {
            trees.push(self.and()?);
        }
        self.one_or(at, trees, Node::Or)
    }

    fn and(&mut self) -> Result<Tree, Error> {
        let at = self.at();
        let mut trees = vec![self.relation()?];
        while self.takes("&&") {
            trees.push(self.relation()?);
        }
        self.one_or(at, trees, Node::And)
    }

    fn one_or(
        &self,
        at: usize,
        mut trees: Vec<Tree>,
        node: fn(Vec<Tree>) -> Node,
    ) -> Result<Tree, Error> {
        match trees.pop() {
            Some(tree) if trees.is_empty() => Ok(tree),
            Some(tree) => {
                trees.push(tree);
                self.tree(at, node(trees))
            }
            None => Err(self.unexpected("an expression")),
        }
    }

    fn relation(&mut self) -> Result<Tree, Error> {
        let mut left = self.sum()?;
        loop {
            let at = self.at();
            let name = match self.peek() {
                Token::Word(word) if word == "in" => {
                    self.next += 1;
                    "in"
                }
                _ => match self.takes_one_of(&RELATIONS) {
                    Some(mark) => mark,
                    None => return Ok(left),
                },
            };
            let right = self.sum()?;
            left = self.call(at, name, vec![left, right])?;
        }
    }

    fn sum(&mut self) -> Result<Tree, Error> {
        let mut left = self.product()?;
        loop {
            let at = self.at();
            let Some(mark) = self.takes_one_of(&SUMS) else { return Ok(left) };
            let right = self.product()?;
            left = self.call(at, mark, vec![left, right])?;
        }
    }

    fn product(&mut self) -> Result<Tree, Error> {
        let mut left = self.unary()?;
        loop {
            let at = self.at();
            let Some(mark) = self.takes_one_of(&PRODUCTS) else { return Ok(left) };
            let right = self.unary()?;
            left = self.call(at, mark, vec![left, right])?;
        }
    }

    fn unary(&mut self) -> Result<Tree, Error> {
        let at = self.at();
        let Some(mark) = self.takes_one_of(&["!", "-"]) else { return self.member() };
        if mark == "-" {
            // The smallest number has no positive one.
            if let Token::Int(size) = *self.peek() {
                let value = 0_i64.checked_sub_unsigned(size).ok_or_else(|| self.too_big(at))?;
                self.next += 1;
                let literal = self.tree(at, Node::Literal(Value::Int(value)))?;
                return self.members(literal);
            }
            if let Token::Double(value) = *self.peek() {
                self.next += 1;
                let literal = self.tree(at, Node::Literal(Value::Double(-value)))?;
                return self.members(literal);
            }
        }
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.too_deep());
        }
        let of = self.unary()?;
        self.depth -= 1;
        let name = if mark == "-" { NEGATE } else { mark };
        self.call(at, name, vec![of])
    }

    fn too_big(&self, at: usize) -> Error {
        Error::at(self.text, at, "the number is out of the range of int; write 1u for a uint")
    }

    fn member(&mut self) -> Result<Tree, Error> {
        let primary = self.primary()?;
        self.members(primary)
    }

    /// `.field`, `.method(…)`, `[index]`, as many as there are.
    fn members(&mut self, mut of: Tree) -> Result<Tree, Error> {
        loop {
            let at = self.at();
            if self.takes(".") {
                let at = self.at();
                let Token::Word(name) = self.peek().clone() else {
                    return Err(self.unexpected("the name of a field or method"));
                };
                if name == "in" {
                    return Err(self.unexpected("the name of a field or method"));
                }
                self.next += 1;
                of = if self.takes("(") {
                    let args = self.list(")")?;
                    self.tree(at, Node::Call { target: Some(Box::new(of)), name, args })?
                } else {
                    self.tree(at, Node::Select(Box::new(of), name))?
                };
            } else if self.takes("[") {
                let index = self.expression()?;
                self.needs("]")?;
                of = self.call(at, INDEX, vec![of, index])?;
            } else if matches!(of.node, Node::Name { .. } | Node::Select(..))
                && matches!(self.peek(), Token::Mark("{"))
            {
                return Err(Error::at(self.text, at, "messages are not made in a filter"));
            } else {
                return Ok(of);
            }
        }
    }

    fn primary(&mut self) -> Result<Tree, Error> {
        let at = self.at();
        let literal = |value| Node::Literal(value);
        let node = match self.peek().clone() {
            Token::Mark("(") => {
                self.next += 1;
                let tree = self.expression()?;
                self.needs(")")?;
                return Ok(tree);
            }
            Token::Mark("[") => {
                self.next += 1;
                Node::List(self.list("]")?)
            }
            Token::Mark("{") => {
                self.next += 1;
                Node::Map(self.pairs()?)
            }
            Token::Mark(".") => {
                self.next += 1;
                self.name(true)?
            }
            Token::Int(size) => {
                let value = i64::try_from(size).map_err(|_| self.too_big(at))?;
                self.next += 1;
                literal(Value::Int(value))
            }
            Token::Uint(value) => {
                self.next += 1;
                literal(Value::Uint(value))
            }
            Token::Double(value) => {
                self.next += 1;
                literal(Value::Double(value))
            }
            Token::Text(text) => {
                self.next += 1;
                literal(Value::text(&text))
            }
            Token::Bytes(bytes) => {
                self.next += 1;
                literal(Value::Bytes(bytes.into()))
            }
            Token::Word(word) => match &*word {
                "true" | "false" => {
                    self.next += 1;
                    literal(Value::Bool(word == "true"))
                }
                "null" => {
                    self.next += 1;
                    literal(Value::Null)
                }
                _ => self.name(false)?,
            },
            Token::Mark(_) | Token::End => return Err(self.unexpected("an expression")),
        };
        self.tree(at, node)
    }

    fn name(&mut self, absolute: bool) -> Result<Node, Error> {
        let word = match self.peek() {
            Token::Word(word) if !RESERVED.contains(&&**word) => word.clone(),
            _ => return Err(self.unexpected("a name")),
        };
        self.take();
        if self.takes("(") {
            let args = self.list(")")?;
            return Ok(Node::Call { target: None, name: word, args });
        }
        Ok(Node::Name { name: word, absolute })
    }

    /// Expressions up to a bracket, a comma after each but the last; `[]` may have one after the last.
    fn list(&mut self, end: &'static str) -> Result<Vec<Tree>, Error> {
        let mut trees = Vec::new();
        while !self.takes(end) {
            trees.push(self.expression()?);
            if !self.takes(",") {
                self.needs(end)?;
                break;
            }
            if end == ")" && matches!(self.peek(), Token::Mark(")")) {
                return Err(self.unexpected("an expression"));
            }
        }
        Ok(trees)
    }

    fn pairs(&mut self) -> Result<Vec<(Tree, Tree)>, Error> {
        let mut pairs = Vec::new();
        while !self.takes("}") {
            let key = self.expression()?;
            self.needs(":")?;
            pairs.push((key, self.expression()?));
            if !self.takes(",") {
                self.needs("}")?;
                break;
            }
        }
        Ok(pairs)
    }
}

/// `-` of one operand, as a function.
pub(super) const NEGATE: &str = "-_";
/// `a[b]`, as a function.
pub(super) const INDEX: &str = "[]";
