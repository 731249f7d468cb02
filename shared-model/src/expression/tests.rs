//! Tests of parsing, types and evaluation, and the laws: total, closed under its types, canonical.

use super::*;
use crate::codec;
use proptest::prelude::*;

const FIELDS: [(&str, FieldType); 7] = [
    ("s", FieldType::String),
    ("i", FieldType::Int),
    ("f", FieldType::Float),
    ("b", FieldType::Bool),
    ("d", FieldType::Decimal(2)),
    ("timestamp", FieldType::Int),
    ("user", FieldType::String),
];

fn scope(name: &str) -> Option<Expression> {
    let at = FIELDS.iter().position(|(field, _)| *field == name)?;
    Some(Expression::field(at, FIELDS[at].1))
}

fn values() -> Vec<Value> {
    let s = Value::str("US>CA>807");
    vec![
        s,
        Value::Int(7),
        Value::Float(2.5),
        Value::Bool(true),
        Value::Int(125),
        Value::Int(9),
        Value::str("u"),
    ]
}

fn check(sql: &str, expected: Value) {
    let expression = parse(sql, &scope).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!(expression.evaluate(&values()), expected, "{sql}");
    let of_nulls = expression.evaluate(&[const { Value::Null }; 7]);
    assert!(of_nulls.is_null() || has_constants(&expression), "{sql} of NULLs");
}

/// Whether an expression may have a value although all fields are NULL.
fn has_constants(expression: &Expression) -> bool {
    matches!(expression.node, Node::Literal(_) | Node::IsNull(_) | Node::Case { .. } | Node::Coalesce(_))
        || expression.children().into_iter().any(has_constants)
}

#[test]
fn expressions_mean_what_sql_means() {
    use Value::{Bool, Float, Int, Null};
    let text = Value::str;
    let cases = [
        ("i", Int(7)),
        ("d", Int(125)),
        ("d is null", Bool(false)),
        ("timestamp > 5", Bool(true)),
        ("timestamp - 1 >= 8", Bool(true)),
        ("\"user\" = 'u'", Bool(true)),
        ("'it''s'", text("it's")),
        ("i = 7 and not b", Bool(false)),
        ("i = 7.0", Bool(true)),
        ("i < f", Bool(false)),
        ("s <> 'x'", Bool(true)),
        ("s != 'x'", Bool(true)),
        ("null = 1", Null),
        ("null and false", Bool(false)),
        ("null or true", Bool(true)),
        ("null and true", Null),
        ("not null", Null),
        ("i in (1, 7)", Bool(true)),
        ("i in (1, null)", Null),
        ("i in (7, null)", Bool(true)),
        ("i not in (1, 2)", Bool(true)),
        ("i not in (1, null)", Null),
        ("i in (1, 7.0)", Bool(true)),
        ("i between 7 and 8", Bool(true)),
        ("i not between 1 and 6", Bool(true)),
        ("i between null and 6", Bool(false)),
        ("i between null and 8", Null),
        ("s like 'US>%'", Bool(true)),
        ("s not like 'US>_'", Bool(true)),
        ("null like 'x'", Null),
        ("1 + 2 * 3", Int(7)),
        ("-7 / 2", Int(-3)),
        ("-7 % 2", Int(-1)),
        ("-i", Int(-7)),
        ("+i", Int(7)),
        ("i / 0", Null),
        ("i % 0", Null),
        ("f / 0", Null),
        ("9223372036854775807 + 1", Null),
        ("-9223372036854775808 / -1", Null),
        ("-9223372036854775808 % -1", Int(0)),
        ("1e308 * 10", Null),
        ("0.0 * -1", Float(0.0)),
        ("-0.0", Float(0.0)),
        ("i + f", Float(9.5)),
        ("7 / 2.0", Float(3.5)),
        ("null + 1", Null),
        ("null + null", Null),
        ("case when i > 5 then 'many' when b then 'b' else 'few' end", text("many")),
        ("case i when 1 then 'one' when 7 then 'seven' end", text("seven")),
        ("case when i > 50 then 1 end", Null),
        ("case when null then 1 else 2.5 end", Float(2.5)),
        ("cast(i as text)", text("7")),
        ("i::float", Float(7.0)),
        ("cast('12' as bigint) + 1", Int(13)),
        ("cast(f as int)", Int(2)),
        ("cast('x' as int)", Null),
        ("cast(null as int) + 1", Null),
        ("coalesce(null, i, 1)", Int(7)),
        ("coalesce(null)", Null),
        ("lower(s)", text("us>ca>807")),
        ("UPPER('straße')", text("STRASSE")),
        ("lower('ΟΔΟΣ AΣ')", text("οδοσ aσ")),
        ("split_part(s, '>', 1)", text("US")),
        ("split_part(s, '>', 3)", text("807")),
        ("split_part(s, '>', 4)", text("")),
        ("split_part('', '>', 1)", text("")),
        ("split_part('aabbaab', 'ab', 2)", text("ba")),
        ("(((i)))", Int(7)),
        ("i = 7 -- a comment", Bool(true)),
    ];
    for (sql, expected) in cases {
        check(sql, expected);
    }
}

#[test]
fn what_is_outside_the_subset_is_refused_with_the_remedy() {
    let cases = [
        ("x", "unknown field \"x\""),
        ("", "not a valid expression"),
        ("i +", "not a valid expression"),
        ("i i", "expected its end, found i at character 3"),
        ("i; drop table x", "expected its end"),
        ("'open", "not a valid expression"),
        ("i = 'x'", "= takes values of one type, found int and string; cast one of them"),
        ("i and b", "and takes bool, found int"),
        ("not i", "not takes bool, found int"),
        ("s + 1", "+ takes values of one type, found string and int"),
        ("s + s", "+ takes numbers, found string"),
        ("b * b", "* takes numbers, found bool"),
        ("f % 2", "% takes two ints, not floats"),
        ("d > 1", "> does not take decimal(2): a decimal can only be used by itself"),
        ("cast(d as float)", "a decimal can only be used by itself"),
        ("cast(f as text)", "a cast of float to string is not allowed"),
        ("cast(i as date)", "a cast to DATE is not allowed in an expression; cast to int"),
        ("cast(i as numeric(10,2))", "a cast to NUMERIC(10,2) is not allowed"),
        ("try_cast(s as int)", "is not allowed in an expression; allowed are comparison"),
        ("i like 'x'", "like takes string, found int"),
        ("s like s", "like takes a constant 'text'"),
        ("s like 'x\\'", "a pattern that ends with a backslash is not allowed"),
        ("s like 'x' escape '!'", "use a backslash"),
        ("s ilike 'x'", "ilike is not allowed in an expression; use lower(x) like"),
        ("s ~ 'x'", "the operator ~ is not allowed"),
        ("s || s", "the operator || is not allowed"),
        ("length(s)", "the function length is not allowed in an expression; allowed are"),
        ("lower()", "lower takes one text"),
        ("lower(s, s)", "lower takes one text"),
        ("lower(distinct s)", "is not allowed"),
        ("coalesce()", "coalesce takes at least one value"),
        ("count(*)", "is not allowed"),
        ("sum(i) over ()", "is not allowed"),
        ("split_part(s, '', 1)", "the delimiter of split_part must not be empty"),
        ("split_part(s, '>', 0)", "the part of split_part is a constant from 1"),
        ("split_part(s, s, 1)", "a constant text as delimiter"),
        ("split_part(s, '>', i)", "the part of split_part is a constant from 1"),
        ("(select 1)", "is not allowed"),
        ("i in (select 1)", "is not allowed"),
        ("t.i", "t.i is not allowed"),
        ("user", "is not allowed"),
        ("current_timestamp", "is not allowed"),
        ("interval '1 day'", "is not allowed"),
        ("i is true", "is not allowed"),
        ("$1", "is not allowed"),
        ("E'x'", "constants are numbers"),
        ("99999999999999999999", "the constant 99999999999999999999 does not fit 64 bits"),
        ("1e999", "the constant 1e999 does not fit"),
        ("case when i then 1 end", "when takes bool, found int"),
        ("case when b then 1 else 'x' end", "case takes values of one type"),
    ];
    for (sql, expected) in cases {
        match parse(sql, &scope) {
            Ok(parsed) => panic!("{sql}: {parsed:?} instead of {expected}"),
            Err(error) => assert!(error.to_string().contains(expected), "{sql}: {error}"),
        }
    }
}

#[test]
fn size_and_nesting_are_limited() {
    let deep = |nodes: usize| format!("{}i{}", "(".repeat(nodes), ")".repeat(nodes));
    assert!(parse(&deep(20), &scope).is_ok());
    assert_eq!(parse(&deep(1_000), &scope), Err(ExpressionError::TooDeep));
    let chain = |terms: usize| vec!["i"; terms].join("+");
    assert!(parse(&chain(MAX_DEPTH), &scope).is_ok());
    assert_eq!(parse(&chain(MAX_DEPTH + 1), &scope), Err(ExpressionError::TooDeep));
    assert_eq!(parse(&chain(2_000), &scope), Err(ExpressionError::TooDeep));
    assert_eq!(parse(&"x".repeat(5_000), &scope), Err(ExpressionError::TooLong { length: 5_000 }));
    let list = format!("i in ({})", vec!["i"; 500].join(","));
    assert!(parse(&list, &scope).is_ok());
    let inlined = parse(&list, &scope).expect("valid");
    let twice = parse(&format!("b in ({})", ["x"; 10].join(",")), &|name| match name {
        "x" => Some(inlined.clone()),
        other => scope(other),
    });
    assert_eq!(twice, Err(ExpressionError::TooLarge));
}

#[test]
fn the_canonical_text_is_pinned() {
    let cases = [
        ("I", "i"),
        ("lower(s) like 'a%' AND (i + 1.5 > 2)", "case when b then 1 end"),
        ("split_part(s, '>', 2)", "x"),
    ];
    let canonical = |sql: &str| {
        parse(sql, &scope).map(|parsed| parsed.canonical(&|at| FIELDS[at].0.to_owned())).unwrap_or_default()
    };
    let found: Vec<_> = cases.iter().flat_map(|(a, b)| [canonical(a), canonical(b)]).collect();
    let expected = [
        "",
        "field(1:i)",
        "(and (like 2:a% (lower field(1:s))) (> (+ (cast float field(1:i)) float(3ff8000000000000)) \
         float(4000000000000000)))",
        "(case field(1:b) int(1) null(int))",
        "(split_part 1:> 2 field(1:s))",
        "",
    ];
    assert_eq!(found, expected);
    assert_eq!(canonical(" i  BETWEEN 1 and 2"), canonical("i >= 1 and i <= 2"));
}

/// Trees of a type, as the parser could make them.
fn tree(ty: FieldType) -> BoxedStrategy<Expression> {
    tree_of(ty, 3)
}

fn tree_of(ty: FieldType, depth: u32) -> BoxedStrategy<Expression> {
    let field = FIELDS.iter().position(|(_, field)| *field == ty).unwrap_or(0);
    let leaf = prop_oneof![
        Just(Expression::field(field, ty)),
        value_of(ty).prop_map(move |value| Expression::literal(ty, value)),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let sub = move |ty| tree_of(ty, depth - 1).prop_map(Box::new);
    let scalar =
        prop::sample::select(vec![FieldType::String, FieldType::Int, FieldType::Float, FieldType::Bool]);
    let case = (tree_of(FieldType::Bool, depth - 1), tree_of(ty, depth - 1), sub(ty)).prop_map(
        |(condition, result, otherwise)| Node::Case { branches: vec![(condition, result)], otherwise },
    );
    let coalesce = prop::collection::vec(tree_of(ty, depth - 1), 1..3).prop_map(Node::Coalesce);
    let casted = scalar
        .clone()
        .prop_filter_map("no such cast", move |from| (from != ty && cast::exists(from, ty)).then_some(from));
    let casted = casted.prop_flat_map(sub).prop_map(Node::Cast);
    let own: BoxedStrategy<Node> = match ty {
        FieldType::Bool => prop_oneof![
            (scalar, comparison())
                .prop_flat_map(move |(of, op)| (Just(op), sub(of), sub(of)))
                .prop_map(|(op, left, right)| Node::Binary { op, left, right }),
            (prop::sample::select(vec![BinaryOp::And, BinaryOp::Or]), sub(ty), sub(ty))
                .prop_map(|(op, left, right)| Node::Binary { op, left, right }),
            sub(ty).prop_map(Node::Not),
            sub(FieldType::Decimal(2)).prop_map(Node::IsNull),
            (sub(FieldType::Int), prop::collection::vec(tree_of(FieldType::Int, depth - 1), 1..4))
                .prop_map(|(value, list)| Node::In { value, list }),
            (sub(FieldType::String), "[ab%_]{0,4}").prop_filter_map("a pattern", |(value, pattern)| {
                Some(Node::Like { value, pattern: LikePattern::new(&pattern)? })
            }),
        ]
        .boxed(),
        FieldType::String => prop_oneof![
            sub(ty).prop_map(Node::Lower),
            sub(ty).prop_map(Node::Upper),
            (sub(ty), "[a>é]{1,2}", 1u32..4).prop_map(|(value, delimiter, part)| Node::SplitPart {
                value,
                delimiter,
                part
            }),
        ]
        .boxed(),
        FieldType::Decimal(_) => return leaf.boxed(),
        _ => {
            let ops = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Rem];
            let ops = if ty == FieldType::Int { &ops[..] } else { &ops[..4] };
            (prop::sample::select(ops.to_vec()), sub(ty), sub(ty))
                .prop_map(|(op, left, right)| Node::Binary { op, left, right })
                .boxed()
        }
    };
    prop_oneof![1 => leaf, 4 => prop_oneof![own, case, coalesce, casted].prop_map(move |node| Expression { ty, node })]
        .boxed()
}

fn comparison() -> impl Strategy<Value = BinaryOp> {
    use BinaryOp::{Eq, Ge, Gt, Le, Lt, Ne};
    prop::sample::select(vec![Eq, Ne, Lt, Le, Gt, Ge])
}

fn value_of(ty: FieldType) -> BoxedStrategy<Value> {
    let some = match ty {
        FieldType::String => "[a>éΣ1.-]{0,5}".prop_map(|text| Value::str(&text)).boxed(),
        FieldType::Int | FieldType::Decimal(_) => {
            prop_oneof![Just(i64::MIN), Just(i64::MAX), -3i64..4, any::<i64>()].prop_map(Value::Int).boxed()
        }
        FieldType::Float => {
            let edge = prop::sample::select(vec![0.0, f64::MAX, f64::MIN, 5e-324, 9.3e18, -9.3e18]);
            prop_oneof![edge, -3.0..3.0f64].prop_map(|float| Value::Float(float + 0.0)).boxed()
        }
        FieldType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
    };
    prop_oneof![1 => Just(Value::Null), 4 => some].boxed()
}

fn record() -> impl Strategy<Value = Vec<Value>> {
    FIELDS.map(|(_, ty)| value_of(ty)).to_vec()
}

fn fits(value: &Value, ty: FieldType) -> bool {
    match (value, ty) {
        (Value::Null, _) => true,
        (Value::Int(_), FieldType::Int | FieldType::Decimal(_)) => true,
        (Value::Float(float), FieldType::Float) => {
            float.is_finite() && float.to_bits() != (-0.0f64).to_bits()
        }
        (Value::Str(_), FieldType::String) | (Value::Bool(_), FieldType::Bool) => true,
        _ => false,
    }
}

fn any_tree() -> impl Strategy<Value = Expression> {
    use FieldType::{Bool, Float, Int, String};
    prop::sample::select(vec![String, Int, Float, Bool]).prop_flat_map(tree)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn evaluation_is_total_and_keeps_its_type(tree in any_tree(), values in record()) {
        let value = tree.evaluate(&values);
        prop_assert!(fits(&value, tree.ty), "{value:?} of {tree:?}");
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        let (text, mut rest) = (if let Value::Str(text) = &value { Some(&text[..]) } else { None }, &bytes[..]);
        prop_assert_eq!(Value::decode_text(&mut rest), Ok::<_, codec::CodecError>(text));
        prop_assert_eq!(rest.is_empty(), text.is_some());
        prop_assert_eq!(Value::decode(&mut &bytes[..]), Ok::<_, codec::CodecError>(value));
        // Records of other shapes than declared don't make it panic either.
        tree.evaluate(&values[..2]);
        tree.evaluate(&values.iter().rev().cloned().collect::<Vec<_>>());
    }

    #[test]
    fn a_tree_survives_sql_and_back(tree in any_tree(), values in record()) {
        let sql = sql(&tree);
        prop_assume!(sql.len() <= MAX_LENGTH);
        match parse(&sql, &scope) {
            Ok(parsed) => {
                prop_assert_eq!(parsed.ty, tree.ty);
                prop_assert_eq!(parsed.evaluate(&values), tree.evaluate(&values), "{}", sql);
                let again = parse(&self::sql(&parsed), &scope);
                prop_assert_eq!(again.as_ref(), Ok(&parsed), "{}", sql);
            }
            Err(ExpressionError::TooDeep | ExpressionError::TooLarge) => {}
            Err(error) => prop_assert!(false, "{sql}: {error}"),
        }
    }

    #[test]
    fn hostile_text_never_panics(text in "[a-z0-9()'\"., <>=%+*/:\\\\_$-]{0,60}", any: String) {
        let _ = parse(&text, &scope);
        let _ = parse(&any, &scope);
    }
}

/// A tree as SQL, fully bracketed, with a cast around each NULL and each int that could be taken for another type.
fn sql(tree: &Expression) -> String {
    let name = |ty: FieldType| match ty {
        FieldType::Int => "bigint",
        FieldType::Float => "double precision",
        FieldType::Bool => "boolean",
        _ => "text",
    };
    match &tree.node {
        Node::Field(at) => format!("\"{}\"", FIELDS[*at].0),
        Node::Literal(Value::Null) => format!("cast(null as {})", name(tree.ty)),
        Node::Literal(Value::Str(text)) => format!("'{}'", text.replace('\'', "''")),
        Node::Literal(Value::Float(float)) => format!("{float:e}"),
        Node::Literal(value) => value.to_string(),
        Node::Binary { op, left, right } => format!("({} {} {})", sql(left), op.sql(), sql(right)),
        Node::Not(inner) => format!("(not {})", sql(inner)),
        Node::IsNull(inner) => format!("({} is null)", sql(inner)),
        Node::In { value, list } => {
            format!("({} in ({}))", sql(value), list.iter().map(sql).collect::<Vec<_>>().join(", "))
        }
        Node::Like { value, pattern } => format!("({} like '{}')", sql(value), pattern.text()),
        Node::Case { branches, otherwise } => {
            let whens = branches.iter().map(|(when, then)| format!("when {} then {} ", sql(when), sql(then)));
            format!("(case {}else {} end)", whens.collect::<String>(), sql(otherwise))
        }
        Node::Cast(inner) => format!("cast({} as {})", sql(inner), name(tree.ty)),
        Node::Coalesce(list) => format!("coalesce({})", list.iter().map(sql).collect::<Vec<_>>().join(", ")),
        Node::Lower(inner) => format!("lower({})", sql(inner)),
        Node::Upper(inner) => format!("upper({})", sql(inner)),
        Node::SplitPart { value, delimiter, part } => {
            format!("split_part({}, '{delimiter}', {part})", sql(value))
        }
    }
}
