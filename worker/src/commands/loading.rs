//! How far a model is, on a terminal's standard error; silent elsewhere.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use turnmill_worker::app::Loading;

/// A bar for each file that is fetched, and one for the layers.
pub struct LoadingBar {
    shown: Mutex<Shown>,
}

struct Shown {
    what: String,
    bar: ProgressBar,
}

impl LoadingBar {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self { shown: Mutex::new(Shown { what: String::new(), bar: ProgressBar::hidden() }) }
    }

    /// Shows how far it is.
    pub fn show(&self, loading: Loading<'_>) {
        let (what, unit, done, all) = match loading {
            Loading::Fetching(fetching) => {
                let unit = "{decimal_bytes}/{decimal_total_bytes} ({decimal_bytes_per_sec})";
                (fetching.file, unit, fetching.done, fetching.size.unwrap_or(0))
            }
            Loading::Layers { done, all } => ("loading", "{pos}/{len} layers", done as u64, all as u64),
        };
        let mut shown = self.shown.lock().expect("nothing panics while it is held");
        if shown.what != what {
            shown.bar.finish_and_clear();
            let style = ProgressStyle::with_template(&format!("{{msg}} {{wide_bar}} {unit}"));
            let style = style.expect("the templates are well formed");
            shown.bar = ProgressBar::new(all).with_message(what.to_owned()).with_style(style);
            what.clone_into(&mut shown.what);
        }
        shown.bar.set_length(all);
        shown.bar.set_position(done);
        if done == all {
            shown.bar.finish_and_clear();
        }
    }
}
