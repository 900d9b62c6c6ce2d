//! The words of the text format, with their places.
//!
//! The parser proper is prost-reflect's, which keeps no positions; this one only finds where things stand, and the
//! two spellings of numbers that protobuf's C++ parser refuses and prost-reflect lets pass.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A field name, an enum value, `true`, `inf`…
    Name,
    Number,
    /// A string in quotes, the quotes included.
    Quoted,
    Symbol(u8),
}

/// One token: bytes `start..end` of the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// Cuts a text into tokens; white space and `#` comments are dropped. Never fails: a stray byte is a symbol.
pub(super) struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
    /// The first number that protobuf refuses: where, and why.
    pub fault: Option<(usize, &'static str)>,
}

impl<'a> Tokens<'a> {
    pub fn new(text: &'a str) -> Self {
        Tokens { text: text.as_bytes(), at: 0, fault: None }
    }

    /// The bytes of a token.
    pub fn slice(&self, token: Token) -> &'a [u8] {
        self.text.get(token.start..token.end).unwrap_or_default()
    }

    /// The byte `ahead` of the reading position; 0 past the end.
    fn byte(&self, ahead: usize) -> u8 {
        self.text.get(self.at.saturating_add(ahead)).copied().unwrap_or(0)
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.at < self.text.len() && wanted(self.byte(0)) {
            self.skip(1);
        }
    }

    fn skip_blank(&mut self) {
        loop {
            self.skip_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c));
            if self.byte(0) != b'#' {
                return;
            }
            self.skip_while(|b| b != b'\n');
        }
    }

    /// Moves over a quoted string; one that is not closed ends with its line.
    fn quoted(&mut self, quote: u8) {
        self.skip(1);
        while self.at < self.text.len() && self.byte(0) != b'\n' {
            match self.byte(0) {
                b'\\' => self.skip(2),
                b if b == quote => {
                    self.skip(1);
                    break;
                }
                _ => self.skip(1),
            }
        }
        self.at = self.at.min(self.text.len());
    }

    fn number(&mut self) {
        let start = self.at;
        let mut fault = None;
        if self.byte(0) == b'0' && matches!(self.byte(1), b'x' | b'X') {
            self.skip(2);
            self.skip_while(|b| b.is_ascii_hexdigit());
        } else {
            let leading_zero = self.byte(0) == b'0' && self.byte(1).is_ascii_digit();
            let mut integer = true;
            self.skip_while(|b| b.is_ascii_digit());
            if self.byte(0) == b'.' {
                integer = false;
                self.skip(1);
                self.skip_while(|b| b.is_ascii_digit());
            }
            let signed = usize::from(matches!(self.byte(1), b'+' | b'-'));
            if matches!(self.byte(0), b'e' | b'E') && self.byte(signed.saturating_add(1)).is_ascii_digit() {
                integer = false;
                self.skip(signed.saturating_add(1));
                self.skip_while(|b| b.is_ascii_digit());
            }
            if matches!(self.byte(0), b'f' | b'F') {
                self.skip(1);
            }
            if leading_zero && !integer {
                fault = Some("a number that starts with 0 is octal and must be an integer; remove the leading zero");
            }
        }
        if self.byte(0).is_ascii_alphabetic() || self.byte(0) == b'_' {
            fault = Some("expected a space between a number and the name that follows it");
        }
        if self.fault.is_none() {
            self.fault = fault.map(|why| (start, why));
        }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.skip_blank();
        let start = self.at;
        let kind = match *self.text.get(start)? {
            b if b.is_ascii_alphabetic() || b == b'_' => {
                self.skip_while(|b| b.is_ascii_alphanumeric() || b == b'_');
                Kind::Name
            }
            b if b.is_ascii_digit() || (b == b'.' && self.byte(1).is_ascii_digit()) => {
                self.number();
                Kind::Number
            }
            quote @ (b'"' | b'\'') => {
                self.quoted(quote);
                Kind::Quoted
            }
            symbol => {
                self.skip(1);
                Kind::Symbol(symbol)
            }
        };
        Some(Token { kind, start, end: self.at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        Tokens::new(text).map(|token| &text[token.start..token.end]).collect()
    }

    #[test]
    fn comments_strings_and_numbers_are_cut_apart() {
        assert_eq!(words("a: 'x#\\'y' # c: 1\n b"), ["a", ":", "'x#\\'y'", "b"]);
        assert_eq!(words("[-1.5e-3f,.5,0x1F]"), ["[", "-", "1.5e-3f", ",", ".5", ",", "0x1F", "]"]);
        assert_eq!(words("a:\"open\nb"), ["a", ":", "\"open", "b"]);
        assert_eq!(words("\"\\"), ["\"\\"]);
    }

    #[test]
    fn numbers_protobuf_refuses_are_found() {
        let fault = |text| {
            let mut tokens = Tokens::new(text);
            while tokens.next().is_some() {}
            tokens.fault.map(|(at, _)| at)
        };
        assert_eq!(fault("value: 1.5std: 2"), Some(7));
        assert_eq!(fault("value: 01.5"), Some(7));
        assert_eq!(fault("value: 1.5e"), Some(7));
        assert_eq!(fault("value: 1.5f std: 010 mean: 0.5e+2 min: 1e3"), None);
    }
}
