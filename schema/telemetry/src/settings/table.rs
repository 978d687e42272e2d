//! One table of settings: name, variable, type, default and what it does.

use serde::de::DeserializeOwned;

use super::{Effective, Problems, Source};

/// Settings that have rules.
pub trait Checked {
    /// Notes every rule that is broken, of those that need nothing but the settings.
    fn check(&self, problems: &mut Problems);
}

/// A program's settings. [`crate::settings!`] makes them of a table; the program adds [`Checked`].
pub trait Table: Checked + clap::Args {
    /// The variable that names the configuration file.
    const CONFIG: &'static str;

    /// What the configuration file may say; unknown keys are refused.
    type File: Default + DeserializeOwned;

    /// Takes the file's value if neither flag nor variable gave one, and says for every setting what is in force and where it
    /// came from. `given` knows that of flags, variables and defaults, by the setting's name.
    fn merge(&mut self, file: Self::File, given: impl Fn(&str) -> Source) -> Vec<Effective>;
}

/// Makes a struct of settings from a table: of each entry a field, a flag (`--redis-url`), an environment variable and a key of
/// the TOML file. Defaults are texts, read the way a flag is. The values' types are read and written by serde and by `FromStr`
/// or `clap::ValueEnum`.
///
/// ```
/// use turnmill_telemetry::settings::{Checked, Problems};
///
/// turnmill_telemetry::settings! {
///     /// Everything that the mill can be told.
///     Mill from "TURNMILL_CONFIG";
///
///     /// Stones that turn.
///     ["TURNMILL_SHARDS"] shards: u16 = "1";
/// }
///
/// impl Checked for Mill {
///     fn check(&self, problems: &mut Problems) {
///         problems.within("shards", self.shards, 1..=1024);
///     }
/// }
/// ```
///
/// The crate that uses it depends on clap and serde.
#[macro_export]
macro_rules! settings {
    (
        $(#[$about:meta])+ $settings:ident from $config:literal;
        $($(#[$meta:meta])+ [$env:literal] $name:ident: $type:ty $(= $default:literal)?;)+
    ) => {
        $(#[$about])+
        // Values of variables stay out of --help: one of them may hold a password.
        #[derive(Clone, Debug, clap::Args)]
        pub struct $settings {
            $($(#[$meta])+
            #[arg(long, env = $env, hide_env_values = true $(, default_value = $default)?)]
            pub $name: $type,)+
        }

        const _: () = {
            /// What a TOML file may say.
            #[derive(Default, serde::Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct File {
                $($name: Option<$type>,)+
            }

            impl $crate::settings::Table for $settings {
                const CONFIG: &'static str = $config;
                type File = File;

                fn merge(
                    &mut self,
                    file: File,
                    given: impl Fn(&str) -> $crate::settings::Source,
                ) -> Vec<$crate::settings::Effective> {
                    vec![$({
                        let mut source = given(stringify!($name));
                        if let ($crate::settings::Source::Default, Some(value)) = (source, file.$name) {
                            self.$name = value;
                            source = $crate::settings::Source::File;
                        }
                        $crate::settings::Effective::new(stringify!($name), $env, &self.$name, source)
                    },)+]
                }
            }
        };
    };
}
