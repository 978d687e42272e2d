//! Small vocabularies of each kind, from both formats.

use std::fs::File;

use candle_core::quantized::gguf_file::{self, Value};
use serde_json::json;

use super::*;
use crate::model::ModelError;
use crate::model::checkpoint::gguf::Gguf;

/// Tokens, kinds and scores of a SentencePiece vocabulary.
const PIECES: [(&str, i32, f32); 22] = [
    ("<unk>", 2, 0.0),
    ("<s>", 3, 0.0),
    ("</s>", 3, 0.0),
    ("<0xC3>", 6, 0.0),
    ("<0xA9>", 6, 0.0),
    ("\u{2581}h", 1, -3.0),
    ("hi", 1, -2.0),
    ("\u{2581}hi", 1, -4.0),
    ("ab", 1, -6.0),
    ("bc", 1, -5.0),
    ("abc", 1, -7.0),
    ("\u{2581}", 1, -20.0),
    ("h", 1, -21.0),
    ("i", 1, -22.0),
    ("a", 1, -23.0),
    ("b", 1, -24.0),
    ("c", 1, -25.0),
    ("  ", 4, -1000.0),
    ("<end_of_turn>", 3, -1000.0),
    ("[x]", 1, -30.0),
    ("\u{2581}\u{2581}", 1, -1e9),
    ("\n", 4, -1000.0),
];

fn from_metadata(entries: &[(&str, Value)], vocabulary: usize) -> Result<Tokenizer, ModelError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("vocabulary.gguf");
    let entries: Vec<(&str, &Value)> = entries.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = File::create(&path).expect("it can be written");
    gguf_file::write(&mut file, &entries, &[]).expect("it can be written");
    Tokenizer::from_gguf(&Gguf::open(&path).expect("just written"), vocabulary)
}

fn sentencepiece(space_prefix: bool) -> Tokenizer {
    let list = |value: fn(&(&str, i32, f32)) -> Value| Value::Array(PIECES.iter().map(value).collect());
    let entries = [
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.tokens", list(|piece| Value::String(piece.0.into()))),
        ("tokenizer.ggml.token_type", list(|piece| Value::I32(piece.1))),
        ("tokenizer.ggml.scores", list(|piece| Value::F32(piece.2))),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(space_prefix)),
    ];
    from_metadata(&entries, PIECES.len() + 2).expect("a vocabulary")
}

fn id(piece: &str) -> u32 {
    PIECES.iter().position(|(token, ..)| *token == piece).expect("a piece") as u32
}

#[test]
fn pieces_are_joined_best_score_first() {
    let tokenizer = sentencepiece(false);
    // bc scores better than ab and is then joined with a; hi better than what begins with a space.
    let cases: [(&str, &[&str]); 8] = [
        ("hi", &["hi"]),
        (" hi", &["\u{2581}hi"]),
        ("abc", &["abc"]),
        ("abb", &["ab", "b"]),
        ("bcab", &["bc", "ab"]),
        ("a  b\n", &["a", "  ", "b", "\n"]),
        ("<s>hi</s>", &["<s>", "hi", "</s>"]),
        ("h\u{e9}", &["h", "<0xC3>", "<0xA9>"]),
    ];
    for (text, pieces) in cases {
        let ids: Vec<u32> = pieces.iter().map(|piece| id(piece)).collect();
        assert_eq!(tokenizer.encode(text).expect("it tokenises"), ids, "{text:?}");
        assert_eq!(tokenizer.decode_with_controls(&ids), text);
    }
    assert_eq!(tokenizer.ends(), [id("</s>"), id("<end_of_turn>")]);
    let document = |text: &str| tokenizer.encode_document(text).expect("it tokenises");
    assert_eq!(document("hi"), document("<s>hi"));
    assert_eq!((tokenizer.control("</s>"), tokenizer.control("hi")), (Some(id("</s>")), None));
    assert_eq!(tokenizer.spelling(id("</s>")), b"</s>");
    // The longest token is <end_of_turn>.
    assert!(tokenizer.may_fit(26, 2) && !tokenizer.may_fit(27, 2));
    assert_eq!((tokenizer.vocabulary(), tokenizer.bytes(PIECES.len() as u32)), (PIECES.len() + 2, &b""[..]));
}

#[test]
fn a_space_before_text_is_seen_and_not_told() {
    let tokenizer = sentencepiece(true);
    let encode = |text: &str| tokenizer.encode(text).expect("it tokenises");
    assert_eq!(encode("hi"), [id("\u{2581}hi")]);
    assert_eq!(encode("<s>hi</s>hi"), [id("<s>"), id("\u{2581}hi"), id("</s>"), id("\u{2581}hi")]);
    for text in ["hi", "<s>hi</s>hi", "<s>hi hi", "<s> hi"] {
        assert_eq!(tokenizer.decode_with_controls(&encode(text)), text);
    }
    let after = |known: &[u32], text: &str| tokenizer.encode_after(known, text).expect("it tokenises");
    assert_eq!(after(&[], "hi"), Some(vec![id("\u{2581}hi")]));
    assert_eq!(after(&[id("</s>")], "hi"), Some(vec![id("\u{2581}hi")]));
    assert_eq!(after(&[id("a")], "</s>hi"), Some(vec![id("</s>"), id("\u{2581}hi")]));
    // Here the space would be told.
    assert_eq!(after(&[id("a")], "hi"), None);
}

#[test]
fn a_space_at_the_start_alone_is_not_added_where_text_goes_on() {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        PIECES.iter().enumerate().map(|(id, (token, ..))| ((*token).to_owned(), json!(id))).collect();
    let added = ["<unk>", "<s>", "</s>"].map(|token| {
        json!({"id": id(token), "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let merges = json!([["h", "i"], ["\u{2581}", "hi"]]);
    let spaces =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "pre_tokenizer": spaces, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, spaces]},
        "added_tokens": added,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>", "byte_fallback": true},
    });
    let text = |name: &str| {
        Ok(match name {
            "tokenizer.json" => Some(tokenizer.to_string()),
            "generation_config.json" => Some(json!({"eos_token_id": [2, 7]}).to_string()),
            "tokenizer_config.json" => Some(json!({"eos_token": "</s>"}).to_string()),
            _ => None,
        })
    };
    let tokenizer = Tokenizer::from_folder(text, PIECES.len()).expect("a tokenizer");
    assert_eq!(tokenizer.ends(), [2, 7]);
    let encode = |text: &str| tokenizer.encode(text).expect("it tokenises");
    assert_eq!(encode("hihihi").len(), 3, "truncation is off");
    assert_eq!(encode("hi"), [id("\u{2581}hi")]);
    assert_eq!(encode("<s>hi"), [id("<s>"), id("hi")]);
    assert_eq!(tokenizer.decode_with_controls(&encode("<s>hi")), "<s>hi");
    let after = tokenizer.encode_after(&encode("<s>hi"), "hi").expect("it tokenises");
    assert_eq!(after, Some(vec![id("hi")]));
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let text = |text: &str| Value::String(text.to_owned());
    let tokens = || Value::Array(vec![text("a"), text("b")]);
    let none = || Value::Array(Vec::new());
    let refused =
        |entries: &[(&str, Value)]| from_metadata(entries, 2).err().expect("it is refused").to_string();
    let kind = refused(&[("tokenizer.ggml.model", text("t5")), ("tokenizer.ggml.tokens", tokens())]);
    assert!(kind.contains("\"t5\""), "{kind}");
    let rules = refused(&[
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("tekken")),
        ("tokenizer.ggml.tokens", tokens()),
        ("tokenizer.ggml.merges", none()),
    ]);
    assert!(rules.contains("\"tekken\""), "{rules}");
    let merge = refused(&[
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.tokens", tokens()),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a b")])),
    ]);
    assert!(merge.contains("\"a b\" makes no token"), "{merge}");
    let scores = refused(&[("tokenizer.ggml.model", text("llama")), ("tokenizer.ggml.tokens", tokens())]);
    assert!(scores.contains("no score"), "{scores}");
    let nothing = |_: &str| Ok(None);
    assert!(Tokenizer::from_folder(nothing, 2).is_err());
    let broken = |name: &str| Ok((name == "tokenizer.json").then(|| "{}".to_owned()));
    assert!(Tokenizer::from_folder(broken, 2).err().expect("refused").to_string().contains("tokenizer.json"));
}
