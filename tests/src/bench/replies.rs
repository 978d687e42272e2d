//! What it costs that replies are drawn, and that they must have a form; and what a turn notices of grammars that are made to exhaust
//! a worker.
//!
//! One worker a model, without speculation, which helps some texts more than others. The kinds of replies take turns.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};
use turnmill_client::schema::{Event, FinishReason, Outcome, ResponseFormat, Sampling};
use turnmill_client::{Client, ClientError, NewTurn};

use super::report::Samples;
use super::rounds::{median, percentile};
use super::{BenchError, say};
use crate::line::{exactly, ids};
use crate::redis_server::RedisServer;
use crate::worker::Worker;

/// Turns of a burst, all at once.
const TURNS: u64 = 8;
/// Tokens of each reply.
const REPLY_TOKENS: u32 = 200;
/// Tokens of the turn that is watched while others attack.
const WATCHED_TOKENS: u32 = 400;
/// Attacks that are under way at once.
const ATTACKERS: usize = 2;

/// What a burst's replies are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The likeliest tokens.
    Greedy,
    /// Tokens drawn at temperature 1 of those that have 0.95 together.
    Drawn,
    /// The likeliest tokens that fit a schema.
    GreedySchema,
    /// Tokens drawn of those that fit a schema.
    DrawnSchema,
}

impl Kind {
    /// In the order in which they are told; the first of each pair is what the second is compared with.
    pub const ALL: [Self; 4] = [Self::Greedy, Self::Drawn, Self::GreedySchema, Self::DrawnSchema];

    /// As tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::Drawn => "top_p 0.95",
            Self::GreedySchema => "greedy, schema",
            Self::DrawnSchema => "top_p 0.95, schema",
        }
    }

    /// What it is compared with.
    pub fn without(self) -> Option<Self> {
        match self {
            Self::Greedy => None,
            Self::Drawn | Self::GreedySchema => Some(Self::Greedy),
            Self::DrawnSchema => Some(Self::Drawn),
        }
    }

    fn turn(self, burst: u64, number: u64) -> NewTurn {
        let drawn = matches!(self, Self::Drawn | Self::DrawnSchema);
        let formed = matches!(self, Self::GreedySchema | Self::DrawnSchema);
        let sampling = Sampling {
            temperature: if drawn { 1.0 } else { 0.0 },
            top_p: if drawn { 0.95 } else { 1.0 },
            seed: Some(burst * TURNS + number),
            // A grammar says when its reply ends.
            ignore_eos: !formed,
            ..exactly(REPLY_TOKENS)
        };
        // No kind finds in the pool what another kind has computed.
        let turn = NewTurn::user(format!("Burst {burst}, {}: list people, number {number}.", self.name()));
        let turn = turn.sampling(sampling);
        if formed { turn.response_format(ResponseFormat::JsonSchema { schema: people() }) } else { turn }
    }
}

/// More people than a reply has tokens.
fn people() -> Value {
    let person = json!({
        "type": "object", "required": ["name", "age", "role", "tags"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 24},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "role": {"enum": ["user", "editor", "administrator"]},
            "tags": {"type": "array", "maxItems": 4, "items": {"type": "string", "maxLength": 12}},
        },
    });
    json!({"type": "array", "minItems": 200, "items": person})
}

/// What was found with one model.
#[derive(Clone, Debug, Serialize)]
pub struct Replies {
    /// Of its vocabulary.
    pub model: String,
    /// Tokens per second of 8 turns at once.
    pub tok_s: Vec<(Kind, Samples)>,
    /// How many times as fast each kind is as the one that it is compared with: the median of neighbouring bursts' ratios.
    pub ratios: Vec<(Kind, f64)>,
    /// What a turn notices of attacks.
    pub attacks: Attacks,
}

/// A turn's tokens while other turns with plain schemas run, and while turns with grammars made to be slow do.
#[derive(Clone, Debug, Serialize)]
pub struct Attacks {
    /// Turns that attacked.
    pub turns: usize,
    /// Milliseconds between two tokens that 99 of 100 wait at most, beside ordinary turns.
    pub ordinary_p99_ms: f64,
    /// The same beside attacks.
    pub attacked_p99_ms: f64,
    /// The longest that an attack took, from enqueue to its end, in seconds.
    pub slowest_s: f64,
    /// By how much the worker's memory was larger at its most, in bytes.
    pub grew_bytes: Option<u64>,
}

/// Measures one model.
pub(super) async fn measure(model: &Path, quick: bool, began: Instant) -> Result<Replies, BenchError> {
    let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let redis = tokio::task::block_in_place(RedisServer::start);
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/data/turns.jinja");
    let path = model.to_string_lossy();
    let flags = ["--model", &*path, "--chat-template", template, "--speculation", "off"];
    let worker = tokio::task::block_in_place(|| Worker::start(&redis, &flags));
    let producer = Client::builder(redis.url()).connect().await?;

    let rounds = if quick { 2 } else { 9 };
    let mut speeds = Kind::ALL.map(|_| Vec::new());
    for round in 0..=rounds {
        say(began, &format!("replies of {name}, round {round} of {rounds}"));
        let mut turns: Vec<usize> = (0..Kind::ALL.len()).collect();
        turns.rotate_left(round as usize % Kind::ALL.len());
        for index in turns {
            let speed = burst(&producer, Kind::ALL[index], round).await?;
            // The first round warms up.
            if round > 0 {
                speeds[index].push(speed);
            }
        }
    }
    let of = |kind: Kind| &speeds[kind as usize];
    let ratio = |kind: Kind| {
        let ratios = of(kind).iter().zip(of(kind.without()?)).map(|(speed, without)| speed / without);
        Some((kind, median(&ratios.collect::<Vec<_>>())))
    };
    let ratios = Kind::ALL.into_iter().filter_map(ratio).collect();
    say(began, &format!("attacks on {name}"));
    let attacks = attacks(&producer, &worker, rounds).await?;
    let tok_s = Kind::ALL.map(|kind| (kind, Samples::new(kind.name(), of(kind).clone())));
    Ok(Replies { model: name, tok_s: tok_s.into(), ratios, attacks })
}

/// Tokens per second of one burst.
async fn burst(producer: &Client, kind: Kind, number: u64) -> Result<f64, BenchError> {
    let turns = (0..TURNS).map(|turn| kind.turn(number, turn)).collect();
    let began = Instant::now();
    for turn in ids(producer.enqueue_batch(turns).await.map_err(ClientError::from)?) {
        let result = producer.wait(turn).await?;
        let made = u64::from(result.usage.completion_tokens);
        if result.finish != Some(FinishReason::Length) {
            let reason = result.error.unwrap_or_else(|| format!("{:?}", result.finish));
            return Err(BenchError::Turn { wanted: REPLY_TOKENS, made, reason });
        }
    }
    Ok((TURNS * u64::from(REPLY_TOKENS)) as f64 / began.elapsed().as_secs_f64())
}

/// Grammars that take long to compile or to follow, and those that take much memory. The worker's tests have more.
fn attack(number: usize) -> ResponseFormat {
    let schema = |schema| ResponseFormat::JsonSchema { schema };
    let regex = |regex: &str| ResponseFormat::Regex { regex: regex.to_owned() };
    let lark = |grammar: String| ResponseFormat::Lark { grammar };
    let names = |count: usize| (0..count).map(|n| format!("d{n}"));
    // None is like another, or the second would be known already.
    match number % 10 {
        0 => lark(format!("start: start start | \"a{number}\" | start start start\n")),
        1 => regex(&format!("((x{{1,1000}}){{1,1000}}){{1,{}}}", 900 + number)),
        2 => schema(json!({"enum": names(5_000 + number).collect::<Vec<_>>()})),
        3 => {
            let properties: serde_json::Map<_, _> =
                names(900 + number).map(|name| (name, json!({}))).collect();
            schema(json!({"type": "object", "properties": properties}))
        }
        4 => schema(json!({"const": format!("{number}{}", "xy z".repeat(15_000))})),
        5 => {
            schema(json!({"anyOf": (0..1_400 + number).map(|n| json!({"minLength": n})).collect::<Vec<_>>()}))
        }
        6 => regex(&format!(r"(\p{{L}}{{1,500}}\p{{N}}{{1,500}}){{1,{}}}", 40 + number)),
        7 => lark(format!(
            "start: A\nA: /(.|\\n)*/ & ~/(.|\\n)*(ab|cd|ef){{5,{}}}(.|\\n)*/ & /(.|\\n){{1,10000}}/\n",
            150 + number
        )),
        8 => regex(&format!("x{{{}}}", 1_000_000 + number)),
        _ => {
            let rules: String = (0..800).map(|n| format!("a{n}: (a{} \"x{number}\")?\n", n + 1)).collect();
            lark(rules + "a800: \"y\"\nstart: a0\n")
        }
    }
}

async fn attacks(producer: &Client, worker: &Worker, rounds: u64) -> Result<Attacks, BenchError> {
    let ordinary = |number: usize| Kind::DrawnSchema.turn(rounds + 1, number as u64);
    let hostile = |number: usize| {
        let sampling = Sampling { temperature: 1.0, seed: Some(number as u64), ..exactly(REPLY_TOKENS) };
        NewTurn::user("Go on.")
            .response_format(attack(number))
            .sampling(Sampling { ignore_eos: false, ..sampling })
    };
    let (mut quiet, mut attacked, mut turns, mut slowest) = (Vec::new(), Vec::new(), 0, 0.0_f64);
    let before = super::agents::peak_bytes(worker.pid());
    for round in 0..rounds as usize {
        let (gaps, _) = beside(producer, ordinary, round).await?;
        quiet.extend(gaps);
        let (gaps, took) = beside(producer, hostile, round).await?;
        attacked.extend(gaps);
        turns += took.len();
        slowest = took.into_iter().fold(slowest, f64::max);
    }
    let after = super::agents::peak_bytes(worker.pid());
    quiet.sort_by(f64::total_cmp);
    attacked.sort_by(f64::total_cmp);
    Ok(Attacks {
        turns,
        ordinary_p99_ms: percentile(&quiet, 0.99),
        attacked_p99_ms: percentile(&attacked, 0.99),
        slowest_s: slowest,
        grew_bytes: before.zip(after).map(|(before, after)| after.saturating_sub(before)),
    })
}

/// The milliseconds between what a reader of a plain turn is given, a token or more, while turns that `other` makes come one after the other; and the seconds that each of
/// these took.
async fn beside(
    producer: &Client,
    other: impl Fn(usize) -> NewTurn,
    round: usize,
) -> Result<(Vec<f64>, Vec<f64>), BenchError> {
    let watched =
        producer.enqueue(NewTurn::user("Tell me a story.").sampling(exactly(WATCHED_TOKENS))).await?.turn;
    let watching = async {
        let (mut events, mut last, mut gaps) = (producer.follow(watched, None), None, Vec::new());
        while let Some(event) = events.next().await {
            if let Event::Delta(_) = event?.event {
                let now = Instant::now();
                gaps.extend(last.replace(now).map(|before: Instant| 1e3 * (now - before).as_secs_f64()));
            }
        }
        Ok::<_, BenchError>(gaps)
    };
    let over = AtomicBool::new(false);
    let others = async |attacker: usize| {
        let mut took = Vec::new();
        let mut number = 10 * round + attacker;
        while !over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let turn = producer.enqueue(other(number)).await?.turn;
            let result = producer.wait(turn).await?;
            if result.outcome != Outcome::Completed && result.error.is_none() {
                return Err(BenchError::Turn { wanted: 0, made: 0, reason: format!("{result:?}") });
            }
            took.push(began.elapsed().as_secs_f64());
            number += ATTACKERS;
        }
        Ok::<_, BenchError>(took)
    };
    let watching = async {
        let gaps = watching.await;
        over.store(true, Ordering::Relaxed);
        gaps
    };
    let attackers = futures::future::try_join_all((0..ATTACKERS).map(others));
    let (gaps, took) = futures::future::try_join(watching, attackers).await?;
    Ok((gaps, took.concat()))
}
