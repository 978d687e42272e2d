//! A script: rules in TOML, of which the first that fits the last message of the user says the reply.
//!
//! ```toml
//! [[rule]]
//! when = "weather"                # the message contains it; `when_is`: it is it, but for spaces around it
//! say = "It is sunny."            # {prompt} stands for the message
//! first_token_ms = 500            # pause before the first token
//! tokens_per_second = 20
//!
//! [[rule]]
//! when = "story"
//! say = "And then? "
//! tokens = 500                    # said over and over, this many tokens in all
//!
//! [[rule]]
//! when = "crash"
//! say = "So far "                 # said first; may be left out
//! fail = "the script says so"     # then the step fails with this sentence
//!
//! [[rule]]                        # without `when`: every message
//! say = "You said: {prompt}"
//! ```
//!
//! Invariant: a script that was read can be spoken, but for text that the vocabulary has no tokens for.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// What stands for the last message of the user.
const PROMPT: &str = "{prompt}";
/// What is said if no rule fits.
const NO_RULE: &str = "No rule of the script fits this message.";

/// Tokens that a rule may ask for.
const TOKENS: RangeInclusive<u32> = 1..=1 << 24;
/// A step that waits longer for a token would be taken for one that hangs.
const TOKENS_PER_SECOND: RangeInclusive<f64> = 0.1..=1e6;
const FIRST_TOKEN_MS: RangeInclusive<u64> = 0..=10_000;

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    rules: Vec<Rule>,
    /// Tokens a second of rules that name no pace.
    tokens_per_second: Option<f64>,
}

/// A file of rules.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Rule>,
}

/// What is said to some messages.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    when: Option<String>,
    when_is: Option<String>,
    say: Option<String>,
    tokens: Option<u32>,
    tokens_per_second: Option<f64>,
    first_token_ms: Option<u64>,
    fail: Option<String>,
}

/// How fast a reply comes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Pause before its first token.
    pub first: Duration,
    /// Pause before each other token.
    pub next: Duration,
}

/// Why a script is refused.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("cannot read the script {path}: {source}; correct --script")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// It is not TOML, has an unknown key or a value of the wrong kind.
    #[error("line {line} of the script: {reason}")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// There is nothing to say.
    #[error(
        "the script has no rules; give at least one: [[rule]] and, on the next line, say = \"some text\""
    )]
    Empty,
    /// A rule makes no sense.
    #[error("rule {number} of the script {problem}")]
    Rule {
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl Script {
    /// Says what it was told.
    pub fn echo() -> Self {
        let rule = Rule { say: Some(format!("You said: {PROMPT}")), ..Rule::default() };
        Self { rules: vec![rule], tokens_per_second: None }
    }

    /// The script in the file `path`.
    pub fn read(path: &Path) -> Result<Self, ScriptError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ScriptError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// The script that `text` is.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let File { rule: rules } = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
            ScriptError::Syntax { line, reason: error.message().to_owned() }
        })?;
        if rules.is_empty() {
            return Err(ScriptError::Empty);
        }
        let mut always = None;
        for (number, rule) in (1..).zip(&rules) {
            let unreached = always.map(|always: usize| {
                format!("is never reached, because rule {always} fits every message; put that one last")
            });
            match unreached.or_else(|| rule.problem()) {
                Some(problem) => return Err(ScriptError::Rule { number, problem }),
                None if rule.fits_all() => always = Some(number),
                None => {}
            }
        }
        Ok(Self { rules, tokens_per_second: None })
    }

    /// The same at a pace for rules that name none.
    pub fn at_pace(self, tokens_per_second: Option<f64>) -> Self {
        Self { tokens_per_second, ..self }
    }

    /// The rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule for a message of the user; none if none fits.
    pub fn rule(&self, message: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(message))
    }

    /// The text for a message, and the rule that gives it, if one does.
    pub fn text(&self, message: &str) -> (String, Option<&Rule>) {
        let rule = self.rule(message);
        let text = rule.map_or(NO_RULE, |rule| rule.said());
        (text.replace(PROMPT, message), rule)
    }

    /// How fast a reply by `rule` comes.
    pub fn pace(&self, rule: Option<&Rule>) -> Pace {
        let per_second = rule.and_then(|rule| rule.tokens_per_second).or(self.tokens_per_second);
        let next = per_second.map_or(Duration::ZERO, |per_second| Duration::from_secs_f64(1.0 / per_second));
        let first = rule.and_then(|rule| rule.first_token_ms).map(Duration::from_millis);
        Pace { first: first.unwrap_or(next), next }
    }
}

impl Rule {
    /// What it says, before the message is put in.
    pub fn said(&self) -> &str {
        self.say.as_deref().unwrap_or_default()
    }

    /// Tokens of the reply in all; none: those of its text.
    pub fn tokens(&self) -> Option<usize> {
        self.tokens.map(|tokens| tokens as usize)
    }

    /// The sentence with which a step fails after the reply.
    pub fn failure(&self) -> Option<&str> {
        self.fail.as_deref()
    }

    /// Whether its text is the same for every message.
    pub fn is_fixed(&self) -> bool {
        !self.said().contains(PROMPT)
    }

    fn fits_all(&self) -> bool {
        self.when.is_none() && self.when_is.is_none()
    }

    fn fits(&self, message: &str) -> bool {
        let is = self.when_is.as_deref().is_none_or(|text| text.trim() == message.trim());
        is && self.when.as_deref().is_none_or(|text| message.contains(text))
    }

    /// What is wrong with it, if anything is.
    fn problem(&self) -> Option<String> {
        let within = |holds: bool, problem: String| (!holds).then_some(problem);
        if self.when.is_some() && self.when_is.is_some() {
            return Some("has when and when_is; give one of them".to_owned());
        }
        if self.when.as_deref() == Some("") {
            return Some("has an empty when; leave it out to fit every message".to_owned());
        }
        if self.say.is_none() && self.fail.is_none() {
            return Some("says nothing; give it say, fail or both".to_owned());
        }
        if self.tokens.is_some() && self.said().is_empty() {
            return Some("has tokens and nothing to say; give it say".to_owned());
        }
        let tokens = self.tokens.and_then(|tokens| {
            let problem =
                format!("has tokens {tokens}; it must be from {} to {}", TOKENS.start(), TOKENS.end());
            within(TOKENS.contains(&tokens), problem)
        });
        let pace = self.tokens_per_second.and_then(|pace| {
            let problem = format!("has tokens_per_second {pace}; {}", pace_rule());
            within(TOKENS_PER_SECOND.contains(&pace), problem)
        });
        let first = self.first_token_ms.and_then(|ms| {
            let most = FIRST_TOKEN_MS.end();
            within(
                FIRST_TOKEN_MS.contains(&ms),
                format!("has first_token_ms {ms}; it must be at most {most}"),
            )
        });
        tokens.or(pace).or(first)
    }
}

/// Tokens a second, as a flag gives them.
pub(super) fn pace(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|pace| TOKENS_PER_SECOND.contains(pace)).ok_or_else(pace_rule)
}

fn pace_rule() -> String {
    format!("it must be a number from {} to {}", TOKENS_PER_SECOND.start(), TOKENS_PER_SECOND.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Script {
        Script::parse(text).expect("a good script")
    }

    #[test]
    fn the_first_rule_that_fits_speaks() {
        let script = script(
            "[[rule]]\nwhen = \"tide\"\nsay = \"High.\"\n[[rule]]\nwhen_is = \"ping\"\nsay = \"pong\"\n\
             [[rule]]\nsay = \"{prompt}? {prompt}!\"\n",
        );
        let said = |message| script.text(message).0;
        assert_eq!(said("When is the tide?"), "High.");
        assert_eq!(said(" ping\n"), "pong");
        assert_eq!(said("pinging"), "pinging? pinging!");
        assert_eq!(Script::echo().text("hi").0, "You said: hi");
    }

    #[test]
    fn a_message_that_no_rule_fits_is_told_so() {
        let script = script("[[rule]]\nwhen = \"a\"\nsay = \"b\"\n");
        assert_eq!(script.text("c"), (NO_RULE.to_owned(), None));
    }

    #[test]
    fn a_rule_has_its_own_pace_or_that_of_all() {
        let script = script(
            "[[rule]]\nwhen = \"own\"\nsay = \"a\"\ntokens_per_second = 10\n[[rule]]\nsay = \"b\"\nfirst_token_ms = 70\n",
        );
        let ms = Duration::from_millis;
        let pace = |script: &Script, message| script.pace(script.rule(message));
        assert_eq!(pace(&script, "own"), Pace { first: ms(100), next: ms(100) });
        assert_eq!(pace(&script, "other"), Pace { first: ms(70), next: ms(0) });
        let script = script.at_pace(Some(4.0));
        assert_eq!(pace(&script, "own"), Pace { first: ms(100), next: ms(100) });
        assert_eq!(pace(&script, "other"), Pace { first: ms(70), next: ms(250) });
    }

    #[test]
    fn bad_scripts_are_refused_in_a_sentence() {
        let cases = [
            (
                "",
                "the script has no rules; give at least one: [[rule]] and, on the next line, say = \"some text\"",
            ),
            ("[[rule]]\nwhn = \"a\"\n", "line 2 of the script: unknown field `whn`"),
            ("[[rules]]\nsay = \"a\"\n", "line 1 of the script: unknown field `rules`"),
            ("[[rule]]\nsay = 1\n", "line 2 of the script: invalid type: integer `1`, expected a string"),
            ("[[rule]]\nsay = \"a\n", "line 2 of the script: "),
            ("[[rule]]\n", "rule 1 of the script says nothing; give it say, fail or both"),
            (
                "[[rule]]\nwhen = \"a\"\nwhen_is = \"a\"\nsay = \"b\"\n",
                "rule 1 of the script has when and when_is; give one of them",
            ),
            (
                "[[rule]]\nwhen = \"\"\nsay = \"a\"\n",
                "rule 1 of the script has an empty when; leave it out to fit every message",
            ),
            (
                "[[rule]]\nsay = \"a\"\n[[rule]]\nwhen = \"b\"\nsay = \"c\"\n",
                "rule 2 of the script is never reached, because rule 1 fits every message; put that one last",
            ),
            (
                "[[rule]]\nsay = \"\"\ntokens = 5\n",
                "rule 1 of the script has tokens and nothing to say; give it say",
            ),
            (
                "[[rule]]\nsay = \"a\"\ntokens = 0\n",
                "rule 1 of the script has tokens 0; it must be from 1 to 16777216",
            ),
            (
                "[[rule]]\nsay = \"a\"\ntokens_per_second = 0.0\n",
                "rule 1 of the script has tokens_per_second 0; it must be a number from 0.1 to 1000000",
            ),
            (
                "[[rule]]\nsay = \"a\"\ntokens_per_second = nan\n",
                "rule 1 of the script has tokens_per_second NaN; it must be a number from 0.1 to 1000000",
            ),
            (
                "[[rule]]\nsay = \"a\"\nfirst_token_ms = 10001\n",
                "rule 1 of the script has first_token_ms 10001; it must be at most 10000",
            ),
        ];
        for (text, sentence) in cases {
            let refused = Script::parse(text).expect_err(text).to_string();
            assert!(refused.starts_with(sentence), "{text:?}: {refused}");
        }
        let missing = Script::read(Path::new("/nowhere/script.toml")).expect_err("not there").to_string();
        assert!(missing.starts_with("cannot read the script /nowhere/script.toml: "), "{missing}");
        assert!(pace("0").is_err() && pace("inf").is_err() && pace("20") == Ok(20.0));
    }
}
