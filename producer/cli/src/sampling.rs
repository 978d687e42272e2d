//! The sampling flags. Names, ranges and defaults are those of [`Sampling`].

use std::str::FromStr;

use clap::Args;
use turnmill_client::schema::Sampling;

/// How to choose tokens and when to stop.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Choose more randomly the higher X is; 0 takes the likeliest token [default: 1].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the K likeliest tokens; 0 keeps all [default: 0].
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// Keep the likeliest tokens until their probabilities add up to P [default: 1].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Drop tokens less likely than P times the likeliest one [default: 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens of prompt and reply less likely if X is above 1 [default: 1].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtract X from the logits of tokens in the reply [default: 0].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract X from a token's logit for each time the token is in the reply [default: 0].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Add BIAS to the logit of a token; may be given again.
    #[arg(long, value_name = "ID=BIAS")]
    logit_bias: Vec<Bias>,
    /// Draw the same words from the same seed and history [default: a random seed, which is kept].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Make at most N tokens [default: as many as the context leaves room for]. With 0 the turn makes none: its prompt is rendered
    /// and counted, and the result's usage says how many tokens it has.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<u32>,
    /// Make at least N tokens [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    min_tokens: Option<u32>,
    /// End before this text; may be given again.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// End after this token; may be given again.
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    stop_token_id: Vec<u32>,
    /// Go on after the model's end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
    /// Report log-probabilities, each with N alternatives (0 to 20).
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    logprobs: Option<u8>,
    /// Leave control tokens, such as <|im_end|>, in the reply's text.
    #[arg(long)]
    special_tokens: bool,
}

/// One `--logit-bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bias {
    token: u32,
    bias: f32,
}

impl FromStr for Bias {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parse = || {
            let (token, bias) = s.split_once('=')?;
            Some(Self { token: token.trim().parse().ok()?, bias: bias.trim().parse().ok()? })
        };
        parse().ok_or_else(|| "give a token id and a number, such as 50256=-100".to_owned())
    }
}

impl SamplingArgs {
    /// The flags over the defaults.
    pub fn to_sampling(&self) -> Sampling {
        let default = Sampling::default();
        Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias: self.logit_bias.iter().map(|Bias { token, bias }| (*token, *bias)).collect(),
            seed: self.seed,
            skip_special_tokens: !self.special_tokens,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens.unwrap_or(default.min_tokens),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_id.clone(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flag_means_the_defaults() {
        assert_eq!(SamplingArgs::default().to_sampling(), Sampling::default());
    }

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!("50256=-100".parse(), Ok(Bias { token: 50256, bias: -100.0 }));
        for bad in ["", "1", "=1", "1=", "-1=2", "a=1", "1=b"] {
            assert!(bad.parse::<Bias>().is_err(), "{bad:?}");
        }
    }
}
