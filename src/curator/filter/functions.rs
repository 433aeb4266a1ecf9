//! What operators and functions there are, and which types they take.

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Function {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Negate,
    Not,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Index,
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Matches,
    ToInt,
    ToUint,
    ToDouble,
    ToText,
    ToBytes,
    ToBool,
    ToDuration,
    ToTimestamp,
    ToType,
    ToDyn,
    FullYear,
    Month,
    DayOfYear,
    DayOfMonth,
    Date,
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// How it is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Style {
    /// `f(a)`, or an operator.
    Plain,
    /// `a.f(b)`, where `a` counts as the first operand.
    Method,
    /// Either.
    Both,
}

/// Its signatures, a letter for each operand and, behind `>`, for the result: `b`ool, `i`nt, `u`int, `d`ouble,
/// `s`tring, b`y`tes, `D`uration, `T`imestamp, `l`ist, `m`ap, `t`ype, `*` anything.
pub(super) type Row = (&'static str, Style, Function, &'static [&'static str]);

const ORDERED: &[&str] = &[
    "bb>b", "ii>b", "iu>b", "id>b", "uu>b", "ui>b", "ud>b", "dd>b", "di>b", "du>b", "ss>b", "yy>b",
    "DD>b", "TT>b",
];
const OF_DAY: &[&str] = &["T>i", "Ts>i"];
const OF_BOTH: &[&str] = &["T>i", "Ts>i", "D>i"];

static ROWS: &[Row] = &[
    (
        "+",
        Style::Plain,
        Function::Add,
        &["ii>i", "uu>u", "dd>d", "ss>s", "yy>y", "ll>l", "DD>D", "TD>T", "DT>T"],
    ),
    ("-", Style::Plain, Function::Subtract, &["ii>i", "uu>u", "dd>d", "DD>D", "TT>D", "TD>T"]),
    ("*", Style::Plain, Function::Multiply, &["ii>i", "uu>u", "dd>d"]),
    ("/", Style::Plain, Function::Divide, &["ii>i", "uu>u", "dd>d"]),
    ("%", Style::Plain, Function::Modulo, &["ii>i", "uu>u"]),
    (super::parser::NEGATE, Style::Plain, Function::Negate, &["i>i", "d>d"]),
    ("!", Style::Plain, Function::Not, &["b>b"]),
    ("==", Style::Plain, Function::Equal, &["**>b"]),
    ("!=", Style::Plain, Function::NotEqual, &["**>b"]),
    ("<", Style::Plain, Function::Less, ORDERED),
    ("<=", Style::Plain, Function::LessOrEqual, ORDERED),
    (">", Style::Plain, Function::Greater, ORDERED),
    (">=", Style::Plain, Function::GreaterOrEqual, ORDERED),
    ("in", Style::Plain, Function::In, &["*l>b", "*m>b"]),
    (super::parser::INDEX, Style::Plain, Function::Index, &["li>*", "lu>*", "ld>*", "m*>*"]),
    ("size", Style::Both, Function::Size, &["s>i", "y>i", "l>i", "m>i"]),
    ("contains", Style::Method, Function::Contains, &["ss>b"]),
    ("startsWith", Style::Method, Function::StartsWith, &["ss>b"]),
    ("endsWith", Style::Method, Function::EndsWith, &["ss>b"]),
    ("matches", Style::Both, Function::Matches, &["ss>b"]),
    ("int", Style::Plain, Function::ToInt, &["i>i", "u>i", "d>i", "s>i", "T>i"]),
    ("uint", Style::Plain, Function::ToUint, &["i>u", "u>u", "d>u", "s>u"]),
    ("double", Style::Plain, Function::ToDouble, &["i>d", "u>d", "d>d", "s>d"]),
    (
        "string",
        Style::Plain,
        Function::ToText,
        &["b>s", "i>s", "u>s", "d>s", "s>s", "y>s", "D>s", "T>s"],
    ),
    ("bytes", Style::Plain, Function::ToBytes, &["s>y", "y>y"]),
    ("bool", Style::Plain, Function::ToBool, &["b>b", "s>b"]),
    ("duration", Style::Plain, Function::ToDuration, &["s>D", "D>D"]),
    ("timestamp", Style::Plain, Function::ToTimestamp, &["s>T", "T>T", "i>T"]),
    ("type", Style::Plain, Function::ToType, &["*>t"]),
    ("dyn", Style::Plain, Function::ToDyn, &["*>*"]),
    ("getFullYear", Style::Method, Function::FullYear, OF_DAY),
    ("getMonth", Style::Method, Function::Month, OF_DAY),
    ("getDayOfYear", Style::Method, Function::DayOfYear, OF_DAY),
    ("getDayOfMonth", Style::Method, Function::DayOfMonth, OF_DAY),
    ("getDate", Style::Method, Function::Date, OF_DAY),
    ("getDayOfWeek", Style::Method, Function::DayOfWeek, OF_DAY),
    ("getHours", Style::Method, Function::Hours, OF_BOTH),
    ("getMinutes", Style::Method, Function::Minutes, OF_BOTH),
    ("getSeconds", Style::Method, Function::Seconds, OF_BOTH),
    ("getMilliseconds", Style::Method, Function::Milliseconds, OF_BOTH),
];

/// The function of this name, as it is called here.
pub(super) fn find(name: &str, method: bool) -> Option<&'static Row> {
    let unlike = if method { Style::Plain } else { Style::Method };
    ROWS.iter().find(|(known, style, ..)| *known == name && *style != unlike)
}
