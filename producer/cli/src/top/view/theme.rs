//! Colours: the terminal's own sixteen, so that its palette decides; no colours if NO_COLOR is set (<https://no-color.org>).

use ratatui::style::{Color, Modifier, Style};

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    colours: bool,
}

impl Theme {
    /// Colours, unless the variable NO_COLOR is set and not empty.
    pub fn from_environment() -> Self {
        Self { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    /// No colours.
    pub const fn plain() -> Self {
        Self { colours: false }
    }

    /// Colours, whatever the environment says.
    #[cfg(test)]
    pub const fn coloured_for_tests() -> Self {
        Self { colours: true }
    }

    fn coloured(self, style: Style, colour: Color) -> Style {
        if self.colours { style.fg(colour) } else { style }
    }

    /// The line at the top.
    pub fn header(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// That line when something is badly wrong.
    pub fn alarm(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED), Color::Red)
    }

    pub fn title(self, focused: bool) -> Style {
        if focused { self.focus() } else { Style::new().add_modifier(Modifier::BOLD) }
    }

    /// What has the keys.
    pub fn focus(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Cyan)
    }

    /// The row that keys are about.
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Names of columns, and what is said in passing.
    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn good(self) -> Style {
        self.coloured(Style::new(), Color::Green)
    }

    /// Something to look at.
    pub fn warn(self) -> Style {
        self.coloured(Style::new(), Color::Yellow)
    }

    pub fn bad(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Red)
    }
}
