//! Values as clients of other programs write them: 20.0 for 20, and a lone text for a list of one.

use serde_json::{Number, Value};
use turnmill_client::schema::turn::MAX_LOGPROBS;

const U32: u64 = u32::MAX as u64;
/// OpenAI's newer name for `max_tokens`.
pub const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";
/// Whole numbers of sampling, and what they may be.
const WHOLE: [(&str, u64, u64); 6] = [
    ("top_k", 0, U32),
    ("seed", 0, u64::MAX),
    ("max_tokens", 0, U32),
    ("min_tokens", 0, U32),
    ("stop_token_ids", 0, U32),
    ("logprobs", 0, MAX_LOGPROBS as u64),
];
/// Lists that may be given as their only element.
const LISTS: [&str; 2] = ["stop", "stop_token_ids"];
/// Up to here every whole number has a floating-point form of its own.
const EXACT: f64 = (1_u64 << 53) as f64;

/// A value of sampling in the form that it is read in; an error if it is no number where one is due.
pub fn sampling(key: &str, value: Value) -> Result<Value, String> {
    let value = match whole(value) {
        lone @ (Value::String(_) | Value::Number(_)) if LISTS.contains(&key) => Value::Array(vec![lone]),
        value => value,
    };
    let plain = if key == MAX_COMPLETION_TOKENS { "max_tokens" } else { key };
    let Some((_, least, most)) = WHOLE.into_iter().find(|(name, ..)| *name == plain) else {
        return Ok(value);
    };
    let fits = |value: &Value| value.as_u64().is_some_and(|number| (least..=most).contains(&number));
    let wrong = match &value {
        Value::Null => None,
        Value::Array(values) if LISTS.contains(&key) => values.iter().find(|value| !fits(value)),
        lone => Some(lone).filter(|value| !fits(value)),
    };
    match wrong {
        Some(wrong) => {
            Err(format!("{key} is {wrong}; give a whole number from {least} to {most}, or leave it out"))
        }
        None => Ok(value),
    }
}

/// Floating-point numbers that are whole, as whole numbers, however deep they stand.
pub fn whole(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::Number(whole_number(number)),
        Value::Array(values) => values.into_iter().map(whole).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, whole(value))).collect(),
        other => other,
    }
}

fn whole_number(number: Number) -> Number {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT => {
            (float as i64).into()
        }
        _ => number,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use turnmill_client::NewTurn;
    use turnmill_client::schema::Sampling;

    use super::super::Defaults;
    use super::*;

    /// Fractions of sampling.
    const FLOATS: [&str; 6] =
        ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];

    fn read(key: &str, value: &Value) -> Result<NewTurn, String> {
        let mut line = json!({ "message": "hi" });
        line[key] = value.clone();
        Defaults::default().read(&line.to_string())
    }

    #[test]
    fn clients_spellings_are_taken() {
        for (key, given, plain) in [
            ("max_tokens", json!(20.0), json!(20)),
            ("logprobs", json!(2.0), json!(2)),
            ("stop", json!("END"), json!(["END"])),
            ("stop_token_ids", json!(5.0), json!([5])),
            ("logit_bias", json!({"5": -100.0}), json!({"5": -100})),
        ] {
            assert_eq!(read(key, &given), read(key, &plain), "{key}");
            assert!(read(key, &given).is_ok(), "{key}");
        }
    }

    /// A number as somebody may write it.
    fn numbers() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-5_i32..40).prop_map(|number| Value::from(f64::from(number))),
            (-5_i32..40).prop_map(Value::from),
            (-3.0..3.0).prop_map(Value::from),
            Just(Value::Null),
        ]
    }

    proptest! {
        /// Every numeric field: what is taken is what was written, and anything else is refused by its name.
        #[test]
        fn numbers_are_kept_or_refused_by_name(number in numbers()) {
            for (key, least, most) in WHOLE {
                let whole = number.as_f64().filter(|float| float.fract() == 0.0 && *float >= 0.0);
                let within = whole.is_some_and(|float| float >= least as f64 && float <= most as f64);
                match read(key, &number) {
                    Ok(turn) => {
                        prop_assert!(number.is_null() || within, "{key} {number}");
                        let kept = serde_json::to_value(&turn.sampling).expect("it is written")[key].clone();
                        let kept = kept.as_array().map_or(kept.clone(), |kept| kept.first().cloned().unwrap_or_default());
                        // Null is the same as leaving it out.
                        if !number.is_null() {
                            prop_assert_eq!(kept.as_f64(), number.as_f64(), "{}", key);
                        }
                    }
                    Err(error) => {
                        prop_assert!(!number.is_null(), "{error}");
                        prop_assert!(error.starts_with(&format!("{key} is ")), "{error}");
                    }
                }
            }
            for key in FLOATS {
                match read(key, &number) {
                    Ok(turn) => {
                        let kept = serde_json::to_value(&turn.sampling).expect("it is written")[key].as_f64();
                        let given = number.as_f64().map(|float| f64::from(float as f32));
                        let unset = serde_json::to_value(Sampling::default()).expect("it is written")[key].as_f64();
                        prop_assert_eq!(kept, given.or(unset), "{} {}", key, number);
                    }
                    Err(error) => {
                        prop_assert!(!number.is_null(), "{error}");
                        prop_assert!(error.starts_with(&format!("{key} is ")), "{error}");
                    }
                }
            }
            for key in ["deadline", "delay", "at"] {
                match read(key, &number) {
                    Ok(turn) => {
                        let times = [turn.deadline_ms, turn.not_before_ms];
                        prop_assert!(times.into_iter().flatten().all(|ms| ms < turnmill_client::schema::END_OF_TIME_MS));
                        prop_assert_eq!(times.into_iter().flatten().count(), usize::from(!number.is_null()), "{} {}", key, number);
                        if key == "at" {
                            let given = number.as_f64().map(|seconds| seconds * 1000.0);
                            prop_assert_eq!(turn.not_before_ms.map(|ms| ms as f64), given);
                        }
                    }
                    Err(error) => prop_assert!(error.starts_with(key), "{key}: {error}"),
                }
            }
        }
    }
}
