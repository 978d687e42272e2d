//! Walks through grammars: every allowed choice must lead to text that fits, and to the same masks again.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::*;
use crate::model::Tokenizer;

/// Longer tokens of the vocabulary, as byte-level text. Each is merged from the left.
const WORDS: [&str; 23] = [
    "\":",
    "\",",
    "{\"",
    "}}",
    "[]",
    "\u{120}\"",
    "\u{120}{",
    "\u{120}[",
    "true",
    "null",
    "name",
    "city",
    "12",
    "10",
    "ab",
    "abc",
    "\u{120}the",
    "\u{c3}\u{a9}",
    "\u{f0}\u{141}",
    "get",
    "_w",
    "xx",
    "sting",
];

/// Tokens that are added: control tokens but one, which is text that users defined.
const ADDED: [(&str, bool); 5] =
    [("<|end|>", true), ("<|eot_id|>", true), ("<|call|>", true), ("<tool_call>", false), ("[7]", true)];

/// A byte-level vocabulary of all bytes, a few words and control tokens; the first two end replies.
pub(super) fn tokenizer() -> Arc<Tokenizer> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocabulary: serde_json::Map<String, Value> =
        alphabet.into_iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id))).collect();
    let mut merges = Vec::new();
    for word in WORDS {
        let mut ends = word.char_indices().map(|(at, c)| at + c.len_utf8());
        let mut left = &word[..ends.next().expect("words are not empty")];
        for end in ends {
            let merge = json!([left, &word[left.len()..end]]);
            left = &word[..end];
            if !vocabulary.contains_key(left) {
                vocabulary.insert(left.to_owned(), json!(vocabulary.len()));
                merges.push(merge);
            }
        }
    }
    let first = vocabulary.len();
    let added = ADDED.iter().enumerate().map(|(index, (content, special))| {
        json!({"id": first + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special})
    });
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "pre_tokenizer": byte_level, "decoder": byte_level, "added_tokens": added.collect::<Vec<_>>(),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    });
    let text = |name: &str| {
        Ok(match name {
            "tokenizer.json" => Some(file.to_string()),
            "generation_config.json" => Some(json!({"eos_token_id": [first, first + 1]}).to_string()),
            _ => None,
        })
    };
    // Models have rows for tokens that no vocabulary has.
    Arc::new(Tokenizer::from_folder(text, first + ADDED.len() + 3).expect("a tokenizer"))
}

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(tokenizer);
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
    let vocabulary = Vocabulary::new(TOKENIZER.clone()).expect("a vocabulary");
    Grammars::new(vocabulary).expect("a thread")
});

fn id(name: &str) -> u32 {
    let ids = 0..TOKENIZER.vocabulary() as u32;
    ids.into_iter().find(|id| TOKENIZER.token(*id).as_deref() == Some(name)).expect("a token")
}

fn compile(constraint: &Constraint) -> Matcher {
    GRAMMARS.compile(constraint).unwrap_or_else(|e| panic!("{constraint:?}: {e}"))
}

fn text(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|id| TOKENIZER.bytes(*id)).copied().collect();
    String::from_utf8(bytes).expect("constrained text is UTF-8")
}

/// A reply that `choices` lead to, with its end. Once they are used up, the shortest way out of what is open is looked for.
fn walk(matcher: &mut Matcher, choices: &[u16]) -> Vec<u32> {
    let mut reply = Vec::new();
    for step in 0.. {
        assert!(step < 5_000, "the reply ends: {}", text(&reply));
        let mask: Vec<u32> = matcher.mask().expect("a mask").iter().collect();
        let ends = mask.iter().copied().find(|id| TOKENIZER.ends().contains(id));
        let closes = || mask.iter().copied().find(|id| matches!(TOKENIZER.bytes(*id), b"\"" | b"}" | b"]"));
        let token = match choices.get(step) {
            Some(choice) => mask[usize::from(*choice) % mask.len()],
            None => ends.or_else(closes).unwrap_or(mask[step * 7 % mask.len()]),
        };
        matcher.consume(token).expect("allowed");
        if TOKENIZER.ends().contains(&token) {
            assert!(matcher.has_ended());
            return reply;
        }
        reply.push(token);
    }
    unreachable!("the loop returns or panics")
}

/// Schemas that a small validator knows.
fn schemas() -> impl Strategy<Value = Value> {
    let leaves = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        (-50i64..50, 0i64..200)
            .prop_map(|(min, more)| json!({"type": "integer", "minimum": min, "maximum": min + more})),
        (0u64..3, 0u64..4)
            .prop_map(|(min, more)| json!({"type": "string", "minLength": min, "maxLength": min + more})),
        Just(json!({"type": "string", "pattern": "^[a-c]+-[0-9]{2}$", "maxLength": 6})),
        Just(json!({"enum": ["name", 12, null, ["x"], {"k": true}]})),
        Just(json!({"const": "the city, a \"name\"\n"})),
    ];
    leaves.prop_recursive(3, 12, 4, |inner| {
        let property =
            (prop::sample::select(vec!["name", "city", "a b", "é\""]), inner.clone(), any::<bool>());
        let object = prop::collection::vec(property, 0..4).prop_map(|properties| {
            let required: BTreeMap<&str, ()> =
                properties.iter().filter(|(.., required)| *required).map(|(name, ..)| (*name, ())).collect();
            let schemas: serde_json::Map<String, Value> =
                properties.iter().map(|(name, schema, _)| ((*name).to_owned(), schema.clone())).collect();
            json!({"type": "object", "properties": schemas, "required": required.keys().collect::<Vec<_>>(),
                "additionalProperties": false})
        });
        let array = (inner.clone(), 0u64..2, 0u64..3).prop_map(|(items, min, more)| {
            json!({"type": "array", "items": items, "minItems": min, "maxItems": min + more})
        });
        let either = (inner.clone(), inner).prop_map(|(one, other)| json!({"anyOf": [one, other]}));
        prop_oneof![object, array, either]
    })
}

fn fits(schema: &Value, value: &Value) -> bool {
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|schema| fits(schema, value));
    }
    if let Some(options) = schema["enum"].as_array() {
        return options.contains(value);
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return false;
    }
    let at_most = |key: &str, number: usize| schema[key].as_u64().is_none_or(|most| number as u64 <= most);
    let at_least = |key: &str, number: usize| schema[key].as_u64().is_none_or(|least| number as u64 >= least);
    match schema["type"].as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.as_i64().is_some_and(|value| {
            schema["minimum"].as_i64().is_some_and(|min| value >= min)
                && schema["maximum"].as_i64().is_some_and(|max| value <= max)
        }),
        Some("string") => value.as_str().is_some_and(|value| {
            let length = value.chars().count();
            let letters = value.trim_start_matches(['a', 'b', 'c']);
            let matches = letters.len() < value.len()
                && letters.strip_prefix('-').is_some_and(|digits| {
                    digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit())
                });
            at_least("minLength", length)
                && at_most("maxLength", length)
                && (schema["pattern"].is_null() || matches)
        }),
        Some("array") => value.as_array().is_some_and(|values| {
            at_least("minItems", values.len())
                && at_most("maxItems", values.len())
                && values.iter().all(|value| fits(&schema["items"], value))
        }),
        Some("object") => value.as_object().is_some_and(|map| {
            let required = schema["required"].as_array().into_iter().flatten();
            required.filter_map(Value::as_str).all(|name| map.contains_key(name))
                && map.iter().all(|(name, value)| {
                    schema["properties"].get(name).is_some_and(|schema| fits(schema, value))
                })
        }),
        _ => true,
    }
}

/// Whether spaces between JSON's parts are those of `json.dumps`.
fn is_dense(text: &str) -> bool {
    let (mut quoted, mut escaped, mut before) = (false, false, ' ');
    let mut between = String::new();
    for c in text.chars() {
        if !quoted {
            if (before == ',' || before == ':') && c != ' ' {
                return false;
            }
            between.push(c);
        }
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        before = if quoted { ' ' } else { c };
    }
    between.chars().filter(|c| c.is_whitespace()).count() == between.matches([',', ':']).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_walk_ends_in_json_that_fits(schema in schemas(), choices in prop::collection::vec(any::<u16>(), 0..60)) {
        let mut matcher = compile(&Constraint::JsonSchema(schema.clone()));
        let reply = text(&walk(&mut matcher, &choices));
        let value: Value = serde_json::from_str(&reply).map_err(|e| TestCaseError::fail(format!("{reply}: {e}")))?;
        prop_assert!(fits(&schema, &value), "{schema} does not allow {reply}");
        prop_assert!(is_dense(&reply), "{reply}");
    }

    #[test]
    fn tokens_consumed_again_lead_to_the_same_masks(
        schema in schemas(),
        choices in prop::collection::vec(any::<u16>(), 0..40),
        at in any::<prop::sample::Index>(),
    ) {
        let constraint = Constraint::JsonSchema(schema);
        let mut matcher = compile(&constraint);
        let reply = walk(&mut matcher, &choices);
        let at = at.index(reply.len() + 1);
        let mut first = compile(&constraint);
        for token in &reply[..at] {
            // Asked at each place, as an undisturbed reply asks; the other is not.
            prop_assert!(first.mask().expect("a mask").allows(*token));
            first.forced().expect("no error");
            first.valid_prefix(&reply).expect("no error");
            first.consume(*token).expect("allowed");
        }
        let mut again = compile(&constraint);
        reply[..at].iter().try_for_each(|token| again.consume(*token)).expect("allowed");
        prop_assert_eq!(again.forced(), first.forced());
        prop_assert_eq!(again.mask().expect("a mask"), first.mask().expect("a mask"));
        prop_assert_eq!(again.valid_prefix(&reply[at..]).expect("no error"), reply.len() - at);
    }

    #[test]
    fn masks_allow_what_is_forced_and_nothing_else(
        schema in schemas(),
        choices in prop::collection::vec(any::<u16>(), 0..30),
    ) {
        let mut matcher = compile(&Constraint::JsonSchema(schema));
        for choice in choices {
            let forced = matcher.forced().expect("no error");
            prop_assert_eq!(matcher.valid_prefix(&forced).expect("no error"), forced.len());
            for token in forced {
                prop_assert!(matcher.mask().expect("a mask").iter().eq([token]));
                matcher.consume(token).expect("allowed");
            }
            if matcher.has_ended() {
                break;
            }
            let mask = matcher.mask().expect("a mask").clone();
            let token = mask.iter().nth(usize::from(choice) % mask.count()).expect("counted");
            matcher.consume(token).expect("allowed");
        }
    }
}

#[test]
fn a_forced_text_keeps_its_tokens_when_it_is_consumed_again() {
    // Split by words this is ` '` and `sting`, but what begins at its `'` is `'s` and `ting`.
    let constraint = Constraint::Regex("[ab]x 'sting".to_owned());
    let chosen = || {
        let mut matcher = compile(&constraint);
        matcher.consume(id("a")).expect("allowed");
        matcher
    };
    let forced = chosen().forced().expect("no error");
    assert_eq!(forced[forced.len() - 2..], [id("'"), id("sting")]);
    for at in 0..=forced.len() {
        let mut again = chosen();
        forced[..at].iter().try_for_each(|token| again.consume(*token)).expect("allowed");
        assert_eq!(again.forced(), Ok(forced[at..].to_vec()));
    }
}

#[test]
fn a_pattern_and_a_length_hold_together() {
    let mut matcher =
        compile(&Constraint::JsonSchema(json!({"type": "string", "pattern": "^a+$", "maxLength": 3})));
    matcher.consume_bytes(b"\"aaa").expect("three fit");
    assert_eq!(matcher.valid_prefix(&[id("a")]), Ok(0));
    assert!(matcher.mask().expect("a mask").iter().eq([id("\"")]));
    let mut matcher = compile(&Constraint::JsonSchema(
        json!({"type": "string", "pattern": "b", "minLength": 3, "maxLength": 3}),
    ));
    matcher.consume_bytes(b"\"aa").expect("two fit");
    assert!(matcher.mask().expect("a mask").iter().eq([id("b")]));
}

#[test]
fn text_makes_no_control_token_and_all_ends_are_alike() {
    let mut matcher = compile(&Constraint::Regex(r"(?s:.)*".to_owned()));
    let mask = matcher.mask().expect("a mask");
    assert!(TOKENIZER.ends().iter().all(|end| mask.allows(*end)));
    assert!(mask.allows(id("<tool_call>")) && mask.allows(id("abc")));
    assert!(!mask.allows(id("<|call|>")) && !mask.allows(id("[7]")));
    assert!((0..3).all(|beyond| !mask.allows(TOKENIZER.vocabulary() as u32 - 1 - beyond)));
    for end in TOKENIZER.ends() {
        let mut matcher = compile(&Constraint::Regex("a?".to_owned()));
        matcher.consume(*end).expect("it can end");
        assert!(matcher.has_ended());
        assert!(matches!(matcher.consume(*end), Err(GrammarError::Rejected(_))));
    }
    // A literal of a control token's name is text.
    let mut matcher = compile(&Constraint::JsonSchema(json!({"const": "<|end|>"})));
    assert_eq!(text(&walk(&mut matcher, &[])), "\"<|end|>\"");
}

#[test]
fn a_grammar_names_tokens_and_holds_schemas() {
    let lark = format!(
        "start: \"<tool_call>\" call+ <[{}]>\ncall: %json {{\"type\": \"object\", \"properties\": {{\"name\": {{\"const\": \"get\"}}}}, \
         \"required\": [\"name\"], \"additionalProperties\": false, \"x-guidance\": {{\"whitespace_flexible\": true}}}}\n",
        id("<|call|>")
    );
    let mut matcher =
        compile(&Constraint::Lark(lark.replace(&format!("<[{}]>", id("<|call|>")), "<|call|>")));
    let mut by_id = compile(&Constraint::Lark(lark));
    let forced = matcher.forced().expect("no error");
    assert_eq!((forced[0], text(&forced)), (id("<tool_call>"), "<tool_call>{\"name\": \"get\"}".to_owned()));
    for matcher in [&mut matcher, &mut by_id] {
        matcher.consume_bytes(b"<tool_call>{\"name\": \"get\"}").expect("it fits");
        let mask = matcher.mask().expect("a mask");
        assert!(mask.allows(id("<|call|>")) && mask.allows(id("{")) && !mask.allows(id("\u{120}{")));
        assert!(TOKENIZER.ends().iter().all(|end| !mask.allows(*end)));
        matcher.consume(id("<|call|>")).expect("it is named");
        assert_eq!(matcher.mask().expect("a mask").iter().collect::<Vec<_>>(), TOKENIZER.ends());
        assert_eq!(matcher.valid_prefix(&[TOKENIZER.ends()[1], 3]), Ok(1));
    }
    // The end may be named too, and then ends the reply.
    let mut matcher = compile(&Constraint::Lark("start: \"a\" <|end|>".to_owned()));
    matcher.consume(id("a")).expect("it fits");
    assert!(matcher.mask().expect("a mask").allows(id("<|end|>")));
    matcher.consume(id("<|end|>")).expect("it is named");
    assert!(matcher.has_ended());
}

#[test]
fn what_does_not_fit_is_refused_and_quotes_nothing() {
    let mut matcher = compile(&Constraint::JsonObject);
    matcher.consume_bytes(b"{\"secret").expect("it fits");
    for token in [id("<|call|>"), TOKENIZER.ends()[0], u32::MAX, TOKENIZER.vocabulary() as u32 - 1] {
        assert_eq!(matcher.valid_prefix(&[token]), Ok(0));
        let error = matcher.consume(token).expect_err("it does not fit");
        assert!(
            matches!(error, GrammarError::Rejected(_)) && !error.to_string().contains("secret"),
            "{error}"
        );
    }
    assert!(matcher.consume_bytes(b"\": 1}").is_ok(), "what was refused changed nothing");
}

#[test]
fn sentences_name_the_place() {
    let schema = |schema: Value| Constraint::JsonSchema(schema);
    let lark = |text: &str| Constraint::Lark(text.to_owned());
    let deep = (0..40).fold(json!({"type": "null"}), |inner, _| json!({"items": inner}));
    let needs_itself = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]});
    let cases = [
        (
            schema(json!({"properties": {"a/b": {"items": {"uniqueItems": true}}}})),
            "at /properties/a~1b/items: the keyword \"uniqueItems\"",
        ),
        (schema(json!({"propertes": {}})), "\"propertes\""),
        (
            schema(json!({"$defs": {"a": {"not": {}}}, "anyOf": [{"$ref": "#/$defs/a"}]})),
            "at /$defs/a: the keyword \"not\"",
        ),
        (schema(json!({"type": "string", "format": "color"})), "\"color\""),
        (schema(json!({"pattern": "^(?=a)"})), "lookaround"),
        (schema(json!({"$ref": "https://example.com/schema.json"})), "outside the schema"),
        (schema(json!({"$ref": "#/$defs/none"})), "leads nowhere"),
        (schema(json!({"type": "text"})), "text"),
        (schema(json!(false)), "allows nothing"),
        (schema(json!({"enum": []})), "cannot be used"),
        (schema(json!({"exclusiveMinimum": 0, "maximum": 0.5})), "exclusiveMinimum"),
        (schema(json!({"minimum": -0.5, "exclusiveMaximum": 0})), "exclusiveMaximum"),
        (schema(json!({"allOf": [{"exclusiveMinimum": 1}, {"exclusiveMaximum": 1.25}]})), "less than 1"),
        (schema(json!({"minProperties": 2})), "minProperties"),
        (
            schema(
                json!({"minProperties": 2, "additionalProperties": false, "patternProperties": {"a": {}}}),
            ),
            "minProperties",
        ),
        (schema(json!({"oneOf": [{"type": "integer"}, {"minimum": 2}]})), "use anyOf"),
        (schema(json!({"type": "string", "pattern": "^a$", "minLength": 2})), "cannot be used"),
        (schema(json!([1])), "must be an object"),
        (schema(deep), "deeper than 32"),
        (schema(json!({"const": "x".repeat(70_000)})), "at most 65536"),
        (schema(json!({"multipleOf": 999_983})), "multipleOf"),
        (schema(json!({"$ref": "#"})), "never end"),
        (schema(needs_itself), "never end"),
        (Constraint::Regex("(?=a)".to_owned()), "cannot be used"),
        (Constraint::Regex("a{".to_owned() + &"x".repeat(70_000)), "regular expression has 70002 bytes"),
        (lark("start: \"a\" start"), "never end"),
        (lark("start: \"a\" | B\nB: /a/ & /b/"), "never end"),
        (lark("start: b"), "unknown name"),
        (lark("start: <|nobody|>"), "nobody"),
        (lark("begin: \"b\""), "no start rule"),
    ];
    for (constraint, part) in cases {
        match GRAMMARS.compile(&constraint) {
            Err(GrammarError::Rejected(sentence)) => {
                assert!(sentence.contains(part) && !sentence.contains('\n'), "{part:?} is in {sentence:?}");
            }
            Err(other) => panic!("{part}: {other:?}"),
            Ok(_) => panic!("{part}: {constraint:?} compiled"),
        }
    }
}

#[test]
fn schemas_as_frameworks_write_them_compile() {
    let accepted = [
        json!(true),
        json!({}),
        json!({"type": "integer", "format": "int64", "nullable": true, "x-order": 1, "deprecated": true, "example": 3}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.com/a", "title": "A", "type": "object",
            "properties": {"child": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}], "default": null}},
            "$defs": {"A": {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/A"}}}}}}),
        json!({"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"]}], "discriminator": {"propertyName": "kind"}}),
        json!({"properties": {"id": {"type": "string"}, "not": {"enum": [{"not": 1}]}}, "patternProperties": {"^x-": {"type": "number"}}}),
        json!({"type": "number", "multipleOf": 0.01, "minimum": 0.0, "maximum": 99.99}),
        json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        json!({"type": "object", "required": ["a"], "minProperties": 2}),
    ];
    for schema in accepted {
        compile(&Constraint::JsonSchema(schema));
    }
}

#[test]
fn matchers_of_one_grammar_are_independent_and_cross_threads() {
    let constraint =
        Constraint::JsonSchema(json!({"type": "object", "properties": {"name": {"type": "string"}}}));
    let alone = walk(&mut compile(&constraint), &[3, 1, 4, 1, 5, 9, 2, 6]);
    std::thread::scope(|scope| {
        let walks: Vec<_> = (0..4)
            .map(|n| {
                let mut matcher = compile(&constraint);
                scope.spawn(move || {
                    let other: Vec<u16> = (0..20).map(|i| i * n).collect();
                    walk(&mut compile(&Constraint::JsonObject), &other);
                    walk(&mut matcher, &[3, 1, 4, 1, 5, 9, 2, 6])
                })
            })
            .collect();
        for walk in walks {
            assert_eq!(walk.join().expect("no panic"), alone);
        }
    });
}

#[test]
fn a_vocabulary_without_an_end_is_refused() {
    let tokenizer = Tokenizer::of_bytes((0..=255).map(|byte| vec![byte]).collect(), Vec::new());
    let error = Vocabulary::new(Arc::new(tokenizer)).err().expect("nothing ends").to_string();
    assert!(error.contains("no token that ends"), "{error}");
}

#[test]
fn a_vocabulary_that_lacks_bytes_forces_nothing() {
    let words = ["{", "}", "\"", "a", ": ", "true"].map(|word| word.as_bytes().to_vec());
    let tokenizer = Tokenizer::of_bytes(words.into_iter().chain([Vec::new()]).collect(), vec![6]);
    let vocabulary = Vocabulary::new(Arc::new(tokenizer)).expect("a vocabulary");
    let grammars = Grammars::new(vocabulary).expect("a thread");
    let schema = json!({"properties": {"a": {"const": true}}, "required": ["a"], "type": "object", "additionalProperties": false});
    let mut matcher = grammars.compile(&Constraint::JsonSchema(schema)).expect("a grammar");
    assert_eq!(matcher.forced(), Ok(Vec::new()));
    for token in [0, 2, 3, 2, 4, 5, 1, 6] {
        assert!(matcher.mask().expect("a mask").iter().eq([token]));
        matcher.consume(token).expect("allowed");
    }
}

#[test]
fn bytes_without_a_token_are_named_as_the_reason() {
    let bytes = (0..=255u8).map(|byte| if byte == 0xf1 { Vec::new() } else { vec![byte] });
    let tokenizer = Tokenizer::of_bytes(bytes.chain([Vec::new()]).collect(), vec![256]);
    let grammars =
        Grammars::new(Vocabulary::new(Arc::new(tokenizer)).expect("a vocabulary")).expect("a thread");
    let mut matcher = grammars.compile(&Constraint::Regex("a\u{50000}b".to_owned())).expect("a grammar");
    let error = loop {
        let next = matcher.mask().map(|mask| mask.iter().next().expect("a token"));
        if let Err(error) = next.and_then(|token| matcher.consume(token)) {
            break error.to_string();
        }
    };
    assert!(error.contains("no token for"), "{error}");
}

#[test]
fn forced_text_has_no_space_that_it_lacks() {
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["\u{2581}", "h", "e", "he", "\u{2581}he", "</s>"].map(str::to_owned);
    let vocabulary: serde_json::Map<String, Value> =
        bytes.chain(pieces).enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    let end = vocabulary.len() - 1;
    let (he, space_he) = (vocabulary["he"].clone(), vocabulary["\u{2581}he"].clone());
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "pre_tokenizer": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "added_tokens": [{"id": end, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["h", "e"], ["\u{2581}", "he"]], "byte_fallback": true},
    });
    let text = |name: &str| {
        Ok(match name {
            "tokenizer.json" => Some(file.to_string()),
            "generation_config.json" => Some(json!({"eos_token_id": end}).to_string()),
            _ => None,
        })
    };
    let tokenizer = Tokenizer::from_folder(text, end + 1).expect("a tokenizer");
    let vocabulary = Vocabulary::new(Arc::new(tokenizer)).expect("a vocabulary");
    let grammars = Grammars::new(vocabulary).expect("a thread");
    let mut matcher = grammars.compile(&Constraint::Regex("he he!".to_owned())).expect("a grammar");
    let exclamation = json!(u32::from(b'!'));
    assert_eq!(json!(matcher.forced().expect("no error")), json!([he, space_he, exclamation]));
}
