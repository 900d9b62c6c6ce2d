//! Where every field of a prototxt stands.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::collections::HashMap;

use super::token::{Kind, Token, Tokens};

/// One field, or one element of a list.
#[derive(Debug)]
pub(super) struct Entry {
    /// Field names and indices from the top: `layer[3].convolution_param.kernel_size[1]`. An index of 0 is left out.
    pub path: String,
    /// Where the name stands; in a list, the element.
    pub at: usize,
    /// Where the value stands.
    pub value: usize,
    /// Where the field's name stands, in a list too.
    pub name: usize,
}

/// The structure of a text, as far as it follows the text format.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// In the order of the text.
    pub entries: Vec<Entry>,
    /// Where the innermost bracket stands that is open at the end of the text.
    pub unclosed: Option<usize>,
    /// The first number that protobuf refuses: where, and why.
    pub fault: Option<(usize, &'static str)>,
    /// Lists without a colon before them: the field's path, and where its name ends.
    pub bare_lists: Vec<(String, usize)>,
}

/// Nesting beyond this is no prototxt of ours; the parser refuses it by name.
const MAX_DEPTH: usize = 32;

/// A bracket that is open.
enum Frame {
    /// Fields of the message at `path`, up to the byte `close`.
    Fields { path: String, close: Option<u8>, open: usize },
    /// Values of the repeated field at `path`.
    List { path: String, open: usize, name: usize },
}

/// Reads a text's structure without regard to a schema. Stops quietly where the text is malformed.
pub(super) fn scan(text: &str) -> Scan {
    let mut reader = Reader { tokens: Tokens::new(text), peeked: None, seen: HashMap::new(), scan: Scan::default() };
    let mut stack = vec![Frame::Fields { path: String::new(), close: None, open: 0 }];
    let finished = reader.run(&mut stack).is_some();
    // Numbers behind a malformed place do not matter: the parser reports that place.
    reader.scan.fault = reader.tokens.fault;
    reader.scan.unclosed = match stack.last() {
        Some(Frame::Fields { close: Some(_), open, .. } | Frame::List { open, .. }) if finished => Some(*open),
        _ => None,
    };
    reader.scan
}

struct Reader<'a> {
    tokens: Tokens<'a>,
    peeked: Option<Token>,
    /// How often each path, without its last index, was met.
    seen: HashMap<String, usize>,
    scan: Scan,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Token> {
        self.peeked.take().or_else(|| self.tokens.next())
    }

    fn peek(&mut self) -> Option<Token> {
        if self.peeked.is_none() {
            self.peeked = self.tokens.next();
        }
        self.peeked
    }

    /// `Some` at the end of the text, `None` where it is malformed.
    fn run(&mut self, stack: &mut Vec<Frame>) -> Option<()> {
        while let Some(token) = self.next() {
            let frame = match stack.last()? {
                Frame::Fields { path, close, .. } => match token.kind {
                    Kind::Symbol(b';' | b',') => continue,
                    Kind::Symbol(symbol) if Some(symbol) == *close => None,
                    Kind::Name => match self.field(token, &path.clone())? {
                        Some(frame) => Some(frame),
                        None => continue,
                    },
                    _ => return None,
                },
                Frame::List { path, name, .. } => match token.kind {
                    Kind::Symbol(b',') => continue,
                    Kind::Symbol(b']') => None,
                    _ => {
                        let (path, name) = (path.clone(), *name);
                        match self.value(token, token.start, name, path) {
                            Some(frame) => Some(frame),
                            None => continue,
                        }
                    }
                },
            };
            match frame {
                Some(frame) => stack.push(frame),
                None => drop(stack.pop()),
            }
            if stack.len() > MAX_DEPTH {
                return None;
            }
        }
        Some(())
    }

    /// Reads what follows a field's name. `None`: malformed; `Some(Some(frame))`: a bracket opens.
    fn field(&mut self, name: Token, parent: &str) -> Option<Option<Frame>> {
        let word = std::str::from_utf8(self.tokens.slice(name)).ok()?;
        let path = if parent.is_empty() { word.to_owned() } else { format!("{parent}.{word}") };
        let mut token = self.next()?;
        let bare = token.kind != Kind::Symbol(b':');
        if !bare {
            token = self.next()?;
        }
        if token.kind == Kind::Symbol(b'[') {
            if bare {
                self.scan.bare_lists.push((path.clone(), name.end));
            }
            return Some(Some(Frame::List { path, open: token.start, name: name.start }));
        }
        Some(self.value(token, name.start, name.start, path))
    }

    /// Records a value that starts with `token`, and moves over it unless it opens a bracket.
    fn value(&mut self, token: Token, at: usize, name: usize, path: String) -> Option<Frame> {
        let count = self.seen.entry(path.clone()).or_default();
        let path = if *count == 0 { path } else { format!("{path}[{count}]") };
        *count = count.saturating_add(1);
        self.scan.entries.push(Entry { path: path.clone(), at, value: token.start, name });
        match token.kind {
            Kind::Symbol(b'{') => Some(Frame::Fields { path, close: Some(b'}'), open: token.start }),
            Kind::Symbol(b'<') => Some(Frame::Fields { path, close: Some(b'>'), open: token.start }),
            Kind::Symbol(b'-') => {
                self.next();
                None
            }
            Kind::Quoted => {
                while self.peek().is_some_and(|next| next.kind == Kind::Quoted) {
                    self.next();
                }
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<(String, &str)> {
        scan(text).entries.into_iter().map(|e| (e.path, &text[e.at..(e.at + 2).min(text.len())])).collect()
    }

    #[test]
    fn fields_messages_and_lists_get_paths() {
        let text = "n: 'a' 'b' l { k: 1, k: -2; s <d: 3> } l: { k: [4, 5] } l [{k: 6}, {}]";
        let found: Vec<String> = paths(text).into_iter().map(|(path, _)| path).collect();
        let expected =
            ["n", "l", "l.k", "l.k[1]", "l.s", "l.s.d", "l[1]", "l[1].k", "l[1].k[1]", "l[2]", "l[2].k", "l[3]"];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_place_is_the_name_or_the_element() {
        assert_eq!(
            paths("ab { cd: [11, 22] }"),
            [("ab".into(), "ab"), ("ab.cd".into(), "11"), ("ab.cd[1]".into(), "22")]
        );
    }

    #[test]
    fn an_open_bracket_is_remembered() {
        assert_eq!(scan("a { b { c: 1 }").unclosed, Some(2));
        assert_eq!(scan("a { b { c: 1 } }").unclosed, None);
        assert_eq!(scan("a { ) b").unclosed, None);
        assert_eq!(scan(&"a{".repeat(100_000)).entries.len(), MAX_DEPTH);
    }
}
