//! The shape of a JSON document: keys and types, without values.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

/// One line per leaf: `hosts[].smoke[].id: string`. Elements of an array are
/// merged; a key that some elements lack, or that is null in some, shows all its
/// types: `cause: null|string`. Keys of an object at a path in `maps` are names
/// that the user chose, shown as `*`.
#[must_use]
pub fn shape(value: &Value, maps: &[&str]) -> String {
    let mut leaves = BTreeSet::new();
    walk("", value, maps, &mut leaves);
    let mut text = String::new();
    let mut last: Option<String> = None;
    for (path, kind) in leaves {
        if last.as_ref() == Some(&path) {
            let _ = write!(text, "|{kind}");
        } else {
            let _ = write!(text, "{}{path}: {kind}", if last.is_some() { "\n" } else { "" });
        }
        last = Some(path);
    }
    text.push('\n');
    text
}

fn walk(path: &str, value: &Value, maps: &[&str], leaves: &mut BTreeSet<(String, &'static str)>) {
    let mut leaf = |kind| {
        leaves.insert((path.to_owned(), kind));
    };
    match value {
        Value::Null => leaf("null"),
        Value::Bool(_) => leaf("boolean"),
        Value::Number(_) => leaf("number"),
        Value::String(_) => leaf("string"),
        Value::Array(items) if items.is_empty() => leaf("array"),
        Value::Object(keys) if keys.is_empty() => leaf("object"),
        Value::Array(items) => {
            for item in items {
                walk(&format!("{path}[]"), item, maps, leaves);
            }
        }
        Value::Object(keys) => {
            for (key, item) in keys {
                let key = if maps.contains(&path) { "*" } else { key };
                let below = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                walk(&below, item, maps, leaves);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_and_types_without_values() {
        let value = json!({"a": [{"b": 1, "m": {"x": true}}, {"b": null, "m": {}}], "c": "s"});
        assert_eq!(shape(&value, &["a[].m"]), "a[].b: null|number\na[].m: object\na[].m.*: boolean\nc: string\n");
    }
}
