//! The shapes of a JSON parser's torture set, each as a page view: named as such sets name their files.

use local::oracle::OUTBRAIN_ZERO;

/// A page view as JSON, with what is inserted before its end. `user` is written as JSON.
pub fn view(user: &str, time: i64, more: &str) -> Vec<u8> {
    let timestamp = time - OUTBRAIN_ZERO;
    let text = format!(
        "{{\"uuid\":{user},\"document_id\":7,\"timestamp\":{timestamp},\"platform\":1,\"geo_location\":\"XX>YY\",\
         \"traffic_source\":1{more}}}"
    );
    text.into_bytes()
}

/// What becomes of a record of the torture set.
pub enum Fate {
    /// Refused, for this reason.
    Refused(&'static str),
    /// Counted as this plain record is.
    CountedAs(Vec<u8>),
}

const TIME: i64 = 1_465_877_000_000;

/// All shapes: name, bytes, and what becomes of them.
pub fn torture() -> Vec<(String, Vec<u8>, Fate)> {
    let mut shapes: Vec<(String, Vec<u8>, Fate)> = Vec::new();
    let base = String::from_utf8(view("\"tortured\"", TIME, "")).expect("ascii");
    let refused =
        structures(&base).into_iter().chain(strings(&base)).chain(numbers(&base)).chain(fields(&base));
    for (name, bytes, reason) in refused {
        assert_ne!(bytes, base.as_bytes(), "{name} spoils nothing");
        shapes.push((name, bytes, Fate::Refused(reason)));
    }
    shapes.extend(accepted());
    shapes
}

type Refused = (String, Vec<u8>, &'static str);

fn nested(open: &str, close: &str, depth: usize) -> String {
    open.repeat(depth) + &close.repeat(depth)
}

fn structures(base: &str) -> Vec<Refused> {
    let cut = |at: usize| base[..at].to_owned();
    let texts = [
        ("no_data", String::new()),
        ("single_space", " ".to_owned()),
        ("lone_null", "null".to_owned()),
        ("lone_true", "true".to_owned()),
        ("capitalised_true", "True".to_owned()),
        ("incomplete_nul", "nul".to_owned()),
        ("lone_number", "7".to_owned()),
        ("lone_string", "\"text\"".to_owned()),
        ("lone_quote", "\"".to_owned()),
        ("lone_minus", "-".to_owned()),
        ("lone_backslash", "\\".to_owned()),
        ("single_star", "*".to_owned()),
        ("angle_brackets", "<.>".to_owned()),
        ("unicode_identifier", "a\u{e5}".to_owned()),
        ("byte_order_mark_alone", "\u{feff}".to_owned()),
        ("empty_array", "[]".to_owned()),
        ("array_of_an_object", "[{}]".to_owned()),
        ("array_around", format!("[{base}]")),
        ("open_object", "{".to_owned()),
        ("lone_close", "}".to_owned()),
        ("open_object_close_array", "{]".to_owned()),
        ("open_object_comma", "{,".to_owned()),
        ("open_object_open_string", "{\"a".to_owned()),
        ("object_with_a_name_alone", "{\"uuid\"}".to_owned()),
        ("object_missing_value", "{\"uuid\":}".to_owned()),
        ("object_number_as_name", "{1:1}".to_owned()),
        ("object_null_as_name", "{null:null}".to_owned()),
        ("object_repeated_nulls", "{null:null,null:null}".to_owned()),
        ("object_bracket_as_name", "{[:\"x\"}".to_owned()),
        ("cut_after_a_byte", cut(1)),
        ("cut_in_a_name", cut(10)),
        ("cut_in_the_middle", cut(base.len() / 2)),
        ("cut_before_the_end", cut(base.len() - 1)),
        ("byte_order_mark", format!("\u{feff}{base}")),
        ("twice", format!("{base}{base}")),
        ("trailing_nul", format!("{base}\0")),
        ("trailing_hash", format!("{base}#")),
        ("trailing_brace", format!("{base}}}")),
        ("trailing_comma", format!("{base},")),
        ("trailing_text", format!("{base} x")),
        ("trailing_comment", format!("{base}/**/")),
        ("leading_comment", format!("/* */{base}")),
        ("leading_form_feed", format!("\u{c}{base}")),
        ("leading_word_joiner", format!("\u{2060}{base}")),
        ("leading_no_break_space", format!("\u{a0}{base}")),
        ("escaped_line_feed_before", format!("\\u000A{base}")),
        ("two_commas", base.replace(",\"platform\"", ",,\"platform\"")),
        ("first_comma", base.replace("{\"uuid\"", "{,\"uuid\"")),
        ("last_comma", base.replace('}', ",}")),
        ("no_comma", base.replace(",\"platform\"", "\"platform\"")),
        ("semicolon", base.replace(",\"platform\"", ";\"platform\"")),
        ("no_colon", base.replace("\"uuid\":", "\"uuid\"")),
        ("two_colons", base.replace("\"uuid\":", "\"uuid\"::")),
        ("comma_for_colon", base.replace("\"uuid\":", "\"uuid\",")),
        ("equals_for_colon", base.replace("\"uuid\":", "\"uuid\"=")),
        ("single_quotes", base.replace('"', "'")),
        ("unquoted_name", base.replace("\"uuid\"", "uuid")),
        ("90000_opening_arrays", "[".repeat(90_000)),
        ("20000_opening_objects", "{\"\":".repeat(20_000)),
        ("20000_arrays", nested("[", "]", 20_000)),
        ("10000_objects", nested("{\"uuid\":", "}", 10_000)),
    ];
    let mut shapes: Vec<Refused> = texts
        .into_iter()
        .map(|(name, text)| (format!("structure_{name}"), text.into_bytes(), "not_json"))
        .collect();
    let wide = |mark: bool, bytes: fn(u16) -> [u8; 2]| {
        let mark = mark.then_some(0xfeff_u16);
        mark.into_iter().chain(base.encode_utf16()).flat_map(bytes).collect::<Vec<u8>>()
    };
    for (name, bytes) in [
        ("utf16_little_endian", wide(false, u16::to_le_bytes)),
        ("utf16_little_endian_with_mark", wide(true, u16::to_le_bytes)),
        ("utf16_big_endian", wide(false, u16::to_be_bytes)),
        ("utf16_big_endian_with_mark", wide(true, u16::to_be_bytes)),
        ("a_lone_invalid_byte", vec![0xff]),
        ("every_byte", (0..=255).collect()),
    ] {
        shapes.push((format!("structure_{name}"), bytes, "not_json"));
    }
    shapes.push(("structure_too_long_of_brackets".into(), "[".repeat(999_000).into_bytes(), "too_large"));
    shapes
}

fn strings(base: &str) -> Vec<Refused> {
    let texts = [
        ("line_feed", "a\nb"),
        ("tab", "a\tb"),
        ("nul", "a\0b"),
        ("control_characters", "\u{1}\u{2}\u{1f}"),
        ("escape_x", "\\x41"),
        ("escape_a", "\\a"),
        ("escape_zero", "\\0"),
        ("escape_quote", "\\'"),
        ("escape_space", "\\ "),
        ("escape_capital_u", "\\U0041"),
        ("escaped_emoji", "\\\u{1f300}"),
        ("escape_u_of_nothing", "\\u"),
        ("escape_u_of_two", "\\u12"),
        ("escape_u_of_three", "\\u00A"),
        ("escape_u_of_no_hex", "\\uqqqq"),
        ("lone_high_surrogate", "\\ud800"),
        ("lone_low_surrogate", "\\udc00"),
        ("surrogates_reversed", "\\udc00\\ud800"),
        ("high_surrogate_twice", "\\ud800\\ud800"),
        ("high_surrogate_and_text", "\\ud800abc"),
        ("high_surrogate_and_line_feed", "\\ud800\\n"),
        ("high_surrogate_and_no_low", "\\ud800\\u0041"),
        ("surrogate_half_escaped", "\\ud83d\\ude0"),
        ("unclosed_by_a_backslash", "tortured\\"),
        ("ended_early", "tor\"tured"),
    ];
    let mut shapes: Vec<Refused> = texts
        .into_iter()
        .map(|(name, text)| {
            (format!("string_{name}"), base.replace("tortured", text).into_bytes(), "not_json")
        })
        .collect();
    let invalid: [(&str, &[u8]); 9] = [
        ("latin1", b"\xe9"),
        ("lone_continuation", b"\x80"),
        ("overlong_of_two", b"\xc0\xaf"),
        ("overlong_of_six", b"\xfc\x83\xbf\xbf\xbf\xbf"),
        ("truncated_utf8", b"\xe2\x82"),
        ("surrogate_in_utf8", b"\xed\xa0\x80"),
        ("beyond_unicode", b"\xf4\xbf\xbf\xbf"),
        ("byte_that_never_stands", b"\xff"),
        ("invalid_after_an_escape", b"\\u\xe5"),
    ];
    let at = base.find("tortured").expect("the user");
    let spoilt = |bytes: &[u8]| [&base.as_bytes()[..at], bytes, &base.as_bytes()[at + 8..]].concat();
    shapes.extend(invalid.map(|(name, bytes)| (format!("string_{name}"), spoilt(bytes), "not_json")));
    let mut name = base.as_bytes().to_vec();
    name[4] = 0xb9;
    shapes.push(("object_lone_continuation_in_a_name".into(), name, "not_json"));
    // Postgres can't store it.
    let nul = base.replace("tortured", "\\u0000").into_bytes();
    shapes.push(("string_escaped_nul".into(), nul, "bad_field"));
    shapes
}

fn numbers(base: &str) -> Vec<Refused> {
    let none = [
        "-",
        "--7",
        "+7",
        "++7",
        "-01",
        "07",
        "-7x",
        "7_000",
        "7 000",
        "7,",
        "7.",
        "-7.",
        ".7",
        "-.7",
        "7.e1",
        "0.e1",
        "7e",
        "7e+",
        "7E-",
        "0e",
        "7eE2",
        "7.0e",
        "0x7",
        "7a",
        "7#",
        "1/2",
        "NaN",
        "-NaN",
        "nan",
        "Infinity",
        "-Infinity",
        "inf",
        "\u{ff17}",
        "\u{667}",
        "\u{221e}",
        "-foo",
        "undefined",
        "nul",
        "TRUE",
        "1e999",
        "-1e400",
        "'7'",
        "(7)",
    ];
    let huge = ["9".repeat(400), format!("-{}", "9".repeat(400))];
    let others = [
        "-0",
        "-0.0",
        "7.0",
        "7e0",
        "7E0",
        "0e1",
        "0.1e1",
        "1e-400",
        "1e5",
        "123.456e78",
        "9223372036854775808",
        "-9223372036854775809",
        "18446744073709551616",
        // A float by the time that its end is wrong.
        "7.7.7",
        "\"7\"",
        "true",
        "false",
        "[]",
        "[7]",
        "{}",
        "{\"a\":7}",
    ];
    let long = ["9".repeat(200), format!("0.{}1", "0".repeat(300))];
    let none = none.iter().map(|text| (*text).to_owned()).chain(huge).map(|text| (text, "not_json"));
    let others = others.iter().map(|text| (*text).to_owned()).chain(long).map(|text| (text, "bad_field"));
    let shape = |(text, reason): (String, &'static str)| {
        let name = format!("number_{}", text.chars().take(20).collect::<String>());
        (name, base.replace(":7,", &format!(":{text},")).into_bytes(), reason)
    };
    none.chain(others).map(shape).collect()
}

/// JSON, but no page view.
fn fields(base: &str) -> Vec<Refused> {
    let texts = [
        ("name_twice", base.replace("\"uuid\"", "\"uuid\":\"a\",\"uuid\""), "bad_field"),
        ("name_twice_once_escaped", base.replace("\"uuid\"", "\"uuid\":null,\"\\u0075uid\""), "bad_field"),
        ("20000_arrays", base.replace("\"tortured\"", &nested("[", "]", 20_000)), "bad_field"),
        (
            "10000_objects",
            base.replace("\"tortured\"", &nested("{\"a\":", "}", 10_000).replacen(":}", ":1}", 1)),
            "bad_field",
        ),
        ("20000_open_arrays", base.replace("\"tortured\"", &"[".repeat(20_000)), "not_json"),
        ("empty_object", "{}".to_owned(), "no_event_time"),
        ("no_event_time", base.replace("timestamp", "time_stamp"), "no_event_time"),
        ("null_event_time", base.replace("200002", "null"), "no_event_time"),
        ("event_time_overflows", base.replace("200002", "9223372036854775807"), "bad_field"),
        ("event_time_of_1970", base.replace("200002", "-1465876799998"), "event_time_out_of_bounds"),
        ("event_time_of_2100", base.replace("200002", "2636813520000"), "event_time_out_of_bounds"),
        ("too_long", base.replace("tortured", &"x".repeat(999_000)).replace("200002", "null"), "too_large"),
    ];
    texts
        .into_iter()
        .map(|(name, text, reason)| (format!("field_{name}"), text.into_bytes(), reason))
        .collect()
}

/// Shapes that are a page view all the same. What stands in fields that no stream declares is passed over.
fn accepted() -> Vec<(String, Vec<u8>, Fate)> {
    let plain = |user: &str| view(&format!("\"{user}\""), TIME, "");
    let mut shapes = Vec::new();
    let passed = [
        ("deep_field", format!(",\"deep\":{}", nested("[", "]", 20_000))),
        ("name_twice", ",\"twice\":1,\"twice\":2".to_owned()),
        ("huge_number", ",\"huge\":1e999".to_owned()),
        ("minus_zero", ",\"zero\":-0".to_owned()),
        ("lone_surrogate", ",\"half\":\"\\ud800\"".to_owned()),
        ("empty_name", ",\"\":0".to_owned()),
        ("escaped_nul_in_a_name", ",\"a\\u0000b\":0".to_owned()),
        ("2000_fields", (0..2_000).map(|n| format!(",\"field{n}\":{n}")).collect()),
    ];
    for (name, more) in passed {
        let fate = Fate::CountedAs(plain(name));
        shapes.push((format!("passed_{name}"), view(&format!("\"{name}\""), TIME, &more), fate));
    }
    let spelt = [
        ("accepted surrogate pair \\ud83d\\ude00", "accepted surrogate pair \u{1f600}"),
        ("escaped noncharacter \\uffff", "escaped noncharacter \u{ffff}"),
        ("all escapes \\b\\f\\n\\r\\t\\/\\u0041", "all escapes \\b\\f\\n\\r\\t/A"),
        ("mixed case \\u00E9\\u00e9", "mixed case \u{e9}\u{e9}"),
    ];
    for (written, meant) in spelt {
        shapes.push((format!("string_{meant}"), plain(written), Fate::CountedAs(plain(meant))));
    }
    let around = |name: &str, before: &str, after: &str| {
        let text = String::from_utf8(plain(name)).expect("ascii");
        (name.to_owned(), format!("{before}{text}{after}").into_bytes(), Fate::CountedAs(plain(name)))
    };
    shapes.push(around("whitespace_before", " \t\r\n", ""));
    shapes.push(around("whitespace_after", "", "\n\n \t\r"));
    let escaped =
        String::from_utf8(plain("name_escaped")).expect("ascii").replace("\"uuid\"", "\"\\u0075uid\"");
    shapes.push(("name_escaped".into(), escaped.into_bytes(), Fate::CountedAs(plain("name_escaped"))));
    shapes
}
