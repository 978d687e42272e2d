//! `turnmill tail`: a turn's reply, from its start or from an entry on, as it is made.

use clap::Args;
use turnmill_client::StreamId;
use turnmill_client::schema::TurnId;

use crate::cli::Global;
use crate::exit::Exit;
use crate::print::Show;

#[derive(Debug, Args)]
pub struct Tail {
    /// The turn, as `submit` printed it.
    turn: TurnId,
    /// Start after this entry; `--json` shows each entry's id.
    #[arg(long, value_name = "ID")]
    from: Option<StreamId>,
    /// One JSON object for each event.
    #[arg(long)]
    json: bool,
}

impl Tail {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let client = global.connect().await?;
        let show = Show { json: self.json, ..Show::default() };
        match show.events(&client, self.turn, self.from).await? {
            true => Ok(()),
            false => Err(Exit::NotCompleted),
        }
    }
}
