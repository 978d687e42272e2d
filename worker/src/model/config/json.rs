//! The configuration in a safetensors folder: config.json as the transformers library writes it, in its fourth and fifth
//! version.

use serde::Deserialize;

use super::{Activation, DecoderConfig, Family, RopeConfig, RopeScaling};
use super::{default_scale, every_nth_is_global, missing, size};
use crate::model::ModelError;

/// The keys of config.json that decide what is computed. Those that are null count as absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigJson {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    _sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<RopeJson>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde_json::Value>,
}

/// Rope as version 5 writes it: one for all layers, or one for each kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum RopeParameters {
    ByKind { full_attention: RopeJson, sliding_attention: RopeJson },
    All(RopeJson),
}

/// A rope's scaling; version 5 has the base in it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RopeJson {
    rope_type: Option<String>,
    /// Its older name. Some files have both.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl DecoderConfig {
    /// Reads the text of config.json; refuses what the decoder does not cover.
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        let json: ConfigJson = serde_json::from_str(text)
            .map_err(|e| ModelError::Unusable(format!("its config.json cannot be read: {e}")))?;
        let family = json.family()?;
        json.refuse_the_unknown()?;
        let required = |name: &str, value: Option<u64>| size(name, value.ok_or_else(|| missing(name))?);
        let or =
            |name: &str, value: Option<u64>, default: usize| value.map_or(Ok(default), |v| size(name, v));
        let hidden = required("hidden_size", json.hidden_size)?;
        let heads = required("num_attention_heads", json.num_attention_heads)?;
        let layers = required("num_hidden_layers", json.num_hidden_layers)?;
        let gemma = family == Family::Gemma3;
        let head_dim = or("head_dim", json.head_dim, if gemma { 256 } else { hidden / heads })?;
        let window = json.window(family).map(|window| size("sliding_window", window)).transpose()?;
        let scalar = json.query_pre_attn_scalar.filter(|_| gemma).unwrap_or(head_dim as f64);
        let (rope, windowed_rope) = json.ropes(family)?;
        let config = Self {
            family,
            hidden,
            intermediate: required("intermediate_size", json.intermediate_size)?,
            layers,
            heads,
            kv_heads: or("num_key_value_heads", json.num_key_value_heads, heads)?,
            head_dim,
            vocabulary: required("vocab_size", json.vocab_size)?,
            context_tokens: required("max_position_embeddings", json.max_position_embeddings)?,
            norm_epsilon: json.rms_norm_eps.ok_or_else(|| missing("rms_norm_eps"))?,
            activation: json.activation(family)?,
            embedding_scale: if gemma { (hidden as f64).sqrt() as f32 } else { 1.0 },
            attention_scale: (1.0 / scalar.sqrt()) as f32,
            qkv_biases: family == Family::Qwen2,
            head_norms: matches!(family, Family::Qwen3 | Family::Gemma3),
            post_norms: gemma,
            // Gemma's is always tied; files of older versions do not say so.
            tied: json.tie_word_embeddings.unwrap_or(gemma),
            attention_soft_cap: json.attn_logit_softcapping.map(|cap| cap as f32),
            logit_soft_cap: json.final_logit_softcapping.map(|cap| cap as f32),
            window,
            windowed: json.windowed(family, layers)?,
            rope,
            windowed_rope,
        };
        debug_assert!(gemma || config.attention_scale == default_scale(head_dim));
        config.check((head_dim as f64 * json.partial_rotary_factor.unwrap_or(1.0)) as usize)?;
        Ok(config)
    }
}

impl ConfigJson {
    fn family(&self) -> Result<Family, ModelError> {
        let model_type = self.model_type.as_deref().unwrap_or("unknown");
        let architecture = |name: &str| Err(ModelError::Architecture(name.to_owned()));
        let family = match model_type {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma3_text" => Family::Gemma3,
            "gemma3" => return architecture("gemma3 with images"),
            other => return architecture(other),
        };
        match self.architectures.as_deref().unwrap_or_default() {
            [] => Ok(family),
            names if names.iter().any(|name| name.ends_with("ForCausalLM")) => Ok(family),
            names => architecture(&names.join(", ")),
        }
    }

    fn refuse_the_unknown(&self) -> Result<(), ModelError> {
        let given = |value: Option<bool>| value.unwrap_or(false);
        let found = [
            ("weights quantised in safetensors (quantization_config)", self.quantization_config.is_some()),
            ("biases in attention (attention_bias)", given(self.attention_bias)),
            ("biases in the MLP (mlp_bias)", given(self.mlp_bias)),
            ("attention in both directions", given(self.use_bidirectional_attention)),
        ];
        match found.into_iter().find(|(_, found)| *found) {
            Some((what, _)) => Err(ModelError::Unusable(format!("{what} are not supported"))),
            None => Ok(()),
        }
    }

    fn activation(&self, family: Family) -> Result<Activation, ModelError> {
        let (name, expected, activation) = match family {
            Family::Gemma3 => {
                let name = self.hidden_activation.as_ref().or(self.hidden_act.as_ref());
                (name, "gelu_pytorch_tanh", Activation::GeluTanh)
            }
            _ => (self.hidden_act.as_ref(), "silu", Activation::Silu),
        };
        match name {
            Some(name) if name != expected => Err(ModelError::Unusable(format!(
                "its activation is {name:?}; this family's is {expected:?}"
            ))),
            _ => Ok(activation),
        }
    }

    /// Qwen's files name a window that is switched off.
    fn window(&self, family: Family) -> Option<u64> {
        let used = match family {
            Family::Llama => false,
            Family::Qwen2 | Family::Qwen3 => self.use_sliding_window.unwrap_or(false),
            Family::Mistral | Family::Gemma3 => true,
        };
        self.sliding_window.filter(|_| used)
    }

    fn windowed(&self, family: Family, layers: usize) -> Result<Vec<bool>, ModelError> {
        if let Some(types) = &self.layer_types {
            let windowed = |kind: &String| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => Err(ModelError::Unusable(format!("layers of the type {other:?} are not supported"))),
            };
            let windowed: Vec<bool> = types.iter().map(windowed).collect::<Result<_, _>>()?;
            if windowed.len() != layers {
                return Err(ModelError::Unusable("layer_types does not name every layer".to_owned()));
            }
            return Ok(windowed);
        }
        let pattern = self.sliding_window_pattern.or(self._sliding_window_pattern);
        Ok(match family {
            Family::Gemma3 => every_nth_is_global(layers, pattern.unwrap_or(6)),
            Family::Qwen2 | Family::Qwen3 => {
                let first = self.max_window_layers.unwrap_or(0);
                (0..layers).map(|layer| layer >= first).collect()
            }
            Family::Llama | Family::Mistral => vec![true; layers],
        })
    }

    /// Rope of all layers, and of windowed ones where it is another.
    fn ropes(&self, family: Family) -> Result<(RopeConfig, Option<RopeConfig>), ModelError> {
        let gemma = family == Family::Gemma3;
        let base = self.rope_theta.unwrap_or(if gemma { 1_000_000.0 } else { 10_000.0 });
        let local = self.rope_local_base_freq.unwrap_or(10_000.0);
        let (all, windowed) = match &self.rope_parameters {
            Some(RopeParameters::ByKind { full_attention, sliding_attention }) => {
                (full_attention.read(base)?, sliding_attention.read(local)?)
            }
            Some(RopeParameters::All(rope)) => (rope.read(base)?, RopeConfig::plain(local)),
            None => {
                let scaling = self.rope_scaling.clone().unwrap_or_default();
                (scaling.read(base)?, RopeConfig::plain(local))
            }
        };
        Ok((all, gemma.then_some(windowed)))
    }
}

impl RopeJson {
    fn read(&self, base: f64) -> Result<RopeConfig, ModelError> {
        let number = |name: &str, value: Option<f64>| value.ok_or_else(|| missing(&format!("rope {name}")));
        let factor = || number("factor", self.factor);
        let scaling = match self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low: number("low_freq_factor", self.low_freq_factor)?,
                high: number("high_freq_factor", self.high_freq_factor)?,
                original_context: number(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            },
            other => return Err(ModelError::Unusable(format!("rope scaling {other:?} is not supported"))),
        };
        Ok(RopeConfig { base: self.rope_theta.unwrap_or(base), scaling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Gemma 3 1B's file, as version 4.50 wrote it.
    fn gemma() -> Value {
        json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": false,
            "attn_logit_softcapping": null, "final_logit_softcapping": null, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
            "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26,
            "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
            "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144
        })
    }

    /// Llama 3.2 1B's.
    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 64, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
            "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256
        })
    }

    fn with(mut json: Value, changes: Value) -> Result<DecoderConfig, ModelError> {
        let (Value::Object(map), Value::Object(changes)) = (&mut json, changes) else { panic!("objects") };
        map.extend(changes);
        DecoderConfig::from_json(&json.to_string())
    }

    #[test]
    fn gemma_has_two_ropes_and_five_windowed_layers_of_six() {
        let config = with(gemma(), json!({})).expect("a configuration");
        assert_eq!(config.windowed.iter().filter(|windowed| !**windowed).count(), 4);
        assert_eq!([4, 5, 6].map(|layer| config.window(layer)), [Some(512), None, Some(512)]);
        assert_eq!([4, 5].map(|layer| config.has_windowed_rope(layer)), [true, false]);
        assert_eq!((config.rope.base, config.windowed_rope), (1e6, Some(RopeConfig::plain(1e4))));
        assert_eq!((config.attention_scale, config.tied), (1.0 / 16.0, true));
        assert_eq!(config.embedding_scale, 1152f32.sqrt());
        assert_eq!((config.activation, config.post_norms), (Activation::GeluTanh, true));
    }

    #[test]
    fn both_ways_to_write_rope_are_read_alike() {
        let five = json!({
            "rope_theta": null, "rope_local_base_freq": null,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        });
        let four = json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}});
        let five = with(gemma(), five).expect("version 5");
        assert_eq!(five, with(gemma(), four).expect("version 4"));
        assert_eq!(five.rope.scaling, RopeScaling::Linear { factor: 8.0 });
        let scaling = llama()["rope_scaling"].clone();
        let mut all = scaling.clone();
        all["rope_theta"] = json!(500000.0);
        let five = json!({"rope_theta": null, "rope_scaling": null, "rope_parameters": all});
        assert_eq!(with(llama(), five).expect("version 5"), with(llama(), json!({})).expect("version 4"));
    }

    #[test]
    fn windows_that_are_switched_off_are_none() {
        let qwen = json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_scaling": null,
            "sliding_window": 4096, "max_window_layers": 12, "use_sliding_window": false});
        let off = with(llama(), qwen.clone()).expect("a configuration");
        assert_eq!((off.window, off.qkv_biases), (None, true));
        let mut qwen = qwen;
        qwen["use_sliding_window"] = json!(true);
        let on = with(llama(), qwen).expect("a configuration");
        assert_eq!([11, 12].map(|layer| on.window(layer)), [None, Some(4096)]);
        let mistral = json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"],
            "rope_scaling": null, "sliding_window": 128});
        assert_eq!(with(llama(), mistral).expect("a configuration").window(0), Some(128));
    }

    #[test]
    fn what_the_decoder_does_not_cover_is_refused_by_name() {
        for (changes, said) in [
            (json!({"model_type": "phi3"}), "architecture is \"phi3\""),
            (json!({"model_type": "gemma3"}), "gemma3 with images"),
            (json!({"architectures": ["LlamaForSequenceClassification"]}), "LlamaForSequenceClassification"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"mlp_bias": true}), "mlp_bias"),
            (json!({"hidden_act": "gelu"}), "activation is \"gelu\""),
            (json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "\"yarn\" is not supported"),
            (json!({"rope_scaling": {"type": "llama3", "factor": 4.0}}), "low_freq_factor is missing"),
            (json!({"partial_rotary_factor": 0.5}), "rope covers 32 of 64"),
            (json!({"num_key_value_heads": 7}), "32 heads cannot share 7"),
            (json!({"num_key_value_heads": 0}), "num_key_value_heads is 0"),
            (json!({"hidden_size": null}), "hidden_size is missing"),
            (json!({"vocab_size": 1u64 << 40}), "which no model has"),
            (json!({"vocab_size": "many"}), "config.json cannot be read"),
            (json!({"rms_norm_eps": 0.0}), "not a positive number"),
            (json!({"layer_types": ["full_attention"]}), "does not name every layer"),
            (json!({"layer_types": ["linear_attention"]}), "linear_attention"),
        ] {
            let refused = with(llama(), changes.clone()).expect_err("it is refused").to_string();
            assert!(refused.contains(said), "{changes} is refused without {said:?}: {refused}");
        }
        assert!(DecoderConfig::from_json("[]").is_err());
    }
}
