//! The language of the simulated model: a vocabulary of single characters and four control tokens, the template of its chats, and the
//! words that the model says after given tokens.
//!
//! [`expected`] is the only truth about words: it knows nothing of pools, blocks, workers and attempts.

use std::sync::{Arc, OnceLock};

use serde_json::json;
use turnmill_schema::Sampling;
use turnmill_worker::model::{ChatTemplate, Sampler, Tokenizer};

/// What replies are made of.
const LETTERS: &str = "abcdefghijklmnop";
/// What else messages may be made of. The model cannot compute [`POISON`].
const OTHERS: &str = "0123456789!";
/// The letter at which a step fails.
pub(super) const POISON: char = '!';
const CONTROLS: [&str; 4] = ["<s>", "<u>", "<a>", "<e>"];

/// Tokens of the vocabulary.
pub(super) const VOCABULARY: usize = LETTERS.len() + OTHERS.len() + CONTROLS.len();
const SYSTEM: u32 = (LETTERS.len() + OTHERS.len()) as u32;
const USER: u32 = SYSTEM + 1;
const ASSISTANT: u32 = SYSTEM + 2;
/// Ends a message, and a reply.
const END: u32 = SYSTEM + 3;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'system' %}<s>{% elif m.role == 'user' %}<u>\
     {% else %}<a>{% endif %}{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";

/// The tokenizer; one for all seeds, because nothing about it changes.
pub(super) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let read = || Arc::new(Tokenizer::from_folder(file, VOCABULARY).expect("the tokenizer is well-formed"));
    Arc::clone(TOKENIZER.get_or_init(read))
}

/// The template of chats.
pub(super) fn template() -> ChatTemplate {
    ChatTemplate::from_folder(file, Some(TEMPLATE)).expect("the template is well-formed")
}

/// The files of the model's folder.
fn file<E>(name: &str) -> Result<Option<String>, E> {
    let texts = LETTERS.chars().chain(OTHERS.chars()).map(String::from);
    let texts = texts.chain(CONTROLS.map(str::to_owned));
    let vocabulary: serde_json::Map<_, _> = texts.zip(0..).map(|(text, id)| (text, json!(id))).collect();
    let added = (SYSTEM..).zip(CONTROLS).map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": false},
        "added_tokens": added.collect::<Vec<_>>(),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    Ok(match name {
        "tokenizer.json" => Some(tokenizer.to_string()),
        "config.json" => Some(json!({"eos_token_id": END}).to_string()),
        _ => None,
    })
}

/// The token of a character of a message.
pub(super) fn token(character: char) -> u32 {
    let place = LETTERS.chars().chain(OTHERS.chars()).position(|known| known == character);
    place.expect("messages are made of known characters") as u32
}

/// K of a token: it says which tokens came before, as far as `read` has them. `read` gives K of an earlier position; it is asked for
/// the one before, and for one of each block before that, so that no wrong block goes unnoticed for long.
pub(super) fn key(token: u32, position: usize, block_tokens: usize, read: impl Fn(usize) -> u64) -> u64 {
    let mut seen = mix(u64::from(token) + 1);
    if let Some(before) = position.checked_sub(1) {
        seen = mix(seen ^ read(before));
    }
    for block in 0..position / block_tokens {
        seen = mix(seen ^ read(block * block_tokens + (position + block) % block_tokens));
    }
    seen
}

/// What stands beside K, and says whether that is whole and in its place.
pub(super) fn value(key: u64, position: usize) -> u64 {
    mix(key ^ position as u64)
}

/// The logits after the token with K `key`.
pub(super) fn logits(key: u64) -> Vec<f32> {
    let logit = |id: usize| match id as u32 {
        END => 3.0 + (mix(key) % 1000) as f32 / 250.0,
        id if (id as usize) < LETTERS.len() => (mix(key ^ (u64::from(id) + 1) << 32) % 1000) as f32 / 200.0,
        _ => f32::NEG_INFINITY,
    };
    (0..VOCABULARY).map(logit).collect()
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// A message, as a turn has it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) is_system: bool,
    pub(super) text: String,
}

/// What a turn says and adds to its agent's history.
pub(super) struct Said {
    pub(super) reply: Vec<u32>,
    pub(super) adds: Vec<u32>,
}

/// What the model says after `history` to `messages`.
pub(super) fn expected(
    history: &[u32],
    messages: &[Asked],
    sampling: &Sampling,
    block_tokens: usize,
) -> Said {
    let mut tokens = history.to_vec();
    if history.last().is_some_and(|last| *last != END) {
        tokens.push(END);
    }
    for message in messages {
        tokens.push(if message.is_system { SYSTEM } else { USER });
        tokens.extend(message.text.chars().map(token));
        tokens.push(END);
    }
    tokens.push(ASSISTANT);
    let (prompt, mut keys) = (tokens.len(), Vec::new());
    let mut sampler = Sampler::new(sampling.clone(), &tokens, &[]);
    let mut reply = Vec::new();
    let most = sampling.max_tokens.unwrap_or(0) as usize;
    while reply.len() < most && reply.last() != Some(&END) {
        while let Some(&next) = tokens.get(keys.len()) {
            keys.push(key(next, keys.len(), block_tokens, |at| keys[at]));
        }
        let mut row = logits(keys[keys.len() - 1]);
        let next = sampler.sample(&mut row, None).expect("the row holds numbers").token;
        reply.push(next);
        tokens.push(next);
    }
    debug_assert_eq!(tokens.len(), prompt + reply.len());
    Said { reply, adds: tokens.split_off(history.len()) }
}
