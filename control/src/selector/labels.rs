//! Label selector syntax: the tokens and grammar of apimachinery's `labels.Parse`, with its error texts.

use super::SelectorError;

/// What a requirement asks of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One requirement on one label. `=` is `In` with one value, `!=` is `NotIn` with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirement {
    pub(super) key: Box<str>,
    pub(super) operator: Operator,
    pub(super) values: Box<[Box<str>]>,
}

impl Requirement {
    /// A requirement whose key and values are well-formed.
    pub(super) fn new(key: &str, operator: Operator, values: Vec<&str>) -> Result<Self, SelectorError> {
        check_key(key)?;
        for value in &values {
            match operator {
                Operator::GreaterThan | Operator::LessThan => {
                    if value.parse::<i64>().is_err() {
                        return Err(SelectorError(format!(
                            "values[0][{key}]: Invalid value: \"{value}\": for 'Gt', 'Lt' operators, the value must be an integer"
                        )));
                    }
                }
                _ => check_value(key, value)?,
            }
        }
        if matches!(operator, Operator::In | Operator::NotIn) && values.is_empty() {
            return Err(SelectorError(
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into(),
            ));
        }
        Ok(Self {
            key: key.into(),
            operator,
            values: values.into_iter().map(Into::into).collect(),
        })
    }

    pub(super) fn matches(&self, value: Option<&str>) -> bool {
        let compare = |greater: bool| {
            let (Some(have), Some(limit)) = (
                value.and_then(|v| v.parse::<i64>().ok()),
                self.values.first().and_then(|v| v.parse::<i64>().ok()),
            ) else {
                return false;
            };
            if greater { have > limit } else { have < limit }
        };
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.iter().any(|w| **w == *v)),
            Operator::NotIn => value.is_none_or(|v| self.values.iter().all(|w| **w != *v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(true),
            Operator::LessThan => compare(false),
        }
    }
}

/// Parse the string form, e.g. `app=web,tier in (a, b),!canary`.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { rest: text };
    let mut requirements = Vec::new();
    loop {
        match parser.peek() {
            Token::Word(_) | Token::Not => {
                let requirement = parser
                    .requirement()
                    .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
                requirements.push(requirement);
                match parser.next() {
                    Token::End => return Ok(requirements),
                    Token::Comma => match parser.peek() {
                        Token::Word(_) | Token::Not => {}
                        other => return fail(&other, ", expected: identifier after ','"),
                    },
                    other => return fail(&other, ", expected: ',' or 'end of string'"),
                }
            }
            Token::End => return Ok(requirements),
            other => return fail(&other, ", expected: !, identifier, or 'end of string'"),
        }
    }
}

fn fail<T>(token: &Token<'_>, expected: &str) -> Result<T, SelectorError> {
    Err(SelectorError(format!("found '{}'{expected}", token.text())))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Operator(&'a str),
    Not,
    Comma,
    Open,
    Close,
    End,
}

impl<'a> Token<'a> {
    fn text(&self) -> &'a str {
        match self {
            Token::Word(text) | Token::Operator(text) => text,
            Token::Not => "!",
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::End => "",
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        Parser { rest: self.rest }.next()
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        token
    }

    fn next(&mut self) -> Token<'a> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = self.rest.chars().next() else {
            return Token::End;
        };
        match first {
            ',' | '(' | ')' => {
                self.take(1);
                match first {
                    ',' => Token::Comma,
                    '(' => Token::Open,
                    _ => Token::Close,
                }
            }
            '=' | '!' | '<' | '>' => {
                let length = self
                    .rest
                    .find(|c| !matches!(c, '=' | '!' | '<' | '>'))
                    .unwrap_or(self.rest.len());
                match self.take(length) {
                    "!" => Token::Not,
                    operator => Token::Operator(operator),
                }
            }
            _ => {
                let special = |c| matches!(c, ' ' | '\t' | '\r' | '\n' | ',' | '(' | ')' | '=' | '!' | '<' | '>');
                let length = self.rest.find(special).unwrap_or(self.rest.len());
                Token::Word(self.take(length))
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let negated = token == Token::Not;
        if negated {
            token = self.next();
        }
        let Token::Word(key) = token else {
            return fail(&token, ", expected: identifier");
        };
        check_key(key)?;
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let token = self.next();
        let operator = match token.text() {
            "in" | "=" | "==" => Operator::In,
            "notin" | "!=" => Operator::NotIn,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            _ => return fail(&token, ", expected: in, notin, =, ==, !=, gt, lt"),
        };
        let values = match token {
            Token::Word(_) => self.set()?,
            _ => vec![self.exact()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact(&mut self) -> Result<&'a str, SelectorError> {
        match self.peek() {
            Token::End | Token::Comma => Ok(""),
            Token::Word(value) => {
                self.next();
                Ok(value)
            }
            other => fail(&other, ", expected: identifier"),
        }
    }

    fn set(&mut self) -> Result<Vec<&'a str>, SelectorError> {
        let token = self.next();
        if token != Token::Open {
            return fail(&token, " expected: '('");
        }
        let mut values = Vec::new();
        let mut value = "";
        let mut first = true;
        loop {
            match self.next() {
                Token::Word(word) if value.is_empty() => value = word,
                Token::Comma => values.push(std::mem::take(&mut value)),
                Token::Close => {
                    if !(first && value.is_empty()) {
                        values.push(value);
                    }
                    values.sort_unstable();
                    values.dedup();
                    return Ok(values);
                }
                other => return fail(&other, ", expected: ',', or ')'"),
            }
            first = false;
        }
    }
}

const NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const PREFIX_RULE: &str = "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn check_key(key: &str) -> Result<(), SelectorError> {
    let invalid = |why: &str| Err(SelectorError(format!("<nil>: Invalid value: \"{key}\": {why}")));
    let name = match key.split_once('/') {
        None => key,
        Some(("", _)) => return invalid("prefix part must be non-empty"),
        Some((prefix, name)) => {
            let label = |part: &str| {
                !part.is_empty()
                    && !part.starts_with('-')
                    && !part.ends_with('-')
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            };
            if prefix.len() > 253 {
                return invalid("prefix part must be no more than 253 bytes");
            }
            if !prefix.split('.').all(label) {
                return invalid(PREFIX_RULE);
            }
            name
        }
    };
    if name.is_empty() {
        return invalid("name part must be non-empty");
    }
    if name.len() > 63 {
        return invalid("name part must be no more than 63 bytes");
    }
    if !is_name(name) {
        return invalid(&format!("name part {NAME_RULE}"));
    }
    Ok(())
}

fn check_value(key: &str, value: &str) -> Result<(), SelectorError> {
    let why = if value.len() > 63 {
        "must be no more than 63 bytes"
    } else if !value.is_empty() && !is_name(value) {
        VALUE_RULE
    } else {
        return Ok(());
    };
    Err(SelectorError(format!(
        "values[0][{key}]: Invalid value: \"{value}\": {why}"
    )))
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
