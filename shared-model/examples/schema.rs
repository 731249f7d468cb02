//! Prints the catalog's JSON Schema, which is committed as `infra/catalog/catalog.schema.json`.

fn main() {
    print!("{}", shared_model::catalog::json_schema());
}
