//! The text of a plan; and that Polars and the reference give the same value for every expression and record.

use super::expression::{column, translate, values};
use super::*;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use shared_model::catalog::{Catalog, OUTBRAIN};
use shared_model::event::{FieldType, Value};
use shared_model::expression::{Expression, parse};
use std::sync::Arc;

const FIELDS: &str = r#"
[streams.rows]
topic = "rows"
event_time = { field = "i" }
bounds = { from = "1970-01-01", to = "1975-01-01" }
fields = { s = "string", t = "string", i = "int", j = "int", f = "float", g = "float", b = "bool", c = "bool", d = "decimal(2)" }
"#;

const BOOLS: [&str; 30] = [
    "b",
    "not b",
    "null and b",
    "b or null",
    "b = c",
    "b < c",
    "b <> false",
    "b is null",
    "d is not null",
    "s is null",
    "i = j",
    "i <> 3",
    "i < j",
    "i >= 0",
    "i = null",
    "i between -1 and j",
    "i in (1, 2, null)",
    "i not in (1, j, 3)",
    "i in (1,2,3,4,5,6,7,8,9,10,11)",
    "f = g",
    "f < 0.5",
    "i < f",
    "s = t",
    "s < t",
    "s in ('a', 'US>CA', t)",
    "s like 'a%'",
    "s like '_'",
    "s not like '%\\%%'",
    "cast(s as bool)",
    "cast(f as bool)",
];
const INTS: [&str; 19] = [
    "i",
    "i + j",
    "i - j",
    "i * j",
    "i / j",
    "i % j",
    "-i",
    "i + 9223372036854775807",
    "i / 0",
    "i % -1",
    "i * i * j",
    "cast(s as int)",
    "cast(f as int)",
    "cast(b as int)",
    "coalesce(i, j, 0)",
    "case when b then i when c then j end",
    "case i when 1 then 10 when 2 then j else null end",
    "cast(cast(i as text) as int)",
    "coalesce(null, i)",
];
const FLOATS: [&str; 14] = [
    "f",
    "f + g",
    "f - g",
    "f * g",
    "f / g",
    "f / 0",
    "0.0 * f",
    "-f",
    "i + f",
    "i / 2.0",
    "cast(i as float)",
    "cast(s as float)",
    "cast(b as float)",
    "coalesce(f, g, 1)",
];
const TEXTS: [&str; 12] = [
    "s",
    "lower(s)",
    "upper(s)",
    "split_part(s, '>', 1)",
    "split_part(s, '>', 2)",
    "split_part(t, 'aa', 2)",
    "cast(i as text)",
    "cast(b as text)",
    "coalesce(s, t, 'none')",
    "case when s = 'a' then t else s end",
    "lower(split_part(upper(s), 'A', 2))",
    "'constant'",
];

fn stream() -> Arc<Stream> {
    Catalog::from_toml(FIELDS).unwrap_or_else(|faults| panic!("{faults}")).streams[0].clone()
}

fn parsed(stream: &Stream, sql: &str) -> Expression {
    let scope = |name: &str| stream.field(name).map(|at| Expression::field(at, stream.fields[at].ty));
    parse(sql, &scope).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn value_of(ty: FieldType) -> impl Strategy<Value = Value> {
    let some = match ty {
        FieldType::String => {
            let known = prop::sample::select(vec![
                "", "a", "A", "US>CA", "ΟΔΟΣ", "straße", "a%", "12", "-.5e1", "true", "aaaa", ">",
            ]);
            prop_oneof![known.prop_map(Value::str), "[aA>é1.%\n-]{0,5}".prop_map(|text| Value::str(&text))]
                .boxed()
        }
        FieldType::Int | FieldType::Decimal(_) => {
            let edge = prop::sample::select(vec![i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1]);
            prop_oneof![4 => -3i64..4, 1 => edge, 1 => any::<i64>()].prop_map(Value::Int).boxed()
        }
        FieldType::Float => {
            let edge = prop::sample::select(vec![0.0, 1.0, 0.5, f64::MAX, f64::MIN, 5e-324, 9.3e18, -9.3e18]);
            prop_oneof![edge, -3.0..3.0f64].prop_map(|float| Value::Float(float + 0.0)).boxed()
        }
        FieldType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
    };
    prop_oneof![1 => Just(Value::Null), 4 => some]
}

/// Evaluates all expressions in one plan, by both engines, and compares every value with the reference's.
fn check(stream: &Stream, sqls: &[String], rows: &[Vec<Value>]) {
    let fields = stream.fields.iter().enumerate().map(|(at, field)| {
        let values: Vec<Value> = rows.iter().map(|row| row[at].clone()).collect();
        column(field.name.as_str().into(), field.ty, &values)
    });
    let frame = DataFrame::new(rows.len(), fields.collect()).expect("columns of one length");
    let expressions: Vec<Expression> = sqls.iter().map(|sql| parsed(stream, sql)).collect();
    let columns = expressions.iter().enumerate();
    let columns: Vec<Expr> =
        columns.map(|(at, expression)| translate(stream, expression).alias(format!("e{at}"))).collect();
    for engine in [Engine::Streaming, Engine::InMemory] {
        let plan = frame.clone().lazy().with_columns(columns.clone());
        let computed =
            plan.collect_with_engine(engine).unwrap_or_else(|error| panic!("{error}")).unwrap_single();
        for (at, (expression, sql)) in expressions.iter().zip(sqls).enumerate() {
            let found =
                values(computed.column(&format!("e{at}")).expect("there"), expression.ty).expect("its type");
            for (row, found) in rows.iter().zip(found) {
                let expected = expression.evaluate(row);
                assert_eq!(found, expected, "{sql} of {row:?} by {engine:?}");
                // Of floats the bits too: -0 is never kept.
                if let (Value::Float(a), Value::Float(b)) = (&found, &expected) {
                    assert_eq!(a.to_bits(), b.to_bits(), "{sql} of {row:?}");
                }
            }
        }
    }
}

fn rows() -> impl Strategy<Value = Vec<Vec<Value>>> {
    let row: Vec<_> = stream().fields.iter().map(|field| value_of(field.ty).boxed()).collect();
    prop::collection::vec(row, 1..200)
}

/// An expression made of two or three of the tables'.
fn nested() -> impl Strategy<Value = String> {
    let bool = || prop::sample::select(BOOLS.to_vec());
    let typed = |table: &'static [&'static str], more: &'static [&'static str]| {
        let pick = move || prop::sample::select(table.to_vec());
        (bool(), pick(), pick(), prop::sample::select(more.to_vec())).prop_map(|(condition, a, b, form)| {
            form.replace("$c", condition).replace("$a", &format!("({a})")).replace("$b", &format!("({b})"))
        })
    };
    prop_oneof![
        typed(
            &BOOLS,
            &[
                "$a and $b",
                "$a or $b",
                "not ($a and ($b or $c))",
                "$a = $b",
                "$a in ($b, null)",
                "$a is null"
            ]
        ),
        typed(
            &INTS,
            &["$a + $b", "$a * $b - $a", "$a / $b", "$a % $b", "$a < $b", "case when $c then $a else $b end"]
        ),
        typed(
            &FLOATS,
            &["$a + $b", "$a / $b", "$a >= $b", "coalesce($a, $b)", "cast($a as int)", "$a in (1, $b)"]
        ),
        typed(
            &TEXTS,
            &["$a = $b", "lower($a) < $b", "$a like '%a_%'", "coalesce($a, $b)", "case when $c then $a end"]
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn evaluators_agree(rows in rows()) {
        let tables = [&BOOLS[..], &INTS, &FLOATS, &TEXTS].concat();
        check(&stream(), &tables.iter().map(|sql| (*sql).to_owned()).collect::<Vec<_>>(), &rows);
    }

    #[test]
    fn evaluators_agree_on_nested_expressions(rows in rows(), sqls in prop::collection::vec(nested(), 20)) {
        check(&stream(), &sqls, &rows);
    }
}

/// What several metrics take is one column.
#[test]
fn the_text_of_a_plan_is_pinned() {
    let text = OUTBRAIN
        .replace("[metrics.user_view_cnt]", "[metrics.user_view_cnt]\nfilter = \"platform in (1, 2)\"");
    let catalog = Catalog::from_toml(&text).unwrap_or_else(|faults| panic!("{faults}"));
    let shown = |stream: &str| {
        let stream = catalog.stream(stream).expect("shipped");
        let mut columns: Vec<Column> =
            stream.fields.iter().map(|field| column(field.name.as_str().into(), field.ty, &[])).collect();
        columns.push(column(EVENT_TIME.into(), FieldType::Int, &[]));
        let rows = DataFrame::new(0, columns).expect("empty columns").lazy();
        let fed = catalog.metrics.iter().filter_map(|metric| {
            let binding = metric.bindings.iter().find(|binding| binding.stream == stream.name)?;
            Some((&**metric, binding))
        });
        let needs = Needs::of(fed);
        let plan = needs.select(stream, rows).describe_plan().expect("a plan");
        let metrics = needs.metrics.iter().map(|need| format!("{need:?}\n"));
        format!("{}{plan}", metrics.collect::<String>())
    };
    insta::assert_snapshot!(shown("page_views"), @r#"
    Need { filter: None, key: [], value: Some(0), width: 300000 }
    Need { filter: None, key: [1], value: None, width: 300000 }
    Need { filter: Some(2), key: [0], value: None, width: 1200000 }
    SELECT [col("uuid").alias("c0"), col("geo_location").alias("c1"), ((col("platform") == 1) | (col("platform") == 2)).alias("c2"), col("_event_time")]
      DF ["uuid", "document_id", "timestamp", "platform", ...]; PROJECT */7 COLUMNS
    "#);
    insta::assert_snapshot!(shown("events"), @r#"
    Need { filter: None, key: [], value: Some(0), width: 300000 }
    Need { filter: None, key: [1], value: None, width: 300000 }
    Need { filter: None, key: [2], value: None, width: 300000 }
    Need { filter: None, key: [3], value: None, width: 300000 }
    Need { filter: None, key: [3, 1], value: None, width: 3600000 }
    Need { filter: None, key: [3, 2], value: None, width: 3600000 }
    Need { filter: None, key: [0], value: None, width: 1200000 }
    SELECT [col("uuid").alias("c0"), col("display_id").alias("c1"), col("document_id").alias("c2"), col("geo_location").alias("c3"), col("_event_time")]
      DF ["display_id", "uuid", "document_id", "timestamp", ...]; PROJECT */7 COLUMNS
    "#);
}
