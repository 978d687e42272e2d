//! The vocabulary in a GGUF file's metadata: byte-level BPE, or SentencePiece's pieces with scores.

use candle_core::quantized::gguf_file::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::spelling::{SPACE, Spelling};
use super::{SpacePrefix, Tokenizer, ends};
use crate::model::ModelError;
use crate::model::checkpoint::gguf::Gguf;

/// Kinds of token in GGUF files (llama.cpp's `llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const UNUSED: i32 = 5;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// How Llama 3 and Qwen 2 split text: they differ in how many digits make a piece.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The vocabulary as the file lists it.
struct Listed<'a> {
    gguf: &'a Gguf,
    tokens: Vec<String>,
    kinds: Option<Vec<i32>>,
}

impl Tokenizer {
    /// Reads the vocabulary of a GGUF file, of a model with `vocabulary` entries.
    pub fn from_gguf(gguf: &Gguf, vocabulary: usize) -> Result<Self, ModelError> {
        let listed = Listed {
            gguf,
            tokens: texts(gguf, "tokenizer.ggml.tokens")?,
            kinds: numbers(gguf, "tokenizer.ggml.token_type", |kind| kind.to_i32().ok()),
        };
        let (mut inner, spelling, prefix) = match gguf.text("tokenizer.ggml.model") {
            Some("gpt2") => listed.byte_level()?,
            Some("llama") => listed.sentencepiece()?,
            other => {
                let other = other.unwrap_or("none");
                return Err(ModelError::Unusable(format!(
                    "its tokenizer is of the kind {other:?}; \"gpt2\" and \"llama\" are supported"
                )));
            }
        };
        inner.add_special_tokens(listed.controls()).map_err(unusable)?;
        let mut bytes: Vec<Box<[u8]>> =
            (0..listed.tokens.len()).map(|id| listed.bytes(id, spelling)).collect();
        bytes.resize(vocabulary, Box::default());
        let named = ["eos_token_id", "eot_token_id"].into_iter().filter_map(|key| listed.id(key));
        let ends = ends(named, &inner, &bytes);
        let mut tokenizer = Self::new(inner, bytes, ends, prefix, listed.digest());
        // llama.cpp's defaults, if a file says nothing.
        let has_start = listed.flag("add_bos_token").unwrap_or(spelling == Spelling::SentencePiece);
        tokenizer.start = listed.id("bos_token_id").filter(|_| has_start);
        if spelling == Spelling::ByteLevel {
            tokenizer.note_unspellable();
        }
        Ok(tokenizer)
    }
}

impl Listed<'_> {
    fn kind(&self, id: usize) -> Option<i32> {
        self.kinds.as_ref().and_then(|kinds| kinds.get(id)).copied()
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.gguf.number(&format!("tokenizer.ggml.{key}")).and_then(|id| u32::try_from(id).ok())
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.gguf.get(&format!("tokenizer.ggml.{key}")).and_then(|flag| flag.to_bool().ok())
    }

    fn ids(&self) -> Vocab {
        (0..).zip(&self.tokens).map(|(id, token)| (token.clone(), id)).collect()
    }

    fn bytes(&self, id: usize, spelling: Spelling) -> Box<[u8]> {
        let token = &self.tokens[id];
        match self.kind(id) {
            Some(USER_DEFINED) => token.replace(SPACE, " ").into_bytes().into(),
            None | Some(NORMAL | BYTE) => spelling.bytes(token),
            _ => Box::default(),
        }
    }

    /// Tokens that are found in text before anything is split: control tokens, those that users defined, and whatever the
    /// file gives a role.
    fn controls(&self) -> Vec<AddedToken> {
        let roles = ["bos", "eos", "eot", "padding", "seperator", "unknown"];
        let roles: Vec<u32> = roles.iter().filter_map(|role| self.id(&format!("{role}_token_id"))).collect();
        let is_control = |id: usize| {
            let kind = self.kind(id);
            kind.is_some_and(|kind| (UNKNOWN..=UNUSED).contains(&kind)) || roles.contains(&(id as u32))
        };
        let controls =
            self.tokens.iter().enumerate().filter(|(id, token)| is_control(*id) && !token.is_empty());
        controls.map(|(_, token)| AddedToken::from(token.clone(), true)).collect()
    }

    fn byte_level(&self) -> Result<(tokenizers::Tokenizer, Spelling, SpacePrefix), ModelError> {
        let rules = self.gguf.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
        let ids = self.ids();
        let merges = texts(self.gguf, "tokenizer.ggml.merges")?.into_iter().map(|merge| {
            let (left, right) = merge.split_once(' ').unwrap_or_default();
            // The builder panics where a merge makes no token.
            if [left, right, &format!("{left}{right}")].iter().any(|part| !ids.contains_key(*part)) {
                return Err(ModelError::Unusable(format!("its tokenizer's merge {merge:?} makes no token")));
            }
            Ok((left.to_owned(), right.to_owned()))
        });
        let merges: Vec<(String, String)> = merges.collect::<Result<_, _>>()?;
        let builder = BPE::builder().vocab_and_merges(ids, merges);
        let model = builder.ignore_merges(is_llama3(rules)).build().map_err(unusable)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(pre_tokenizer(rules)?));
        if is_qwen2(rules) {
            inner.with_normalizer(Some(NFC)).map_err(unusable)?;
        }
        Ok((inner, Spelling::ByteLevel, SpacePrefix::Never))
    }

    /// SentencePiece joins the two neighbours whose piece has the best score. As merges: all ways to split each piece, best
    /// pieces first.
    fn sentencepiece(&self) -> Result<(tokenizers::Tokenizer, Spelling, SpacePrefix), ModelError> {
        let scores = numbers(self.gguf, "tokenizer.ggml.scores", |score| score.to_f32().ok());
        let Some(scores) = scores.filter(|scores| scores.len() == self.tokens.len()) else {
            return Err(ModelError::Unusable("its tokenizer has no score for each token".to_owned()));
        };
        let ids = self.ids();
        let merges = self.merges(&ids, &scores);
        let unknown = self.id("unknown_token_id").and_then(|id| self.tokens.get(id as usize).cloned());
        let mut builder = BPE::builder().vocab_and_merges(ids, merges).fuse_unk(true).byte_fallback(true);
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown);
        }
        let mut inner = tokenizers::Tokenizer::new(builder.build().map_err(unusable)?);
        let space = SPACE.to_string();
        let spaces: NormalizerWrapper = Replace::new(" ", space.as_str()).map_err(unusable)?.into();
        // llama.cpp takes it as set where a file says nothing.
        let prefixed = self.flag("add_space_prefix").unwrap_or(true);
        let prefix = prefixed.then(|| Prepend::new(space).into());
        inner
            .with_normalizer(Some(Normalizers::new(prefix.into_iter().chain([spaces]).collect())))
            .map_err(unusable)?;
        let prefix = if prefixed { SpacePrefix::AfterControls } else { SpacePrefix::Never };
        Ok((inner, Spelling::SentencePiece, prefix))
    }

    fn merges(&self, ids: &Vocab, scores: &[f32]) -> Vec<(String, String)> {
        let is_piece = |id: usize| matches!(self.kind(id), None | Some(NORMAL));
        let mut splits: Vec<(f32, &str, &str)> = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| is_piece(*id)) {
            let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let joined = cuts.filter(|(left, right)| {
                [left, right].iter().all(|part| ids.get(**part).is_some_and(|id| is_piece(*id as usize)))
            });
            splits.extend(joined.map(|(left, right)| (scores[id], left, right)));
        }
        // Of the ways to make one piece, that with the longer left part first.
        splits.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())).then(b.2.len().cmp(&a.2.len()))
        });
        splits.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
    }

    fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for key in ["tokenizer.ggml.model", "tokenizer.ggml.pre"] {
            hasher.update(self.gguf.text(key).unwrap_or_default().as_bytes()).update(b"\0");
        }
        for token in &self.tokens {
            hasher.update(token.as_bytes()).update(b"\0");
        }
        for merge in texts(self.gguf, "tokenizer.ggml.merges").unwrap_or_default() {
            hasher.update(merge.as_bytes()).update(b"\0");
        }
        for score in
            numbers(self.gguf, "tokenizer.ggml.scores", |score| score.to_f32().ok()).unwrap_or_default()
        {
            hasher.update(&score.to_le_bytes());
        }
        if let Some(prefixed) = self.flag("add_space_prefix") {
            hasher.update(&[u8::from(prefixed)]);
        }
        *hasher.finalize().as_bytes()
    }
}

fn is_llama3(rules: &str) -> bool {
    matches!(rules, "llama-bpe" | "llama3" | "llama-v3")
}

fn is_qwen2(rules: &str) -> bool {
    matches!(rules, "qwen2" | "deepseek-r1-qwen")
}

/// How text is split before merging, by llama.cpp's name for it. An unknown name is refused: the ids would be
/// subtly wrong.
fn pre_tokenizer(rules: &str) -> Result<PreTokenizerWrapper, ModelError> {
    let by = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(unusable)?;
        Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into())
    };
    match rules {
        "gpt-2" | "default" => Ok(ByteLevel::new(false, true, true).into()),
        // One digit a token, then GPT-2's rules.
        "smollm" => {
            let parts = vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
            Ok(Sequence::new(parts).into())
        }
        rules if is_llama3(rules) => by(LLAMA3_SPLIT),
        rules if is_qwen2(rules) => by(QWEN2_SPLIT),
        other => Err(ModelError::Unusable(format!(
            "its tokenizer splits text by rules called {other:?}, which this version does not know"
        ))),
    }
}

fn unusable(error: tokenizers::Error) -> ModelError {
    ModelError::Unusable(format!("its tokenizer cannot be used: {error}"))
}

/// A list of texts.
fn texts(gguf: &Gguf, key: &str) -> Result<Vec<String>, ModelError> {
    let values = gguf.get(key).and_then(|values| values.to_vec().ok());
    let texts =
        values.and_then(|values| values.iter().map(|value| value.to_string().ok().cloned()).collect());
    texts.ok_or_else(|| ModelError::Unusable(format!("metadata {key} is missing, or no list of texts")))
}

/// A list of numbers; none where it is missing or one is no number.
fn numbers<T>(gguf: &Gguf, key: &str, number: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    gguf.get(key).and_then(|values| values.to_vec().ok())?.iter().map(number).collect()
}
