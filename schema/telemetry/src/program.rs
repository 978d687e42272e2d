//! What a program is called.

/// The words that a program is told by, in its log, its spans and its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// As it is started: `turnmill-worker`. Traces name the service so.
    pub name: &'static str,
    /// In a sentence, after an article: `worker`.
    pub noun: &'static str,
    /// Its version.
    pub version: &'static str,
}

impl Program {
    /// The target of its log lines, which is the name of its crate: `turnmill_worker`.
    pub fn target(&self) -> String {
        self.name.replace('-', "_")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program that unit tests are about.
    pub const SAMPLE: Program = Program { name: "turnmill-sample", noun: "sample", version: "1.2.3" };

    #[test]
    fn log_lines_name_the_crate() {
        assert_eq!(SAMPLE.target(), "turnmill_sample");
    }
}
