//! What encloses a model's thoughts.

/// The texts around a model's thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinkMarkers {
    /// Before them.
    pub open: &'static str,
    /// After them.
    pub close: &'static str,
}

impl ThinkMarkers {
    /// Qwen3, DeepSeek R1, SmolLM3, GLM and most others.
    pub const THINK: Self = Self { open: "<think>", close: "</think>" };
    /// Mistral's Magistral and later.
    pub const MISTRAL: Self = Self { open: "[THINK]", close: "[/THINK]" };
    /// Gemma 4.
    pub const GEMMA: Self = Self { open: "<|channel>thought", close: "<channel|>" };

    /// The markers that the source of a chat template speaks of.
    pub fn detect(template: &str) -> Option<Self> {
        [Self::GEMMA, Self::MISTRAL, Self::THINK].into_iter().find(|markers| template.contains(markers.close))
    }

    /// Whether a reply to `prompt`, a rendered conversation, starts among thoughts: whether the prompt ends with
    /// [`ThinkMarkers::open`], white space aside.
    pub fn starts_inside(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_says_whether_the_reply_starts_among_thoughts() {
        let think = ThinkMarkers::THINK;
        for (prompt, inside) in [
            ("<|im_start|>assistant\n", false),
            ("<|im_start|>assistant\n<think>\n", true),
            ("<|im_start|>assistant\n<think>", true),
            ("<|im_start|>assistant\n<think>\n\n</think>\n\n", false),
            ("what does <think> mean?<|im_end|>\n<|im_start|>assistant\n", false),
        ] {
            assert_eq!(think.starts_inside(prompt), inside, "{prompt}");
        }
    }

    #[test]
    fn a_template_says_which_markers_it_knows() {
        assert_eq!(ThinkMarkers::detect("{{ content.split('</think>')[-1] }}"), Some(ThinkMarkers::THINK));
        assert_eq!(ThinkMarkers::detect("{{ text.split('<channel|>') }}"), Some(ThinkMarkers::GEMMA));
        assert_eq!(ThinkMarkers::detect("{{ messages }}"), None);
    }
}
