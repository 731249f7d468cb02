//! What tools ask before anyone asks anything, beside the system catalog that the library makes of the tables: versions,
//! settings, and `information_schema` in Postgres' own words.
//!
//! What is listed are the tables of one session, which are those that its key may read, and nothing else.

use super::session::{DATABASE, SCHEMA};
use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::{MemTable, MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use std::sync::Arc;

/// The Postgres whose ways are followed, as tools read it.
pub(super) const SERVER: &str = "16.6";

/// What `current_setting` and `pg_settings` say.
const SETTINGS: [(&str, &str); 14] = [
    ("server_version", SERVER),
    ("server_version_num", "160006"),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("search_path", SCHEMA),
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("standard_conforming_strings", "on"),
    ("transaction_isolation", "repeatable read"),
    ("default_transaction_read_only", "on"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
];

/// The functions of these.
pub(super) fn functions() -> [ScalarUDF; 2] {
    let text = || TypeSignature::Exact(vec![DataType::Utf8]);
    let or_none = TypeSignature::Exact(vec![DataType::Utf8, DataType::Boolean]);
    [
        Told { name: "version", signature: Signature::exact(Vec::new(), Volatility::Stable) }.into(),
        Told {
            name: "current_setting",
            signature: Signature::one_of(vec![text(), or_none], Volatility::Stable),
        }
        .into(),
    ]
}

/// `version()`, or `current_setting(name [, missing_ok])`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Told {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Told {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let told = match &arguments.args[..] {
            [] => Some(format!("PostgreSQL {SERVER} (Tidemark {})", env!("CARGO_PKG_VERSION"))),
            [ColumnarValue::Scalar(ScalarValue::Utf8(Some(asked))), others @ ..] => {
                let known = SETTINGS.iter().find(|(name, _)| name.eq_ignore_ascii_case(asked));
                let may_be_missing =
                    matches!(others, [ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)))]);
                match known {
                    Some((_, value)) => Some((*value).to_owned()),
                    None if may_be_missing => None,
                    None => return exec_err!("unrecognized configuration parameter \"{asked}\""),
                }
            }
            _ => return exec_err!("{} takes the name of a setting, as a literal", self.name),
        };
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(told)))
    }
}

/// The library's system catalog with our settings.
#[derive(Debug)]
pub(super) struct System<P> {
    library: P,
    settings: Arc<MemTable>,
}

impl<P: SchemaProvider> System<P> {
    /// # Errors
    /// Where the library refuses the table.
    pub(super) fn new(library: P) -> Result<System<P>> {
        let values = |at: fn(&(&'static str, &'static str)) -> &'static str| texts(SETTINGS.iter().map(at));
        let none = || nulls(SETTINGS.len());
        let settings = table([
            ("name", values(|(name, _)| name)),
            ("setting", values(|(_, value)| value)),
            ("unit", none()),
            ("category", none()),
            ("short_desc", none()),
            ("extra_desc", none()),
            ("context", values(|_| "internal")),
            ("vartype", values(|_| "string")),
            ("source", values(|_| "default")),
            ("min_val", none()),
            ("max_val", none()),
            ("enumvals", none()),
            ("boot_val", values(|(_, value)| value)),
            ("reset_val", values(|(_, value)| value)),
            ("sourcefile", none()),
            ("pending_restart", values(|_| "f")),
        ])?;
        Ok(System { library, settings })
    }
}

#[async_trait]
impl<P: SchemaProvider> SchemaProvider for System<P> {
    fn table_names(&self) -> Vec<String> {
        self.library.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match name {
            "pg_settings" => Ok(Some(self.settings.clone())),
            _ => self.library.table(name).await,
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.library.table_exist(name)
    }
}

/// Makes `information_schema` of the tables that there are: their names and columns.
///
/// # Errors
/// Where the library refuses a table.
pub(super) fn information_schema(to: &MemorySchemaProvider, tables: &[(String, SchemaRef)]) -> Result<()> {
    let of_tables = || tables.iter().map(|(name, _)| name.as_str());
    let here = |of: &'static str, count: usize| texts(std::iter::repeat_n(of, count));
    let count = tables.len();
    let listed = table([
        ("table_catalog", here(DATABASE, count)),
        ("table_schema", here(SCHEMA, count)),
        ("table_name", texts(of_tables())),
        ("table_type", here("VIEW", count)),
        ("is_insertable_into", here("NO", count)),
        ("is_typed", here("NO", count)),
    ])?;
    let views = table([
        ("table_catalog", here(DATABASE, count)),
        ("table_schema", here(SCHEMA, count)),
        ("table_name", texts(of_tables())),
        ("view_definition", nulls(count)),
        ("check_option", here("NONE", count)),
        ("is_updatable", here("NO", count)),
        ("is_insertable_into", here("NO", count)),
    ])?;
    let schemata = table([
        ("catalog_name", here(DATABASE, 2)),
        ("schema_name", texts([SCHEMA, "information_schema"].into_iter())),
        ("schema_owner", here("tidemark", 2)),
    ])?;
    let all: Vec<(&str, usize, &str, &DataType, bool)> = tables
        .iter()
        .flat_map(|(name, schema)| {
            schema.fields().iter().enumerate().map(move |(at, field)| {
                (name.as_str(), at + 1, field.name().as_str(), field.data_type(), field.is_nullable())
            })
        })
        .collect();
    let count = all.len();
    let names = all.iter().map(|(_, _, _, ty, _)| type_names(ty));
    let (types, short): (Vec<&str>, Vec<&str>) = names.unzip();
    let columns = table([
        ("table_catalog", here(DATABASE, count)),
        ("table_schema", here(SCHEMA, count)),
        ("table_name", texts(all.iter().map(|(table, ..)| *table))),
        ("column_name", texts(all.iter().map(|(_, _, column, ..)| *column))),
        ("ordinal_position", numbers(all.iter().map(|(_, at, ..)| i32::try_from(*at).ok()))),
        ("column_default", nulls(count)),
        ("is_nullable", texts(all.iter().map(|(.., nullable)| if *nullable { "YES" } else { "NO" }))),
        ("data_type", texts(types.into_iter())),
        ("character_maximum_length", numbers(std::iter::repeat_n(None, count))),
        ("character_octet_length", numbers(std::iter::repeat_n(None, count))),
        ("numeric_precision", numbers(std::iter::repeat_n(None, count))),
        ("numeric_precision_radix", numbers(std::iter::repeat_n(None, count))),
        ("numeric_scale", numbers(std::iter::repeat_n(None, count))),
        ("datetime_precision", numbers(std::iter::repeat_n(None, count))),
        ("udt_catalog", here(DATABASE, count)),
        ("udt_schema", here("pg_catalog", count)),
        ("udt_name", texts(short.into_iter())),
        ("is_identity", here("NO", count)),
        ("is_generated", here("NEVER", count)),
        ("is_updatable", here("NO", count)),
    ])?;
    let made = [("tables", listed), ("views", views), ("schemata", schemata), ("columns", columns)];
    for (name, table) in made {
        to.register_table(name.to_owned(), table)?;
    }
    // Of these there are none.
    let constraint = ["constraint_catalog", "constraint_schema", "constraint_name"];
    let constrained = ["table_catalog", "table_schema", "table_name"];
    for (name, further) in [
        ("table_constraints", &["constraint_type", "is_deferrable", "initially_deferred", "enforced"][..]),
        ("key_column_usage", &["column_name", "ordinal_position", "position_in_unique_constraint"]),
        ("constraint_column_usage", &["column_name"]),
        ("referential_constraints", &["unique_constraint_schema", "unique_constraint_name"]),
    ] {
        let columns = constraint.iter().chain(&constrained).chain(further);
        let none = columns.map(|column| (*column, nulls(0)));
        to.register_table(name.to_owned(), table(none)?)?;
    }
    Ok(())
}

/// A column's type as Postgres spells it out, and as it is called for short.
fn type_names(ty: &DataType) -> (&'static str, &'static str) {
    match ty {
        DataType::Boolean => ("boolean", "bool"),
        DataType::Int16 => ("smallint", "int2"),
        DataType::Int32 => ("integer", "int4"),
        DataType::Int64 => ("bigint", "int8"),
        DataType::Float32 => ("real", "float4"),
        DataType::Float64 => ("double precision", "float8"),
        DataType::Decimal128(..) | DataType::Decimal256(..) => ("numeric", "numeric"),
        DataType::Date32 => ("date", "date"),
        DataType::Timestamp(_, Some(_)) => ("timestamp with time zone", "timestamptz"),
        DataType::Timestamp(_, None) => ("timestamp without time zone", "timestamp"),
        _ => ("text", "text"),
    }
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn nulls(count: usize) -> ArrayRef {
    Arc::new(StringArray::new_null(count))
}

fn numbers(values: impl Iterator<Item = Option<i32>>) -> ArrayRef {
    Arc::new(values.collect::<Int32Array>())
}

fn table<'a>(columns: impl IntoIterator<Item = (&'a str, ArrayRef)>) -> Result<Arc<MemTable>> {
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, of)| (name, of, true)))?;
    let schema: Arc<Schema> = batch.schema();
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}
