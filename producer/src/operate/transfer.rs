//! An agent as one file, written and read one record at a time (see [`turnmill_schema::agent_file`]).
//!
//! Invariants: the agent is made in one step, after the whole file was read; until then nothing but objects was put, which
//! are verified when they are loaded, and are garbage if the file turns out to be damaged.

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use turnmill_schema::AgentName;
use turnmill_schema::agent_file::{
    AgentFileError, ExportedAgent, RECORD_START_BYTES, Record, RecordStart, START, Totals, check_start,
};
use turnmill_schema::envelope::decode;
use turnmill_schema::{Manifest, TranscriptEntry};

use super::Operator;
use super::history::StoredHistory;
use crate::error::ClientError;
use crate::store::NO_STORE;

/// What went into a file or came out of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transferred {
    /// The agent.
    pub agent: AgentName,
    /// Turns of its history.
    pub turns: u64,
    /// Objects of K and V that were written: into the file, or into the store unless they were there.
    pub objects: u64,
    /// Why some of its K and V was left out, which costs prefill and nothing else.
    pub left_out: Option<String>,
}

impl Operator {
    /// Writes an agent to `file`: its history and, where the client has a store, its K and V as far as they are there.
    pub async fn export_agent(
        &self,
        agent: &AgentName,
        file: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Transferred, ClientError> {
        let StoredHistory { entries, on_dead, manifest } = self.stored_history(agent).await?;
        let tenant = self.client.settings.tenant.clone();
        let head = ExportedAgent { tenant, agent: agent.clone(), on_dead, manifest };
        file.write_all(&START).await?;
        write(file, &Record::Agent(head)).await?;
        let turns = entries.len() as u64;
        for (_, entry) in entries {
            write(file, &Record::Entry(entry)).await?;
        }
        let (objects, left_out) = self.export_objects(manifest.as_ref(), file).await?;
        write(file, &Record::End(Totals { entries: turns, objects })).await?;
        file.flush().await?;
        Ok(Transferred { agent: agent.clone(), turns, objects, left_out })
    }

    /// How many objects were written, and why not all.
    async fn export_objects(
        &self,
        manifest: Option<&Manifest>,
        file: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(u64, Option<String>), ClientError> {
        let Some(manifest) = manifest else { return Ok((0, None)) };
        let Some(store) = &self.client.payloads else {
            return Ok((0, Some(NO_STORE.to_owned())));
        };
        let (mut segments, mut objects) = (store.segments(manifest), 0);
        while let Some(object) = segments.next().await? {
            match object {
                Ok(object) => write(file, &Record::Object(object)).await?,
                Err(why) => return Ok((objects, Some(why))),
            }
            objects += 1;
        }
        Ok((objects, None))
    }

    /// Makes the agent that `file` holds, under its own name or as `name`. Refused where it has a history or open turns,
    /// and where the file is of another tenant.
    pub async fn import_agent(
        &self,
        file: &mut (impl AsyncRead + Unpin),
        name: Option<&AgentName>,
    ) -> Result<Transferred, ClientError> {
        let mut start = START;
        read_whole(file, &mut start).await?;
        check_start(&start)?;
        let Record::Agent(head) = read(file).await? else {
            return Err(malformed("its first record is not an agent"));
        };
        self.check_tenant(&head)?;
        let agent = name.unwrap_or(&head.agent).clone();
        self.check_free(&agent).await?;
        let mut history =
            StoredHistory { entries: Vec::new(), on_dead: head.on_dead, manifest: head.manifest };
        let objects = self.import_records(file, &mut history).await?;
        self.seed(&agent, &history).await?;
        let is_left_out = objects > 0 && self.client.payloads.is_none();
        Ok(Transferred {
            agent,
            turns: history.entries.len() as u64,
            objects: if is_left_out { 0 } else { objects },
            left_out: is_left_out.then(|| NO_STORE.to_owned()),
        })
    }

    /// Reads what follows the agent, to the file's end; how many objects there are.
    async fn import_records(
        &self,
        file: &mut (impl AsyncRead + Unpin),
        history: &mut StoredHistory,
    ) -> Result<u64, ClientError> {
        let mut objects = 0;
        loop {
            match read(file).await? {
                Record::Agent(_) => return Err(malformed("it holds more than one agent")),
                Record::Entry(entry) => {
                    let turn = decode::<TranscriptEntry>(&entry)?.turn;
                    history.entries.push((turn, entry));
                }
                Record::Object(object) => {
                    objects += 1;
                    if let Some(store) = &self.client.payloads {
                        store.put_segment(object).await?;
                    }
                }
                Record::End(totals) => {
                    let found = Totals { entries: history.entries.len() as u64, objects };
                    if found != totals {
                        return Err(malformed("it lacks records that its end counts"));
                    }
                    if file.read(&mut [0]).await? > 0 {
                        return Err(malformed("something follows its end"));
                    }
                    return Ok(objects);
                }
            }
        }
    }

    fn check_tenant(&self, head: &ExportedAgent) -> Result<(), ClientError> {
        let tenant = &self.client.settings.tenant;
        if head.tenant == *tenant {
            return Ok(());
        }
        Err(ClientError::OtherTenant { found: head.tenant.to_string(), tenant: tenant.to_string() })
    }
}

fn malformed(reason: &str) -> ClientError {
    AgentFileError::Malformed { reason: reason.to_owned() }.into()
}

async fn write(file: &mut (impl AsyncWrite + Unpin), record: &Record) -> Result<(), ClientError> {
    Ok(file.write_all(&record.encode()?).await?)
}

async fn read(file: &mut (impl AsyncRead + Unpin)) -> Result<Record, ClientError> {
    let mut start = [0; RECORD_START_BYTES];
    read_whole(file, &mut start).await?;
    let start = RecordStart::read(start)?;
    let mut body = Vec::new();
    // As much as there is: a length that lies allocates nothing.
    file.take(start.body_bytes() as u64).read_to_end(&mut body).await?;
    Ok(start.open(body)?)
}

async fn read_whole(file: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) -> Result<(), ClientError> {
    match file.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(AgentFileError::Cut.into()),
        Err(error) => Err(error.into()),
    }
}
