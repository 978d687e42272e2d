//! `s3`: an S3-speaking server of one folder, for tests. It prints its address when it listens.
//!
//! The protocol is s3s, the files are s3s-fs. Ours is what stands before them: faults on demand, counters, and an
//! order among requests, since s3s-fs looks for an object and then writes it, which is no conditional put.
//!
//! Invariants: a request that changes something runs alone, and to its end even where its client is gone.

mod body;
mod fate;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use clap::Parser;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::RwLock;
use turnmill_tests::s3_server::{
    ACCESS_KEY_ID, BUCKET, COUNTERS_PATH, Counters, FAULTS_PATH, Faults, SECRET_ACCESS_KEY,
};

use crate::fate::{Fate, Fates, Operation};

/// Longest body of a request; it is held in memory.
const MAX_BODY_BYTES: usize = 1 << 30;

/// Serves a folder over S3, with one bucket and one set of credentials, both known to the tests.
#[derive(Parser)]
#[command(name = "s3")]
struct Settings {
    /// Where to listen on 127.0.0.1; 0 takes a free port.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// What to serve: its folders are buckets.
    #[arg(long)]
    folder: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Settings::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("s3: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Settings) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(settings.folder.join(BUCKET))?;
    let files = FileSystem::new(&settings.folder).map_err(|error| format!("{error:?}"))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let server = Arc::new(Server {
        service: service.build(),
        order: RwLock::new(()),
        fates: Mutex::new(Fates::default()),
        counters: Arc::default(),
    });
    let router = Router::new()
        .route(FAULTS_PATH, put(set_faults))
        .route(COUNTERS_PATH, get(counters))
        .fallback(answer)
        .with_state(server);
    let listener = TcpListener::bind(("127.0.0.1", settings.port)).await?;
    println!("{}", listener.local_addr()?);
    Ok(axum::serve(listener, router).await?)
}

struct Server {
    service: S3Service,
    /// Held alone by what changes something.
    order: RwLock<()>,
    fates: Mutex<Fates>,
    counters: Arc<Mutex<Counters>>,
}

/// What is behind these locks is whole after every statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn set_faults(State(server): State<Arc<Server>>, Json(faults): Json<Faults>) -> StatusCode {
    *locked(&server.fates) = Fates::new(faults);
    StatusCode::NO_CONTENT
}

async fn counters(State(server): State<Arc<Server>>) -> Json<Counters> {
    Json(*locked(&server.counters))
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let operation = Operation::of(&parts.method, &parts.uri);
    // Whole before anything else: a fault is answered, where a request cut off would only see its connection end.
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let (delay, fate) = locked(&server.fates).draw(operation);
    server.count(operation, &body, &fate);
    tokio::time::sleep(delay).await;
    match fate {
        Fate::Hang => std::future::pending().await,
        Fate::Refused(status, code) => refusal(status, code),
        Fate::Done(cut) => {
            let request = Request::from_parts(parts, s3s::Body::from(body));
            let response = server.clone().done(request).await;
            if operation == Operation::Put && response.status() == StatusCode::PRECONDITION_FAILED {
                locked(&server.counters).refused_puts += 1;
            }
            if operation == Operation::Get && response.status().is_success() {
                return body::sent(response, cut, server.counters.clone());
            }
            response
        }
    }
}

impl Server {
    fn count(&self, operation: Operation, body: &Bytes, fate: &Fate) {
        let mut counters = locked(&self.counters);
        counters.gets += u64::from(operation == Operation::Get);
        counters.puts += u64::from(operation == Operation::Put);
        counters.spoiled += u64::from(*fate != Fate::Done(None));
        counters.bytes_in += body.len() as u64;
    }

    /// Does what is asked, in a task of its own, since ours ends when its client goes.
    async fn done(self: Arc<Self>, request: s3s::HttpRequest) -> Response {
        let task = tokio::spawn(async move {
            if matches!(*request.method(), Method::GET | Method::HEAD) {
                let _reads = self.order.read().await;
                self.service.call(request).await
            } else {
                let _changes = self.order.write().await;
                self.service.call(request).await
            }
        });
        match task.await {
            Ok(Ok(response)) => response.map(Body::new),
            Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

/// An error in the words of S3.
fn refusal(status: StatusCode, code: &str) -> Response {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <Error><Code>{code}</Code><Message>A fault that was asked for.</Message></Error>"
    );
    (status, [(CONTENT_TYPE, "application/xml")], text).into_response()
}
