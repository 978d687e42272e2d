//! `turnmill agent export` and `import`: an agent as one file.
//!
//! Invariant: a file under its name is whole; it is written beside it and renamed.

use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};

use clap::Args;
use tempfile::NamedTempFile;
use turnmill_client::ClientError;
use turnmill_client::operate::Operator;
use turnmill_client::operate::transfer::Transferred;
use turnmill_client::schema::AgentName;

use crate::exit::Exit;
use crate::print::json_line_to;
use crate::text::say;

/// The path that means the standard output, or the standard input.
const STANDARD: &str = "-";

#[derive(Debug, Args)]
pub struct Export {
    /// The agent's name.
    agent: AgentName,
    /// The file to write, or `-` for the standard output [default: AGENT.tmagent].
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    file: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
    /// One JSON object; on the standard error if the file goes to the standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Import {
    /// A file that `agent export` wrote, or `-` for the standard input.
    file: PathBuf,
    /// The new agent's name [default: the name in the file].
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    agent: Option<AgentName>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

impl Export {
    pub async fn run(self, operator: &Operator) -> Result<(), Exit> {
        let path = self.file.clone().unwrap_or_else(|| format!("{}.tmagent", self.agent).into());
        if path == Path::new(STANDARD) {
            return self.write_to_stdout(operator).await;
        }
        let failed = |error: &dyn std::fmt::Display| cannot("written", &path, error);
        if !self.force && path.try_exists().map_err(|error| failed(&error))? {
            return Err(exists(&path));
        }
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        // Readable by its owner only: it holds what was said.
        let beside = NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
        let file = beside.as_file().try_clone().map_err(|error| failed(&error))?;
        let mut file = tokio::fs::File::from_std(file);
        let exported = operator.export_agent(&self.agent, &mut file).await;
        let exported = exported.map_err(|error| of_file(error, "written", &path))?;
        file.sync_all().await.map_err(|error| failed(&error))?;
        let renamed = if self.force { beside.persist(&path) } else { beside.persist_noclobber(&path) };
        match renamed {
            Ok(_) => told(&exported, self.json, &mut stdout(), &format!("written to {}", path.display())),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(&path)),
            Err(error) => Err(failed(&error.error)),
        }
    }

    async fn write_to_stdout(&self, operator: &Operator) -> Result<(), Exit> {
        if stdout().is_terminal() {
            return Err(Exit::bad_input(
                "the file is not for terminals: give --file, or redirect the output",
            ));
        }
        let exported =
            operator.export_agent(&self.agent, &mut tokio::io::stdout()).await.map_err(unwritten)?;
        told(&exported, self.json, &mut std::io::stderr(), "written")
    }
}

/// The file is the standard output: nobody reads it any more, or it cannot be written.
fn unwritten(error: ClientError) -> Exit {
    match error {
        ClientError::File(error) => Exit::Output(error),
        other => Exit::Queue(other),
    }
}

impl Import {
    pub async fn run(self, operator: &Operator) -> Result<(), Exit> {
        let name = self.agent.as_ref();
        let imported = if self.file == Path::new(STANDARD) {
            let imported = operator.import_agent(&mut tokio::io::stdin(), name).await;
            imported.map_err(|error| of_file(error, "read", Path::new("the standard input")))?
        } else {
            let opened = tokio::fs::File::open(&self.file).await;
            let file = opened.map_err(|error| cannot("read", &self.file, &error))?;
            let imported = operator.import_agent(&mut tokio::io::BufReader::new(file), name).await;
            imported.map_err(|error| of_file(error, "read", &self.file))?
        };
        told(&imported, self.json, &mut stdout(), "imported")
    }
}

/// An error while the file was written or read. One that is about the file names it.
fn of_file(error: ClientError, verb: &str, path: &Path) -> Exit {
    match error {
        ClientError::File(error) => cannot(verb, path, &error),
        other => Exit::Queue(other),
    }
}

fn cannot(verb: &str, path: &Path, error: &dyn std::fmt::Display) -> Exit {
    Exit::bad_input(format!("{} cannot be {verb}: {error}", path.display()))
}

fn exists(path: &Path) -> Exit {
    Exit::conflict(format!("{} is there already: give another --file, or --force", path.display()))
}

/// Says what was done.
fn told(done: &Transferred, json: bool, out: &mut (impl Write + IsTerminal), how: &str) -> Result<(), Exit> {
    let Transferred { agent, turns, objects, left_out } = done;
    if json {
        return json_line_to(out, done);
    }
    writeln!(out, "{agent}: {turns} turns and {objects} objects of K and V {how}")?;
    if let Some(why) = left_out {
        say(format_args!("some of its K and V was left out and will be computed again: {why}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn an_error_of_the_file_names_it_and_no_other_does() {
        let full = ClientError::File(Error::from(ErrorKind::StorageFull));
        let (code, said) = of_file(full, "written", Path::new("/backup/a.tmagent")).read();
        assert_eq!(code, 2);
        assert!(said.is_some_and(|said| said.starts_with("/backup/a.tmagent cannot be written: ")));
        let tenant = || "t".to_owned();
        let other = ClientError::OtherTenant { found: tenant(), tenant: tenant() };
        let (_, said) = of_file(other, "read", Path::new("/backup/a.tmagent")).read();
        assert!(said.is_some_and(|said| !said.contains("/backup")));
    }

    #[test]
    fn a_closed_pipe_ends_an_export_quietly_and_nothing_else_does() {
        let file = |kind: ErrorKind| ClientError::File(Error::from(kind));
        let unknown =
            || ClientError::UnknownAgent { agent: "a".into(), tenant: "t".into(), queue: "q".into() };
        for (error, code, says) in [
            (file(ErrorKind::BrokenPipe), 0, None),
            (file(ErrorKind::StorageFull), 1, Some("cannot write the output")),
            (unknown(), 4, Some("agent a of tenant t")),
        ] {
            let (found, said) = unwritten(error).read();
            assert_eq!(found, code);
            assert!(
                said.as_deref().map_or(says.is_none(), |said| says.is_some_and(|part| said.contains(part)))
            );
        }
    }
}
