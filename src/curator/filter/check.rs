//! Gives a tree its meaning: names, functions, macros, fields and types are looked up once, what no node has a part in
//! is worked out, and what can never have a value is refused before any node is looked at.

use super::eval::{Eval, Pattern};
use super::functions::{self, Function};
use super::parser::{Node, Tree};
use super::schema::{Index, Kind, SCHEMA};
use super::value::{Fault, Value};
use super::{Error, Steps};

/// What can be evaluated.
#[derive(Debug)]
pub(super) enum Expr {
    Literal(Value),
    /// The variable `node`.
    Node,
    /// The variable of a macro, by how many macros are around it.
    Local(usize),
    Select(Box<Expr>, String),
    Has(Box<Expr>, String),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    If(Box<[Expr; 3]>),
    Call(Function, Vec<Expr>),
    Matches(Box<Expr>, Pattern),
    Each {
        macro_: Macro,
        range: Box<Expr>,
        body: Box<Expr>,
        then: Option<Box<Expr>>,
    },
}

/// What is asked of every element.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Filter,
    /// With a `then`, of those for which `body` is true.
    Map,
}

/// What is known of a value before there is one.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Type {
    /// Nothing.
    Dyn,
    /// By its letter in [`functions::Row`]; `n`: null.
    Simple(u8),
    List(Box<Type>),
    Map(Box<Type>, Box<Type>),
    Message(Index),
}

impl Type {
    const BOOL: Self = Self::Simple(b'b');

    fn letter(&self) -> u8 {
        match self {
            Self::Dyn => b'*',
            Self::Simple(letter) => *letter,
            Self::List(_) => b'l',
            Self::Map(..) => b'm',
            Self::Message(_) => b'M',
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Dyn => "dyn",
            Self::Simple(b'b') => "bool",
            Self::Simple(b'i') => "int",
            Self::Simple(b'u') => "uint",
            Self::Simple(b'd') => "double",
            Self::Simple(b's') => "string",
            Self::Simple(b'y') => "bytes",
            Self::Simple(b'D') => "duration",
            Self::Simple(b'T') => "timestamp",
            Self::Simple(b't') => "type",
            Self::Simple(_) => "null",
            Self::List(_) => "list",
            Self::Map(..) => "map",
            Self::Message(message) => SCHEMA.name(*message),
        }
    }

    fn of(value: &Value) -> Self {
        Self::Simple(match value {
            Value::Null => b'n',
            Value::Bool(_) => b'b',
            Value::Int(_) => b'i',
            Value::Uint(_) => b'u',
            Value::Double(_) => b'd',
            Value::Text(_) => b's',
            Value::Bytes(_) => b'y',
            Value::Duration(_) => b'D',
            Value::Timestamp(_) => b'T',
            Value::Type(_) => b't',
            Value::List(_) | Value::Map(_) | Value::Message(_) => return Self::Dyn,
        })
    }

    /// Of either.
    fn or(self, other: Self) -> Self {
        if self == other { self } else { Self::Dyn }
    }

    fn may_be_bool(&self) -> bool {
        matches!(self, Self::Dyn | Self::Simple(b'b'))
    }
}

/// An expression with what is known of it.
struct Known {
    at: usize,
    expr: Expr,
    kind: Type,
    /// [`NOTHING`], or the outermost variable it needs: 0 for `node`, the macros' from 1.
    needs: usize,
}

const NOTHING: usize = usize::MAX;

/// The meaning of a whole filter, which must be a truth.
pub(super) fn check(text: &str, tree: &Tree) -> Result<Expr, Error> {
    let mut checker = Checker { text, locals: Vec::new(), steps: Steps::new() };
    let mut known = checker.tree(tree)?;
    if known.needs == NOTHING {
        checker.work_out(&mut known)?;
    }
    if !known.kind.may_be_bool() {
        let why = format!("a filter is true or false, and this is of type {}", known.kind.name());
        return Err(Error::at(text, tree.at, why));
    }
    Ok(known.expr)
}

struct Checker<'a> {
    text: &'a str,
    /// Variables of the macros around.
    locals: Vec<(String, Type)>,
    /// For all that is worked out here.
    steps: Steps,
}

impl Checker<'_> {
    fn refuse<T>(&self, at: usize, why: impl Into<String>) -> Result<T, Error> {
        Err(Error::at(self.text, at, why))
    }

    fn work_out(&mut self, known: &mut Known) -> Result<(), Error> {
        if matches!(known.expr, Expr::Literal(_)) {
            return Ok(());
        }
        match Eval::of_constant(self.locals.len(), &mut self.steps).eval(&known.expr) {
            Ok(value) => {
                if known.kind == Type::Dyn {
                    known.kind = Type::of(&value);
                }
                known.expr = Expr::Literal(value);
                Ok(())
            }
            Err(Fault::Steps) => Err(Error::Steps),
            Err(Fault::Run(why)) => self.refuse(known.at, why),
        }
    }

    /// Parts of one expression: if it needs a node, those that need none are worked out now. If it needs none either,
    /// it will be as a whole: `true || 1 / 0 > 0` is true.
    fn parts(&mut self, mut parts: Vec<Known>) -> Result<(Vec<Expr>, Vec<Type>, usize), Error> {
        let needs = parts.iter().map(|part| part.needs).min().unwrap_or(NOTHING);
        if needs != NOTHING {
            for part in &mut parts {
                if part.needs == NOTHING {
                    self.work_out(part)?;
                }
            }
        }
        let (exprs, kinds) = parts.into_iter().map(|part| (part.expr, part.kind)).unzip();
        Ok((exprs, kinds, needs))
    }

    fn trees<'a>(
        &mut self,
        trees: impl IntoIterator<Item = &'a Tree>,
    ) -> Result<Vec<Known>, Error> {
        trees.into_iter().map(|tree| self.tree(tree)).collect()
    }

    fn tree(&mut self, tree: &Tree) -> Result<Known, Error> {
        let at = tree.at;
        let (expr, kind, needs) = match &tree.node {
            Node::Literal(value) => (Expr::Literal(value.clone()), Type::of(value), NOTHING),
            Node::Name { name, absolute } => self.name(at, name, *absolute)?,
            Node::Select(of, field) => match self.qualified(tree) {
                Some(value) => (Expr::Literal(value.clone()), Type::of(&value), NOTHING),
                None => {
                    let of = self.tree(of)?;
                    let kind = self.field(at, &of.kind, field)?;
                    (Expr::Select(Box::new(of.expr), field.clone()), kind, of.needs)
                }
            },
            Node::List(trees) => {
                let known = self.trees(trees)?;
                let (exprs, kinds, needs) = self.parts(known)?;
                let of = kinds.into_iter().reduce(Type::or).unwrap_or(Type::Dyn);
                (Expr::List(exprs), Type::List(Box::new(of)), needs)
            }
            Node::Map(pairs) => self.map(pairs)?,
            Node::And(trees) => self.truths(trees, Expr::And)?,
            Node::Or(trees) => self.truths(trees, Expr::Or)?,
            Node::If(trees) => {
                let known = self.trees(&trees[..])?;
                let (exprs, kinds, needs) = self.parts(known)?;
                let [condition, then, otherwise] =
                    <[Type; 3]>::try_from(kinds).expect("three of three");
                if !condition.may_be_bool() {
                    let why = format!("a condition is true or false, not {}", condition.name());
                    return self.refuse(trees[0].at, why);
                }
                let exprs = <[Expr; 3]>::try_from(exprs).expect("three of three");
                (Expr::If(Box::new(exprs)), then.or(otherwise), needs)
            }
            Node::Call { target, name, args } => self.call(at, target.as_deref(), name, args)?,
        };
        Ok(Known { at, expr, kind, needs })
    }

    fn name(&self, at: usize, name: &str, absolute: bool) -> Result<(Expr, Type, usize), Error> {
        let local = self.locals.iter().rposition(|(known, _)| known == name && !absolute);
        if let Some(local) = local {
            return Ok((Expr::Local(local), self.locals[local].1.clone(), local + 1));
        }
        if name == "node" {
            return Ok((Expr::Node, Type::Message(SCHEMA.node()), 0));
        }
        match SCHEMA.constant(name) {
            Some(value) => Ok((Expr::Literal(value.clone()), Type::of(value), NOTHING)),
            None => self.refuse(at, format!("{name:?} is not known; a filter knows `node`, and what its states and health are called, as NODE_STATE_UP")),
        }
    }

    /// A constant by its whole name, `metropolis.proto.common.NodeState.NODE_STATE_UP`.
    fn qualified(&self, tree: &Tree) -> Option<Value> {
        fn dotted(tree: &Tree, out: &mut String) -> Option<bool> {
            match &tree.node {
                Node::Name { name, absolute } => {
                    out.push_str(name);
                    Some(*absolute)
                }
                Node::Select(of, field) => {
                    let absolute = dotted(of, out)?;
                    out.push('.');
                    out.push_str(field);
                    Some(absolute)
                }
                _ => None,
            }
        }
        let mut name = String::new();
        let absolute = dotted(tree, &mut name)?;
        let first = name.split('.').next()?;
        if !absolute && self.locals.iter().any(|(known, _)| known == first) {
            return None;
        }
        SCHEMA.constant(&name).cloned()
    }

    fn field(&self, at: usize, of: &Type, name: &str) -> Result<Type, Error> {
        match of {
            Type::Dyn => Ok(Type::Dyn),
            Type::Map(_, value) => Ok((**value).clone()),
            Type::Message(message) => match SCHEMA.field(*message, name) {
                Some(field) => {
                    let kind = match field.kind {
                        Kind::Bool => Type::BOOL,
                        Kind::Int => Type::Simple(b'i'),
                        Kind::Uint => Type::Simple(b'u'),
                        Kind::Text => Type::Simple(b's'),
                        Kind::Bytes => Type::Simple(b'y'),
                        Kind::Duration => Type::Simple(b'D'),
                        Kind::Timestamp => Type::Simple(b'T'),
                        Kind::Message(of) => Type::Message(of),
                    };
                    Ok(if field.repeated { Type::List(Box::new(kind)) } else { kind })
                }
                None => {
                    let (of, fields) = (SCHEMA.name(*message), SCHEMA.fields(*message));
                    self.refuse(at, format!("{of} has no field {name:?}; its fields: {fields}"))
                }
            },
            Type::Simple(_) | Type::List(_) => {
                self.refuse(at, format!("{} has no fields, also not {name:?}", of.name()))
            }
        }
    }

    fn map(&mut self, pairs: &[(Tree, Tree)]) -> Result<(Expr, Type, usize), Error> {
        let known = self.trees(pairs.iter().flat_map(|(key, value)| [key, value]))?;
        let (exprs, kinds, needs) = self.parts(known)?;
        let mut of = None;
        for (pair, tree) in kinds.chunks(2).zip(pairs) {
            let [key, value] = pair else { continue };
            if !b"*bius".contains(&key.letter()) {
                let why = format!("a key is int, uint, bool or string, not {}", key.name());
                return self.refuse(tree.0.at, why);
            }
            of = Some(match of {
                None => (key.clone(), value.clone()),
                Some((keys, values)) => {
                    (Type::or(keys, key.clone()), Type::or(values, value.clone()))
                }
            });
        }
        let (keys, values) = of.unwrap_or((Type::Dyn, Type::Dyn));
        let mut pairs = Vec::with_capacity(pairs.len());
        let mut exprs = exprs.into_iter();
        while let (Some(key), Some(value)) = (exprs.next(), exprs.next()) {
            pairs.push((key, value));
        }
        Ok((Expr::Map(pairs), Type::Map(Box::new(keys), Box::new(values)), needs))
    }

    fn truths(
        &mut self,
        trees: &[Tree],
        make: fn(Vec<Expr>) -> Expr,
    ) -> Result<(Expr, Type, usize), Error> {
        let known = self.trees(trees)?;
        for known in &known {
            if !known.kind.may_be_bool() {
                let why =
                    format!("&& and || take what is true or false, not {}", known.kind.name());
                return self.refuse(known.at, why);
            }
        }
        let (exprs, _, needs) = self.parts(known)?;
        Ok((make(exprs), Type::BOOL, needs))
    }

    fn call(
        &mut self,
        at: usize,
        target: Option<&Tree>,
        name: &str,
        args: &[Tree],
    ) -> Result<(Expr, Type, usize), Error> {
        if name == "has" && target.is_none() {
            return self.has(at, args);
        }
        if let Some(range) = target {
            let (macro_, most) = match name {
                "all" => (Some(Macro::All), 2),
                "exists" => (Some(Macro::Exists), 2),
                "exists_one" | "existsOne" => (Some(Macro::ExistsOne), 2),
                "filter" => (Some(Macro::Filter), 2),
                "map" => (Some(Macro::Map), 3),
                _ => (None, 0),
            };
            if let Some(macro_) = macro_ {
                return self.each(at, macro_, range, args, most);
            }
        }
        let Some((_, _, function, signatures)) = functions::find(name, target.is_some()) else {
            let what = if target.is_some() { "method" } else { "function" };
            return self.refuse(at, format!("there is no {what} {name:?}"));
        };
        let known = self.trees(target.into_iter().chain(args))?;
        let (exprs, kinds, needs) = self.parts(known)?;
        let Some(kind) = result(*function, signatures, &kinds) else {
            let given: Vec<_> = kinds.iter().map(Type::name).collect();
            let name = name.trim_end_matches('_');
            return self.refuse(at, format!("{name:?} does not take ({})", given.join(", ")));
        };
        let expr = match (function, <[Expr; 2]>::try_from(exprs)) {
            (Function::Matches, Ok([of, Expr::Literal(Value::Text(pattern))])) => {
                match Pattern::new(&pattern) {
                    Ok(pattern) => Expr::Matches(Box::new(of), pattern),
                    Err(why) => return self.refuse(at, why),
                }
            }
            (function, Ok(exprs)) => Expr::Call(*function, exprs.into()),
            (function, Err(exprs)) => Expr::Call(*function, exprs),
        };
        Ok((expr, kind, needs))
    }

    fn has(&mut self, at: usize, args: &[Tree]) -> Result<(Expr, Type, usize), Error> {
        let [Tree { node: Node::Select(of, field), .. }] = args else {
            return self.refuse(at, "has() takes one field, as has(node.status)");
        };
        let of = self.tree(of)?;
        self.field(at, &of.kind, field)?;
        Ok((Expr::Has(Box::new(of.expr), field.clone()), Type::BOOL, of.needs))
    }

    fn each(
        &mut self,
        at: usize,
        macro_: Macro,
        range: &Tree,
        args: &[Tree],
        most: usize,
    ) -> Result<(Expr, Type, usize), Error> {
        let [Tree { node: Node::Name { name, absolute: false }, .. }, bodies @ ..] = args else {
            return self.refuse(at, "the first operand of a macro is the name of its variable");
        };
        if bodies.is_empty() || args.len() > most {
            return self.refuse(at, "a macro takes the name of a variable and an expression");
        }
        let mut range = self.tree(range)?;
        let element = match &range.kind {
            Type::Dyn => Type::Dyn,
            Type::List(of) => (**of).clone(),
            Type::Map(key, _) => (**key).clone(),
            Type::Simple(_) | Type::Message(_) => {
                let why = format!("{} is no list and no map", range.kind.name());
                return self.refuse(range.at, why);
            }
        };
        let local = self.locals.len() + 1;
        self.locals.push((name.clone(), element.clone()));
        let mut bodies = self.trees(bodies)?;
        let truth = macro_ != Macro::Map || bodies.len() == 2;
        if truth && !bodies[0].kind.may_be_bool() {
            let (at, name) = (bodies[0].at, bodies[0].kind.name());
            let why = format!("this is asked of every element and is true or false, not {name}");
            return self.refuse(at, why);
        }
        // What the body needs beyond the macro's own variable.
        let outside = |needs: usize| if needs >= local { NOTHING } else { needs };
        let needs = bodies.iter().map(|body| outside(body.needs)).fold(range.needs, usize::min);
        if needs != NOTHING {
            for part in &mut bodies {
                if part.needs == NOTHING {
                    self.work_out(part)?;
                }
            }
        }
        self.locals.pop();
        if needs != NOTHING && range.needs == NOTHING {
            self.work_out(&mut range)?;
        }
        let last = bodies.last().map_or(Type::Dyn, |body| body.kind.clone());
        let kind = match macro_ {
            Macro::All | Macro::Exists | Macro::ExistsOne => Type::BOOL,
            Macro::Filter => Type::List(Box::new(element)),
            Macro::Map => Type::List(Box::new(last)),
        };
        let mut bodies = bodies.into_iter().map(|body| Box::new(body.expr));
        let body = bodies.next().expect("checked above");
        let expr = Expr::Each { macro_, range: Box::new(range.expr), body, then: bodies.next() };
        Ok((expr, kind, needs))
    }
}

/// What a function gives for these; none: it does not take them.
fn result(function: Function, signatures: &[&str], kinds: &[Type]) -> Option<Type> {
    let takes = |signature: &&&str| {
        signature.split_once('>').is_some_and(|(operands, _)| {
            operands.len() == kinds.len()
                && operands.bytes().zip(kinds).all(|(letter, kind)| {
                    letter == b'*' || kind.letter() == b'*' || letter == kind.letter()
                })
        })
    };
    let mut results: Vec<_> =
        signatures.iter().filter(takes).filter_map(|signature| signature.bytes().last()).collect();
    results.dedup();
    let simple = match results[..] {
        [] => return None,
        [b'*' | b'l'] | [_, _, ..] => Type::Dyn,
        [letter] => Type::Simple(letter),
    };
    Some(match (function, kinds) {
        (Function::Index, [Type::List(of), _] | [Type::Map(_, of), _]) => (**of).clone(),
        (Function::Add, [Type::List(one), Type::List(other)]) => {
            Type::List(Box::new((**one).clone().or((**other).clone())))
        }
        _ => simple,
    })
}
