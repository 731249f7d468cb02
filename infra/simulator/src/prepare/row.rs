//! A row's compact bytes: what is sorted, spilled and merged before it becomes Parquet.
//!
//! One value for each declared field, in the catalog's order; self-delimiting, and never kept beyond one run.

use shared_model::event::FieldType;

/// One value of a row, borrowed from its bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// NULL.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer, or a decimal in its units.
    Int(i64),
    /// A finite float.
    Float(f64),
    /// Text.
    Str(&'a str),
}

/// Appends a cell.
pub fn put(out: &mut Vec<u8>, cell: Cell<'_>) {
    match cell {
        Cell::Null => out.push(0),
        Cell::Bool(value) => out.extend_from_slice(&[1, u8::from(value)]),
        Cell::Int(value) => {
            out.push(1);
            put_varint(out, zigzag(value));
        }
        Cell::Float(value) => {
            out.push(1);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Cell::Str(value) => {
            out.push(1);
            put_varint(out, value.len() as u64);
            out.extend_from_slice(value.as_bytes());
        }
    }
}

/// Takes a cell of a field's type; `None` for bytes that `put` didn't write.
pub fn take<'a>(input: &mut &'a [u8], ty: FieldType) -> Option<Cell<'a>> {
    if take_bytes(input, 1)?[0] == 0 {
        return Some(Cell::Null);
    }
    Some(match ty {
        FieldType::Bool => Cell::Bool(take_bytes(input, 1)?[0] == 1),
        FieldType::Int | FieldType::Decimal(_) => Cell::Int(unzigzag(take_varint(input)?)),
        FieldType::Float => Cell::Float(f64::from_le_bytes(take_bytes(input, 8)?.try_into().ok()?)),
        FieldType::String => {
            let length = usize::try_from(take_varint(input)?).ok()?;
            Cell::Str(std::str::from_utf8(take_bytes(input, length)?).ok()?)
        }
    })
}

/// Folds the sign into the lowest bit, so that small numbers are short.
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Undoes [`zigzag`].
pub(crate) fn unzigzag(bits: u64) -> i64 {
    (bits >> 1) as i64 ^ -((bits & 1) as i64)
}

/// Appends a number, seven bits a byte.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take_bytes(input, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_bytes<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_come_back() {
        let cells = [
            (Cell::Null, FieldType::Int),
            (Cell::Int(i64::MIN), FieldType::Int),
            (Cell::Int(i64::MAX), FieldType::Decimal(2)),
            (Cell::Int(-1), FieldType::Int),
            (Cell::Bool(true), FieldType::Bool),
            (Cell::Bool(false), FieldType::Bool),
            (Cell::Float(-1.5), FieldType::Float),
            (Cell::Str(""), FieldType::String),
            (Cell::Str("ü\n"), FieldType::String),
        ];
        let mut bytes = Vec::new();
        cells.iter().for_each(|(cell, _)| put(&mut bytes, *cell));
        let mut input = bytes.as_slice();
        for (cell, ty) in cells {
            assert_eq!(take(&mut input, ty), Some(cell));
        }
        assert_eq!(take(&mut input, FieldType::Int), None);
    }
}
