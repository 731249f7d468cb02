//! Postgres' binary COPY format, as the documentation of COPY describes it ("Binary Format").
//!
//! A row is written whole or not at all; the stream ends with its trailer, without which the server refuses it.

use crate::compute::ValueRef;
use shared_model::aggregate::{Column, ColumnType};
use shared_model::time::Millis;

/// 2000-01-01 in ms since 1970: where Postgres' timestamps begin.
const POSTGRES_EPOCH: Millis = 946_684_800_000;

/// The bytes of an array before its elements.
const ARRAY_HEADER: usize = 20;

/// Builds the bytes of a binary COPY.
pub(crate) struct BinaryCopy {
    bytes: Vec<u8>,
}

impl BinaryCopy {
    /// A stream with its header.
    pub(crate) fn new() -> BinaryCopy {
        let mut bytes = b"PGCOPY\n\xff\r\n\0".to_vec();
        bytes.extend_from_slice(&[0; 8]);
        BinaryCopy { bytes }
    }

    /// Begins a row of so many fields.
    #[inline]
    pub(crate) fn row(&mut self, fields: usize) {
        self.bytes.extend_from_slice(&(fields as i16).to_be_bytes());
    }

    /// `bigint`.
    #[inline]
    pub(crate) fn bigint(&mut self, value: Option<i64>) {
        self.field(value.map(i64::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
    }

    /// `int`.
    pub(crate) fn int(&mut self, value: i32) {
        self.field(Some(&value.to_be_bytes()));
    }

    /// `double precision`.
    pub(crate) fn double(&mut self, value: Option<f64>) {
        self.field(value.map(f64::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
    }

    /// `boolean`.
    pub(crate) fn boolean(&mut self, value: Option<bool>) {
        self.field(value.map(|value| [u8::from(value)]).as_ref().map(|bytes| &bytes[..]));
    }

    /// `text`, which must not contain NUL: decoding refuses records that do.
    #[inline]
    pub(crate) fn text(&mut self, value: Option<&str>) {
        self.field(value.map(str::as_bytes));
    }

    /// `bytea`.
    pub(crate) fn bytes(&mut self, value: Option<&[u8]>) {
        self.field(value);
    }

    /// `timestamptz` of ms since 1970.
    #[inline]
    pub(crate) fn timestamp(&mut self, value: Option<Millis>) {
        self.bigint(value.map(|millis| (millis - POSTGRES_EPOCH) * 1_000));
    }

    /// `numeric` without fraction.
    pub(crate) fn numeric(&mut self, value: Option<i128>) {
        self.decimal(value, 0);
    }

    /// `numeric` of units of 10^-scale: digits of base 10,000, the highest first, aligned to the point.
    pub(crate) fn decimal(&mut self, value: Option<i128>, scale: u8) {
        let Some(value) = value else { return self.field(None) };
        let padding = (4 - scale % 4) % 4;
        let mut rest = value.unsigned_abs();
        // Filled from the end. An i128 has 39 digits, and the lowest group may hold but one: eleven are enough.
        let mut groups = [0i16; 11];
        let mut from = groups.len() - 1;
        // The lowest group holds 4 - padding digits of the units.
        let first = 10u128.pow(4 - u32::from(padding));
        groups[from] = ((rest % first) * 10u128.pow(u32::from(padding))) as i16;
        rest /= first;
        while rest > 0 {
            from -= 1;
            groups[from] = (rest % 10_000) as i16;
            rest /= 10_000;
        }
        let digits = &groups[from..];
        let kept = digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
        let weight = match kept {
            0 => 0,
            _ => digits.len() as i16 - 1 - i16::from(scale.div_ceil(4)),
        };
        let sign: i16 = if value < 0 { 0x4000 } else { 0 };
        let words = [kept as i16, weight, sign, i16::from(scale)];
        self.bytes.extend_from_slice(&(2 * (words.len() + kept) as i32).to_be_bytes());
        for word in words.iter().chain(&digits[..kept]) {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
    }

    /// A key's value, in a column of its type.
    #[inline]
    pub(crate) fn value<'a>(&mut self, value: impl Into<ValueRef<'a>>) {
        match value.into() {
            ValueRef::Null => self.field(None),
            ValueRef::Bool(value) => self.boolean(Some(value)),
            ValueRef::Int(value) => self.bigint(Some(value)),
            ValueRef::Float(value) => self.double(Some(value)),
            ValueRef::Str(value) => self.text(Some(&value)),
        }
    }

    /// A state's column.
    #[inline]
    pub(crate) fn column(&mut self, column: &Column) {
        match column {
            Column::BigInt(value) => self.bigint(*value),
            Column::Numeric(value) => self.numeric(*value),
            Column::Double(value) => self.double(*value),
            Column::Text(value) => self.text(value.as_deref()),
            Column::Bool(value) => self.boolean(*value),
            Column::Bytes(value) => self.bytes(value.as_deref()),
        }
    }

    /// An array of one dimension, NULL where it has no elements; of these it has none then.
    pub(crate) fn array(&mut self, elements: &mut Elements) {
        if elements.count == 0 {
            return self.field(None);
        }
        let of = &mut elements.fields.bytes;
        let length = ARRAY_HEADER + of.len();
        // Dimensions, whether any element is NULL, their type, then of the dimension its length and its first index.
        let header = [1, i32::from(elements.has_null), elements.oid, elements.count, 1];
        for word in [length as i32].into_iter().chain(header) {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        self.bytes.append(of);
        (elements.count, elements.has_null) = (0, false);
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the bytes so far, to be sent. There is room for as many again.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let room = Vec::with_capacity(self.bytes.capacity());
        std::mem::replace(&mut self.bytes, room)
    }

    /// The last bytes, with the trailer.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&(-1i16).to_be_bytes());
        self.bytes
    }

    #[inline]
    fn field(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.bytes.extend_from_slice(&(-1i32).to_be_bytes()),
            Some(bytes) => {
                self.bytes.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                self.bytes.extend_from_slice(bytes);
            }
        }
    }
}

/// An array's elements, all of one type whose values are never empty.
pub(crate) struct Elements {
    oid: i32,
    /// Each element has the bytes of a field.
    fields: BinaryCopy,
    count: i32,
    has_null: bool,
}

impl Elements {
    /// None yet, of the type that Postgres knows by this number.
    fn new(oid: i32) -> Elements {
        Elements { oid, fields: BinaryCopy { bytes: Vec::new() }, count: 0, has_null: false }
    }

    /// Of `timestamptz`.
    pub(crate) fn timestamps() -> Elements {
        Elements::new(1184)
    }

    /// Of a state's column.
    pub(crate) fn columns(ty: ColumnType) -> Elements {
        Elements::new(match ty {
            ColumnType::BigInt => 20,
            ColumnType::Numeric => 1700,
            ColumnType::Double => 701,
            ColumnType::Text => 25,
            ColumnType::Bool => 16,
            ColumnType::Bytes => 17,
        })
    }

    /// Adds what `write` writes as one field.
    #[inline]
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut BinaryCopy)) {
        let before = self.fields.len();
        write(&mut self.fields);
        self.count += 1;
        self.has_null |= self.fields.len() - before == size_of::<i32>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(write: impl FnOnce(&mut BinaryCopy)) -> Vec<u8> {
        let mut copy = BinaryCopy::new();
        copy.take();
        write(&mut copy);
        copy.take()
    }

    #[test]
    fn fields_have_the_bytes_that_the_format_says() {
        assert_eq!(field(|c| c.bigint(Some(258))), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(field(|c| c.bigint(None)), [255; 4]);
        assert_eq!(field(|c| c.text(Some("é"))), [0, 0, 0, 2, 0xc3, 0xa9]);
        assert_eq!(field(|c| c.boolean(Some(true))), [0, 0, 0, 1, 1]);
        assert_eq!(field(|c| c.timestamp(Some(POSTGRES_EPOCH + 1))), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 3, 232]);
    }

    #[test]
    fn arrays_have_the_bytes_that_their_type_receives() {
        let mut elements = Elements::columns(ColumnType::BigInt);
        assert_eq!(field(|c| c.array(&mut elements)), [255; 4], "no elements");
        elements.push(|c| c.bigint(Some(258)));
        elements.push(|c| c.bigint(Some(-1)));
        let header = |bytes: u8, has_null: u8, oid: [u8; 4]| {
            [[0, 0, 0, bytes], [0, 0, 0, 1], [0, 0, 0, has_null], oid].concat()
        };
        let two: Vec<u8> = vec![0, 0, 0, 2, 0, 0, 0, 1];
        let values: Vec<u8> = vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 8];
        let expected = [header(44, 0, [0, 0, 0, 20]), two.clone(), values, vec![255; 8]].concat();
        assert_eq!(field(|c| c.array(&mut elements)), expected);
        // What was written is gone, the NULL too.
        let mut elements = Elements::columns(ColumnType::Bool);
        elements.push(|c| c.boolean(None));
        elements.push(|c| c.boolean(Some(true)));
        let values = vec![255, 255, 255, 255, 0, 0, 0, 1, 1];
        let expected = [header(29, 1, [0, 0, 0, 16]), two, values].concat();
        assert_eq!(field(|c| c.array(&mut elements)), expected);
        assert_eq!(field(|c| c.array(&mut elements)), [255; 4]);
        let mut elements = Elements::timestamps();
        elements.push(|c| c.timestamp(Some(POSTGRES_EPOCH + 1)));
        let one = vec![0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 3, 232];
        let expected = [header(32, 0, [0, 0, 4, 160]), one].concat();
        assert_eq!(field(|c| c.array(&mut elements)), expected);
    }

    #[test]
    fn numerics_are_digits_of_base_ten_thousand() {
        let words = |value: i128| {
            let bytes = field(|copy| copy.numeric(Some(value)));
            bytes[4..].chunks(2).map(|word| i16::from_be_bytes([word[0], word[1]])).collect::<Vec<_>>()
        };
        assert_eq!(words(0), [0, 0, 0, 0]);
        assert_eq!(words(7), [1, 0, 0, 0, 7]);
        assert_eq!(words(-12_345), [2, 1, 0x4000, 0, 1, 2_345]);
        // Digits of value 0 at the end are left out; the weight tells their place.
        assert_eq!(words(120_000_000), [2, 2, 0, 0, 1, 2_000]);
        assert_eq!(words(100_000_000), [1, 2, 0, 0, 1]);
        assert_eq!(words(i128::MAX).len(), 4 + 10);
        assert_eq!(words(i128::MIN)[..5], [10, 9, 0x4000, 0, 170]);
    }

    #[test]
    fn decimals_are_aligned_to_the_point() {
        let words = |value: i128, scale: u8| {
            let bytes = field(|copy| copy.decimal(Some(value), scale));
            bytes[4..].chunks(2).map(|word| i16::from_be_bytes([word[0], word[1]])).collect::<Vec<_>>()
        };
        // 123.45, 0.01, -1.0, 12345.67891
        assert_eq!(words(12_345, 2), [2, 0, 0, 2, 123, 4_500]);
        assert_eq!(words(1, 2), [1, -1, 0, 2, 100]);
        assert_eq!(words(-10, 1), [1, 0, 0x4000, 1, 1]);
        assert_eq!(words(1_234_567_891, 5), [4, 1, 0, 5, 1, 2_345, 6_789, 1_000]);
        assert_eq!(words(0, 3), [0, 0, 0, 3]);
        // 17014118346046923173168730371588410572.7
        assert_eq!(words(i128::MAX, 1)[..5], [11, 9, 0, 1, 17]);
        assert_eq!(words(i128::MAX, 1)[14], 7_000);
    }

    #[test]
    fn a_stream_has_its_header_and_trailer() {
        let mut copy = BinaryCopy::new();
        copy.row(1);
        copy.bigint(None);
        let bytes = copy.finish();
        assert!(bytes.starts_with(b"PGCOPY\n\xff\r\n\0"));
        assert_eq!(bytes[19..], [0, 1, 255, 255, 255, 255, 255, 255]);
    }
}
