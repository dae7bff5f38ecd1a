//! A document as JSON: `schema`, what it is about, its data, and the model that
//! the other formats show. Additive: fields are added, never changed.

use alloc::format;
use alloc::string::String;

use serde_json::Value;

use crate::DocsError;
use crate::model::Document;
use crate::story::{Story, Whole};
use crate::text::clean;

/// Longest text of one value, characters.
const TEXT_CHARS_MAX: usize = 64 * 1024;

/// A document.
///
/// # Errors
/// [`DocsError::Json`].
pub(crate) fn render(story: &Story<'_>, document: &Document) -> Result<String, DocsError> {
    let failed = |e: serde_json::Error| DocsError::Json { document: document.slug, why: format!("{e}") };
    let whole = Whole { head: story.head(document), data: &document.data, model: document };
    let mut value = serde_json::to_value(&whole).map_err(failed)?;
    sanitize(&mut value);
    let mut text = serde_json::to_string_pretty(&value).map_err(failed)?;
    text.push('\n');
    Ok(text)
}

/// Terminals and viewers show what stands in JSON too.
fn sanitize(value: &mut Value) {
    match value {
        Value::String(text) => {
            let cleaned = clean(text, TEXT_CHARS_MAX, true);
            if cleaned != *text {
                *text = cleaned;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(sanitize),
        Value::Object(map) => {
            let hostile: alloc::vec::Vec<String> = map.keys().filter(|k| clean(k, TEXT_CHARS_MAX, false) != **k).cloned().collect();
            for key in hostile {
                if let Some(of) = map.remove(&key) {
                    map.insert(clean(&key, TEXT_CHARS_MAX, false), of);
                }
            }
            map.values_mut().for_each(sanitize);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
