//! A judge of JSON by the schemas that cpw prints: it knows the words of JSON Schema that they use, and no other.

use regex::Regex;
use serde_json::Value;

/// Whether a value fits a schema, by the words of JSON Schema that ours use; another word fails.
pub(crate) fn fits(whole: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{at}: {what}"));
    for (word, rule) in schema.as_object().unwrap() {
        let fit = match word.as_str() {
            "$schema" | "$defs" | "title" | "description" | "examples" | "format" | "default" => true,
            "$ref" => {
                let meant = whole.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap();
                fits(whole, meant, value, at)?;
                true
            }
            "type" => match rule {
                Value::Array(names) => names.iter().any(|name| is_of(name, value)),
                name => is_of(name, value),
            },
            "const" => rule == value,
            "enum" => rule.as_array().unwrap().contains(value),
            "pattern" => value.as_str().is_none_or(|s| Regex::new(rule.as_str().unwrap()).unwrap().is_match(s)),
            "minimum" => value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|n| n > rule.as_f64().unwrap()),
            "minItems" => value.as_array().is_none_or(|a| a.len() as u64 >= rule.as_u64().unwrap()),
            "required" => {
                let has = |key: &Value| value.get(key.as_str().unwrap()).is_some();
                !value.is_object() || rule.as_array().unwrap().iter().all(has)
            }
            "not" => fits(whole, rule, value, at).is_err(),
            "anyOf" => rule.as_array().unwrap().iter().any(|one| fits(whole, one, value, at).is_ok()),
            "oneOf" => rule.as_array().unwrap().iter().filter(|one| fits(whole, one, value, at).is_ok()).count() == 1,
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    fits(whole, rule, item, &format!("{at}[{i}]"))?;
                }
                true
            }
            "properties" => {
                for (key, rule) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        fits(whole, rule, value, &format!("{at}.{key}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = |key: &str| schema.pointer(&format!("/properties/{key}")).is_some();
                for (key, value) in value.as_object().into_iter().flatten().filter(|(key, _)| !known(key)) {
                    match rule {
                        Value::Bool(false) => return wrong(&format!("{key} is not a key")),
                        Value::Object(_) => fits(whole, rule, value, &format!("{at}.{key}"))?,
                        _ => {}
                    }
                }
                true
            }
            other => panic!("{at}: this test does not know {other}"),
        };
        if !fit {
            return wrong(&format!("{value} does not fit {word} {rule}"));
        }
    }
    Ok(())
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("type {other}"),
    }
}
