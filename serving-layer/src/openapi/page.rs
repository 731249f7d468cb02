//! The document as a page: plain HTML, made on the server, without a script, a font or anything else from elsewhere.
//!
//! Whatever comes from the document is escaped.

use serde_json::Value as Json;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// The page of a document.
pub fn page(document: &Json) -> String {
    let info = &document["info"];
    let (title, about) = (escaped(text(&info["title"])), prose(text(&info["description"])));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title} API</title><style>{STYLE}</style></head><body>\n\
         <a class=\"skip\" href=\"#content\">Skip to the content</a>\n"
    );
    contents(document, &mut page);
    let _ = writeln!(
        page,
        "<main id=\"content\"><h1>{title} API</h1>{about}<p>For programs: \
         <a href=\"/api/v1/openapi.json\">/api/v1/openapi.json</a> (OpenAPI {}).</p>",
        escaped(text(&document["openapi"]))
    );
    for tag in list(&document["tags"]) {
        let name = text(&tag["name"]);
        let _ = write!(
            page,
            "<section><h2 id=\"{0}\">{0}</h2>{1}",
            escaped(name),
            prose(text(&tag["description"]))
        );
        of_tag(document, name).for_each(|(path, method, operation)| {
            self::operation(document, path, method, operation, &mut page);
        });
        page.push_str("</section>\n");
    }
    page.push_str("<section><h2 id=\"schemas\">Schemas</h2>");
    for (name, schema) in fields(&document["components"]["schemas"]) {
        let name = escaped(name);
        let _ = write!(
            page,
            "<article id=\"schema-{name}\"><h3>{name}</h3>{}",
            prose(text(&schema["description"]))
        );
        self::schema(schema, &mut page);
        page.push_str("</article>\n");
    }
    page.push_str("</section></main></body></html>\n");
    page
}

/// Links to all operations and schemas.
fn contents(document: &Json, page: &mut String) {
    page.push_str("<nav aria-label=\"Contents\"><ul>");
    for tag in list(&document["tags"]) {
        let name = text(&tag["name"]);
        let _ = write!(page, "<li><a href=\"#{0}\">{0}</a><ul>", escaped(name));
        for (path, method, operation) in of_tag(document, name) {
            let id = escaped(text(&operation["operationId"]));
            let _ =
                write!(page, "<li><a href=\"#{id}\">{} {}</a></li>", method.to_uppercase(), escaped(path));
        }
        page.push_str("</ul></li>");
    }
    page.push_str("<li><a href=\"#schemas\">schemas</a></li></ul></nav>\n");
}

fn of_tag<'a>(document: &'a Json, tag: &'a str) -> impl Iterator<Item = (&'a str, &'a str, &'a Json)> {
    let operations = fields(&document["paths"]).flat_map(|(path, item)| {
        fields(item).map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    });
    operations.filter(move |(_, _, operation)| operation["tags"][0] == tag)
}

fn operation(document: &Json, path: &str, method: &str, operation: &Json, page: &mut String) {
    let id = escaped(text(&operation["operationId"]));
    let _ = write!(
        page,
        "<article id=\"{id}\"><h3><a href=\"#{id}\"><span class=\"method\">{}</span> <code>{}</code></a></h3><p><strong>{}</strong></p>{}",
        method.to_uppercase(),
        escaped(path),
        escaped(text(&operation["summary"])),
        prose(text(&operation["description"]))
    );
    let parameters = list(&operation["parameters"]).map(|parameter| resolved(document, parameter));
    page.push_str("<h4>Parameters</h4><table><thead><tr><th>name<th>in<th>type<th>meaning</thead><tbody>");
    for parameter in parameters {
        let needed = if parameter["required"] == true { " (required)" } else { "" };
        let _ = write!(
            page,
            "<tr><td><code>{}</code>{needed}<td>{}<td>{}<td>{}",
            escaped(text(&parameter["name"])),
            escaped(text(&parameter["in"])),
            kind(&parameter["schema"]),
            prose(text(&parameter["description"]))
        );
    }
    page.push_str("</tbody></table>");
    if let Some(body) = operation.get("requestBody") {
        let _ = write!(page, "<h4>Body</h4>{}", content(body));
    }
    page.push_str("<h4>Answers</h4><dl>");
    for (status, answer) in fields(&operation["responses"]) {
        let names: Vec<String> =
            fields(&answer["headers"]).map(|(name, _)| format!("<code>{}</code>", escaped(name))).collect();
        let _ = write!(
            page,
            "<dt>{}<dd>{}{}<p class=\"headers\">Headers: {}</p>",
            escaped(status),
            prose(text(&answer["description"])),
            content(answer),
            names.join(", ")
        );
    }
    page.push_str("</dl></article>\n");
}

/// The media types of a body or an answer, each with its type.
fn content(of: &Json) -> String {
    let each = fields(&of["content"]).map(|(media, content)| {
        let schema = &content["schema"];
        format!(
            "<li><code>{}</code>: {}{}",
            escaped(media),
            kind(schema),
            prose(text(&schema["description"]))
        )
    });
    let each: String = each.collect();
    if each.is_empty() { each } else { format!("<ul>{each}</ul>") }
}

/// The properties of an object, or what else a schema is.
fn schema(schema: &Json, page: &mut String) {
    let Some(properties) = schema["properties"].as_object() else {
        let _ = write!(page, "<p>{}</p>", kind(schema));
        return;
    };
    page.push_str("<table><thead><tr><th>field<th>type<th>meaning</thead><tbody>");
    for (name, property) in properties {
        let needed = list(&schema["required"]).any(|required| required == name.as_str());
        let _ = write!(
            page,
            "<tr><td><code>{}</code>{}<td>{}<td>{}",
            escaped(name),
            if needed { " (always)" } else { "" },
            kind(property),
            prose(text(&property["description"]))
        );
    }
    page.push_str("</tbody></table>");
    let examples: String = list(&schema["examples"])
        .map(|example| format!("<pre>{}</pre>", escaped(&format!("{example:#}"))))
        .collect();
    page.push_str(&examples);
}

/// A schema in a few words, with links to those that it names.
fn kind(schema: &Json) -> String {
    if let Some(to) = schema["$ref"].as_str() {
        let name = escaped(to.rsplit('/').next().unwrap_or(to));
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[choice].as_array() {
            let each: Vec<String> = choices.iter().map(kind).collect();
            return each.join(" or ");
        }
    }
    let words = |list: &Json| {
        self::list(list)
            .map(|word| format!("<code>{}</code>", escaped(&word.to_string())))
            .collect::<Vec<_>>()
    };
    if let Some(only) = schema.get("const") {
        return format!(
            "<code>{}</code>: {}",
            escaped(&only.to_string()),
            escaped(text(&schema["description"]))
        );
    }
    let mut said = match &schema["type"] {
        _ if schema["enum"].is_array() => words(&schema["enum"]).join(", "),
        Json::Array(types) => types.iter().map(|ty| escaped(text(ty))).collect::<Vec<_>>().join(" or "),
        ty if ty == "array" => format!("list of {}", kind(&schema["items"])),
        ty if ty == "object" && schema["additionalProperties"].is_object() => {
            format!("object, each {}", kind(&schema["additionalProperties"]))
        }
        ty if ty == "object" && schema["properties"].is_object() => {
            let names = fields(&schema["properties"])
                .map(|(name, of)| format!("<code>{}</code>: {}", escaped(name), kind(of)));
            format!("{{ {} }}", names.collect::<Vec<_>>().join(", "))
        }
        ty => escaped(ty.as_str().unwrap_or("any")),
    };
    for (name, word) in [
        ("minimum", "from"),
        ("maximum", "up to"),
        ("maxItems", "at most"),
        ("maxLength", "up to"),
        ("default", "unless given"),
    ] {
        if let Some(value) = schema.get(name).filter(|value| value.as_u64() != Some(u64::MAX)) {
            let _ = write!(said, ", {word} {}", escaped(&value.to_string()));
        }
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        let _ = write!(said, ", as <code>{}</code>", escaped(pattern));
    }
    let examples = words(&schema["examples"]);
    if !examples.is_empty() {
        let _ = write!(said, ", such as {}", examples.join(", "));
    }
    said
}

fn resolved<'a>(document: &'a Json, value: &'a Json) -> &'a Json {
    let there = value["$ref"].as_str().and_then(|to| document.pointer(to.strip_prefix('#')?));
    there.unwrap_or(value)
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Json) -> impl Iterator<Item = &Json> {
    value.as_array().into_iter().flatten()
}

fn fields(value: &Json) -> impl Iterator<Item = (&String, &Json)> {
    value.as_object().into_iter().flatten()
}

/// Paragraphs and lists, with what stands between backticks as code.
fn prose(text: &str) -> String {
    let marked = |text: &str| -> String {
        let parts = text.split('`').enumerate();
        let part = |(i, part): (usize, &str)| match i % 2 {
            0 => escaped(part),
            _ => format!("<code>{}</code>", escaped(part)),
        };
        parts.map(part).collect()
    };
    let paragraph = |text: &str| match text.strip_prefix("- ") {
        Some(list) => {
            let items: String = list.split("\n- ").map(|item| format!("<li>{}", marked(item))).collect();
            format!("<ul>{items}</ul>")
        }
        None => format!("<p>{}</p>", marked(text)),
    };
    text.split("\n\n").filter(|text| !text.is_empty()).map(paragraph).collect()
}

/// A text as HTML, in elements and in attributes with double quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_of_the_document_is_markup() {
        let evil = "<script>alert('x')</script>\"`<b>`&";
        let document = json!({
            "openapi": evil, "info": { "title": evil, "description": evil },
            "tags": [{ "name": evil, "description": evil }],
            "paths": { evil: { "get": { "operationId": evil, "tags": [evil], "summary": evil, "description": evil,
                "parameters": [{ "name": evil, "in": evil, "description": evil, "schema": { "pattern": evil, "examples": [evil] } }],
                "requestBody": { "content": { evil: { "schema": { "$ref": evil } } } },
                "responses": { evil: { "description": evil, "headers": { evil: {} }, "content": { evil: { "schema": { "const": evil } } } } },
            } } },
            "components": { "schemas": { evil: { "description": evil, "properties": { evil: { "enum": [evil], "default": evil } },
                                                 "examples": [{ evil: evil }] } } },
        });
        let page = page(&document);
        assert!(
            page.contains("&lt;script&gt;") && !page.contains("<script") && !page.contains("<b>"),
            "{page}"
        );
        // No attribute is left by a quote.
        assert!(!page.contains("script&gt;\""));
        assert!(
            page.split("=\"").skip(1).all(|rest| !rest.split('"').next().unwrap_or_default().contains('<'))
        );
    }
}
