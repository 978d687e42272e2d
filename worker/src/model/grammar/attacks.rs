//! Grammars made to exhaust a worker. Each is refused, or followed within the limits.
//!
//! Measured in a release build with vocabularies of 49k and 262k tokens and 400 tokens each: none took more than 1.5 s of computing in all
//! (the ambiguous one, a complement, until they were refused as too slow) or 95 MB (a million forced bytes); none took more than 0.6 s to
//! compile, and no step more than 0.2 s but the one that is cancelled.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::*;

/// What becomes of an attack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// Refused before a token, by a sentence with these words.
    Refused(&'static str),
    /// The reply ends, or goes on as long as anyone likes.
    Followed,
    /// Followed, or refused when a limit is hit: of time, which depends on the machine, or of states, which depends on the vocabulary.
    Bounded,
}

/// Those that TOOLS.md lists, and others.
pub fn attacks() -> Vec<(&'static str, Constraint, Outcome)> {
    use Outcome::{Bounded, Followed, Refused};
    let schema = Constraint::JsonSchema;
    let regex = |text: &str| Constraint::Regex(text.to_owned());
    let lark = |text: String| Constraint::Lark(text);
    let map = |count: usize, key: fn(usize) -> String, value: fn(usize) -> Value| -> Map<String, Value> {
        (0..count).map(|n| (key(n), value(n))).collect()
    };
    let name = |n: usize| format!("d{n}");
    let arrays = |depth: usize| {
        (0..depth).fold(json!({"type": "integer"}), |items, _| json!({"items": items, "type": "array"}))
    };
    // A definition for each of `count`, each of which refers to the next.
    let chain = |count: usize, link: fn(String) -> Value| {
        let mut definitions: Map<String, Value> =
            (0..count).map(|n| (name(n), link(format!("#/$defs/d{}", n + 1)))).collect();
        definitions.insert(name(count), json!({"type": "null"}));
        json!({"$defs": definitions, "$ref": "#/$defs/d0"})
    };
    let twice = |target: String| {
        let child = json!({"$ref": target, "type": ["array", "null"]});
        json!({"type": "array", "prefixItems": [child, child]})
    };
    let all_twice = |target: String| {
        let both = json!({"properties": {"a": {"$ref": target}, "b": {"$ref": target}}});
        json!({"allOf": [both, both]})
    };
    let alternatives: Vec<Value> =
        (0..10).map(|n| json!({"properties": {name(n): {"type": "integer"}}})).collect();
    let any_of = vec![json!({"anyOf": alternatives}); 7];
    vec![
        // TOOLS.md's.
        ("arrays 28 deep", schema(arrays(28)), Followed),
        ("arrays 50 deep", schema(arrays(50)), Refused("deeper than")),
        ("backtracking", regex("(a|b)*a(a|b){18}"), Followed),
        ("repetition", regex("(ab){1,100000}"), Followed),
        ("repetitions of repetitions", regex("((x{1,1000}){1,1000}){1,1000}"), Bounded),
        ("maxLength", schema(json!({"type": "string", "maxLength": 10_000_000})), Followed),
        ("minItems", schema(json!({"type": "array", "minItems": 100_000})), Followed),
        (
            "enum of 100,000",
            schema(json!({"enum": (0..100_000).map(name).collect::<Vec<_>>()})),
            Refused("bytes"),
        ),
        ("enum of 6,000", schema(json!({"enum": (0..6_000).map(name).collect::<Vec<_>>()})), Followed),
        ("allOf of anyOf", schema(json!({"allOf": any_of})), Refused("too large")),
        (
            "5,000 properties",
            schema(json!({"properties": map(5_000, name, |_| json!({}))})),
            Refused("property names"),
        ),
        (
            "1,000 properties",
            schema(json!({"properties": map(1_000, name, |_| json!({})), "type": "object"})),
            Followed,
        ),
        (
            "multipleOf a large prime",
            schema(json!({"type": "integer", "multipleOf": 999_983, "minimum": 0, "maximum": 1e15})),
            Refused("multipleOf"),
        ),
        (
            "parentheses",
            lark(format!("start: {}\"a\"{}", "(".repeat(30_000), ")".repeat(30_000))),
            Refused("nested"),
        ),
        // Recursive references.
        ("itself", schema(json!({"$ref": "#"})), Refused("never end")),
        (
            "each other",
            schema(
                json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
            ),
            Refused("never end"),
        ),
        (
            "requires itself",
            schema(json!({"properties": {"n": {"$ref": "#"}}, "required": ["n"], "type": "object"})),
            Refused("never end"),
        ),
        (
            "a tree",
            schema(
                json!({"properties": {"a": {"$ref": "#"}, "b": {"items": {"$ref": "#"}}}, "type": "object"}),
            ),
            Followed,
        ),
        (
            "intersects itself",
            schema(
                json!({"allOf": [{"properties": {"a": {"$ref": "#"}}}, {"properties": {"a": {"$ref": "#"}}}]}),
            ),
            Refused("circular"),
        ),
        (
            "references one after another",
            schema(chain(1_000, |target| json!({"items": {"$ref": target}}))),
            Refused("levels"),
        ),
        (
            "allOf one after another",
            schema(chain(200, |target| json!({"allOf": [{"$ref": target}]}))),
            Followed,
        ),
        ("doubled 30 times", schema(chain(30, twice)), Refused("parts")),
        ("doubled 30 times in allOf", schema(chain(30, all_twice)), Refused("property names")),
        // Literals.
        ("a literal of 1 MB", schema(json!({"const": "x".repeat(1_000_000)})), Refused("bytes")),
        ("a literal of 64 KB", schema(json!({"const": "xy z".repeat(16_000)})), Bounded),
        ("a million forced bytes", regex("x{1000000}"), Refused("too slow")),
        // Others.
        ("ambiguous", lark("start: start start | \"a\" | start start start\n".to_owned()), Bounded),
        (
            "alternatives that overlap",
            lark("start: (a | b | c)*\na: /[a-z]*/\nb: /[a-z ]*/\nc: \"x\"*\n".to_owned()),
            Followed,
        ),
        (
            "terminals one in another",
            lark(
                (0..1_800).map(|n| format!("A{n}: (A{} \"x\")?\n", n + 1)).collect::<String>()
                    + "A1800: \"y\"\nstart: A0\n",
            ),
            Refused("definitions"),
        ),
        (
            "rules one in another",
            lark(
                (0..900).map(|n| format!("a{n}: (a{} \"x\")?\n", n + 1)).collect::<String>()
                    + "a900: \"y\"\nstart: a0\n",
            ),
            Bounded,
        ),
        ("repeated rules", lark("start: ((a{1,1000}){1,1000}){1,1000}\na: \"x\"\n".to_owned()), Bounded),
        (
            "a complement",
            lark(
                "start: A\nA: /(.|\\n)*/ & ~/(.|\\n)*(ab|cd|ef){5,200}(.|\\n)*/ & /(.|\\n){1,10000}/\n"
                    .to_owned(),
            ),
            Bounded,
        ),
        ("letters of Unicode", regex(r"(\p{L}{1,500}\p{N}{1,500}){1,50}"), Bounded),
        (
            "a substring of 50,000",
            lark(format!("start: A\nA: %regex {{\"substring_chars\": \"{}\"}}\n", "abcdefgh ".repeat(5_500))),
            Followed,
        ),
        (
            "patternProperties",
            schema(
                json!({"patternProperties": map(600, |n| format!("^k{n}_[a-z]+$"), |_| json!({"type": "null"}))}),
            ),
            Refused("patternProperties"),
        ),
        (
            "patternProperties combined",
            schema(json!({"allOf": (0..900).map(|_| json!({"$ref": "#/$defs/p"})).collect::<Vec<_>>(),
                "$defs": {"p": {"patternProperties": map(20, |n| format!("^k{n}_[a-z]+$"), |_| json!({"type": "null"}))}}})),
            Refused("patternProperties"),
        ),
        (
            "lengths",
            schema(json!({"anyOf": (0..1_500).map(|n| json!({"minLength": n})).collect::<Vec<_>>()})),
            Bounded,
        ),
        (
            "divisors",
            schema(json!({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]})),
            Refused("multipleOf"),
        ),
    ]
}

#[test]
fn each_attack_is_refused_or_followed_within_the_limits() {
    // Less time than llguidance's own limits take, so that a test waits for nobody.
    let times = limits::Times {
        step: Duration::from_secs(1),
        free: Duration::from_millis(100),
        patience: Duration::from_secs(1),
    };
    let vocabulary = Vocabulary::new(tests::tokenizer()).expect("a vocabulary");
    let grammars = Grammars::with_times(vocabulary, times).expect("a thread");
    let mut others = Vec::new();
    for (name, constraint, expected) in attacks() {
        let became = match grammars.compile(&constraint) {
            Ok(mut matcher) => follow(&mut matcher, tests::tokenizer().ends(), 150),
            Err(error) => Err(error),
        };
        let is_expected = match (expected, &became) {
            (Outcome::Refused(part), Err(GrammarError::Rejected(sentence))) => sentence.contains(part),
            (Outcome::Followed, Ok(())) => true,
            (Outcome::Bounded, Ok(()) | Err(GrammarError::Rejected(_))) => true,
            _ => false,
        };
        if !is_expected {
            others.push(format!("{name}: {became:?} is not {expected:?}"));
        }
    }
    assert!(others.is_empty(), "{}", others.join("\n"));
}

/// Goes on for `tokens`, by any choice but the end if there is another.
fn follow(matcher: &mut Matcher, ends: &[u32], tokens: usize) -> Result<(), GrammarError> {
    let mut chance = 0x2545_f491u32;
    for _ in 0..tokens {
        let mask: Vec<u32> = matcher.mask()?.iter().collect();
        let others: Vec<u32> = mask.iter().copied().filter(|token| !ends.contains(token)).collect();
        if others.is_empty() {
            break;
        }
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        matcher.consume(others[(chance >> 8) as usize % others.len()])?;
    }
    Ok(())
}
