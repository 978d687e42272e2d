//! What models write when they call tools, and when they think.
//!
//! Each family has its own format of calls. A [`ToolFormat`] describes one, and from the description follow a grammar
//! ([`ToolFormat::grammar`]), which a reply can be made to obey, and a [`Parser`], which divides a reply's text into content,
//! thoughts and calls as it arrives. Everything here is a function of the text: a turn that is resumed feeds the parser the same
//! tokens and finds it in the same state.

mod bare;
mod call;
mod detect;
mod format;
mod grammar;
mod nesting;
mod parser;
mod rules;
mod system_text;
#[cfg(test)]
mod tests;
mod think;

pub use format::{ToolFormat, UnknownFormat};
pub use grammar::{Asked, response_grammar};
pub use parser::Parser;
pub use system_text::system_text;
pub use think::ThinkMarkers;
