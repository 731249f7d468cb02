//! Reads records as most producers write them: an object of texts without escapes, whole numbers, truth values and nulls.
//!
//! What it gives is what the whole parser would; of whatever else it meets it says nothing, and the whole parser is asked.

use super::place;
use crate::catalog::Field;
use crate::event::{FieldType, Value};
use std::iter::repeat_with;

/// The values of `fields` in a JSON object, NULL where a field is missing; `None` where the whole parser must be asked.
pub(super) fn read(fields: &[Field], text: &str) -> Option<Vec<Value>> {
    let mut plain = Plain { text, at: 0 };
    // Not `vec!`, which would clone each.
    let mut values: Vec<Value> = repeat_with(|| Value::Null).take(fields.len()).collect();
    // A bit for each field that came.
    let (mut came, mut expected) = (0u64, 0);
    plain.sign(b'{')?;
    if plain.sign(b'}').is_none() {
        loop {
            // Mostly it is the field that is expected, whose name needs no search for its end.
            let is_expected = fields.get(expected).is_some_and(|field| plain.quoted(&field.name).is_some());
            let at = if is_expected { Some(expected) } else { place(fields, plain.text()?, expected) };
            plain.sign(b':')?;
            match at {
                Some(at) => {
                    let bit = 1u64.checked_shl(at as u32)?;
                    if came & bit != 0 {
                        return None;
                    }
                    came |= bit;
                    values[at] = plain.value(fields[at].ty)?;
                    expected = at + 1;
                }
                None => plain.pass()?,
            }
            if plain.sign(b',').is_none() {
                plain.sign(b'}')?;
                break;
            }
        }
    }
    plain.blank();
    (plain.at == text.len()).then_some(values)
}

/// A text, and how far it is read.
struct Plain<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Plain<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Passes over white space.
    fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes a sign behind white space; `None` where another comes.
    fn sign(&mut self, sign: u8) -> Option<()> {
        self.blank();
        (self.peek()? == sign).then(|| self.at += 1)
    }

    /// Takes a word; `None` where another comes.
    fn word(&mut self, word: &str) -> Option<()> {
        let comes = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        comes.then(|| self.at += word.len())
    }

    /// Takes a field's name, which is of letters, digits and `_`, in quotes; `None` where another text comes.
    fn quoted(&mut self, name: &str) -> Option<()> {
        self.blank();
        let quoted = self.text.as_bytes()[self.at..].strip_prefix(b"\"")?;
        let comes = quoted.strip_prefix(name.as_bytes())?.first() == Some(&b'"');
        comes.then(|| self.at += name.len() + 2)
    }

    /// Takes a text without escapes.
    fn text(&mut self) -> Option<&'a str> {
        self.sign(b'"')?;
        let (text, begin) = (self.text, self.at);
        let end = begin + unescaped(&text.as_bytes()[begin..]);
        self.at = end + 1;
        (text.as_bytes().get(end) == Some(&b'"')).then(|| &text[begin..end])
    }

    /// Takes a whole number of so few digits that they fit.
    fn whole(&mut self) -> Option<i64> {
        let is_negative = self.peek() == Some(b'-');
        let begin = self.at + usize::from(is_negative);
        self.at = begin;
        let mut number = 0i64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            number = number.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
            self.at += 1;
        }
        let digits = self.at - begin;
        // JSON has no number with a zero before it, and -0 isn't whole to all who read it.
        let starts_with_zero = self.text.as_bytes().get(begin) == Some(&b'0');
        let is_plain = (1..=18).contains(&digits) && !(starts_with_zero && (digits > 1 || is_negative));
        // Of too many digits it may be what has no negative.
        is_plain.then_some(if is_negative { number.wrapping_neg() } else { number })
    }

    /// Takes a value of a type.
    fn value(&mut self, ty: FieldType) -> Option<Value> {
        self.blank();
        match (self.peek()?, ty) {
            (b'"', FieldType::String) => self.text().map(Value::str),
            (b'n', _) => self.word("null").map(|()| Value::Null),
            (b't', FieldType::Bool) => self.word("true").map(|()| Value::Bool(true)),
            (b'f', FieldType::Bool) => self.word("false").map(|()| Value::Bool(false)),
            (_, FieldType::Int) => self.whole().map(Value::Int),
            _ => None,
        }
    }

    /// Passes over the value of a field that isn't declared.
    fn pass(&mut self) -> Option<()> {
        self.blank();
        match self.peek()? {
            b'"' => _ = self.text()?,
            b'n' => self.word("null")?,
            b't' => self.word("true")?,
            b'f' => self.word("false")?,
            _ => _ = self.whole()?,
        }
        Some(())
    }
}

/// How many bytes come before the first quote, backslash or control character.
fn unescaped(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // The highest bit of each byte that is below `bound`, which is at most 0x80; of bytes behind the first such perhaps too.
    let below = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound)) & !word & (ONES << 7);
    let equal = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*chunk);
        let found = below(word, b' ') | equal(word, b'"') | equal(word, b'\\');
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = bytes[at..].iter().position(|byte| matches!(*byte, 0..b' ' | b'"' | b'\\'));
    rest.map_or(bytes.len(), |rest| at + rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::json::read_from;
    use proptest::prelude::*;

    fn fields() -> Vec<Field> {
        let field = |name: &str, ty| Field { name: name.into(), ty };
        vec![
            field("s", FieldType::String),
            field("i", FieldType::Int),
            field("b", FieldType::Bool),
            field("f", FieldType::Float),
            field("d", FieldType::Decimal(2)),
        ]
    }

    const NAMES: [&str; 12] = ["s", "si", "s::", "i", "b", "f", "d", "x", "", "é", "\\u0073", "s\n"];
    const VALUES: [&str; 40] = [
        "null",
        "nul",
        "nulls",
        "true",
        "false",
        "truee",
        "tru",
        "0",
        "7",
        "-7",
        "-0",
        "00",
        "07",
        "-",
        "+1",
        "1.0",
        "1e3",
        ".5",
        "999999999999999999",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "\"\"",
        "\"a\"",
        "\"seven b\"",
        "\"eight by\"",
        "\"nine byte\"",
        "\"sixteen bytes on\"",
        "\"é\u{7f}€𝄞\"",
        "\"a\\\"b\"",
        "\"a\\",
        "\"\\ud800\"",
        "\"a\u{0}\"",
        "\"tab\tin it\"",
        "\"seven b\u{1f}\"",
        "\"open",
        "[]",
        "{}",
        "[1",
        "",
    ];

    /// Signs that change what a text is, or how long a number or a name: white space that isn't JSON's, too.
    const STRAY: [char; 14] =
        ['\0', '\u{b}', '\u{1f}', ' ', '\u{a0}', '\u{feff}', '"', '\\', ',', ':', '0', '-', '.', 'e'];

    proptest! {
        /// Of texts, most of them near a plain record: with fields that come twice, others' types and broken ends.
        #[test]
        fn what_is_read_plainly_is_what_the_whole_parser_reads(
            members in prop::collection::vec(
                (prop::sample::select(NAMES.to_vec()), prop::sample::select(VALUES.to_vec())),
                0..4,
            ),
            blanks in prop::collection::vec(prop::sample::select(vec!["", "", " ", "\n\t", "\r"]), 16),
            begin in prop::sample::select(vec!["{", "{", " {", "[", ""]),
            end in prop::sample::select(vec!["}", "}", "} ", "}x", ",}", "]", ""]),
            stray in prop::option::of((any::<prop::sample::Index>(), prop::sample::select(STRAY.to_vec()))),
        ) {
            let mut blanks = blanks.iter().cycle();
            let mut blank = || *blanks.next().expect("endless");
            let members = members.iter().map(|(name, value)| {
                format!("{}\"{name}\"{}:{}{value}{}", blank(), blank(), blank(), blank())
            });
            let members: Vec<String> = members.collect();
            let mut text: Vec<char> = format!("{begin}{}{end}", members.join(",")).chars().collect();
            if let Some((at, sign)) = stray {
                text.insert(at.index(text.len() + 1), sign);
            }
            let text: String = text.into_iter().collect();
            if let Some(values) = read(&fields(), &text) {
                let whole = read_from(&fields(), serde_json::Deserializer::from_str(&text));
                prop_assert_eq!(Ok(values), whole, "{}", text);
            }
        }

        #[test]
        fn a_text_ends_where_a_byte_says_so(
            bytes in prop::collection::vec(
                prop::sample::select(vec![b'a', b' ', b'!', b'#', b'[', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff]),
                0..30,
            ),
            end in prop::option::of((0usize..30, prop::sample::select(vec![b'"', b'\\', 0, 1, 0x1f]))),
        ) {
            let mut bytes = bytes;
            if let Some((at, byte)) = end {
                bytes.insert(at.min(bytes.len()), byte);
            }
            let is_end = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
            let expected = bytes.iter().position(is_end).unwrap_or(bytes.len());
            prop_assert_eq!(unescaped(&bytes), expected);
        }
    }

    #[test]
    fn plain_records_need_no_other_parser() {
        use Value::{Bool, Int, Null};
        let check = |text: &str, expected: Option<[Value; 3]>| {
            assert_eq!(read(&fields()[..3], text), expected.map(Vec::from), "{text}");
        };
        check("{}", Some([Null, Null, Null]));
        check(r#"{"s":"a","i":-5,"b":true}"#, Some([Value::str("a"), Int(-5), Bool(true)]));
        let spaced = r#" { "b" : false , "x" : 12 , "y" : "z" , "s" : "no é" , "i" : 0 } "#;
        check(spaced, Some([Value::str("no é"), Int(0), Bool(false)]));
        check(r#"{"i":null,"x":null,"y":true,"z":false}"#, Some([Null, Null, Null]));
        check(r#"{"si":7,"s":"a"}"#, Some([Value::str("a"), Null, Null]));
        check(r#"{"i":1,"i":1}"#, None);
        check(r#"{"i":1.0}"#, None);
        check(r#"{"i":-999999999999999999}"#, Some([Null, Int(-999_999_999_999_999_999), Null]));
        check(r#"{"i":-9223372036854775808}"#, None);
        check(r#"{"s":"\n"}"#, None);
        check(r#"{"i":1,}"#, None);
    }
}
