//! Models from the hub, against a local server that speaks its protocol: a listing, redirections, ETags, ranges, tokens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{StreamExt as _, stream};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use turnmill_worker::hub::{HubModel, HubSettings, fetch};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository `a/b` and what becomes of requests for it.
#[derive(Default)]
struct Repository {
    files: BTreeMap<String, Vec<u8>>,
    /// The token that it asks for.
    token: Option<String>,
    /// How many downloads break off, and after how many bytes each.
    breaks: u32,
    break_after: usize,
    /// What is sent instead of a file's contents.
    instead: Option<Vec<u8>>,
    /// Status of the listing, where it is not given.
    refuse: Option<StatusCode>,
    /// Method, path, range and authorisation of each request.
    seen: Vec<(Method, String, Option<String>, Option<String>)>,
}

type Shared = Arc<Mutex<Repository>>;

struct Hub {
    shared: Shared,
    address: String,
    cache: TempDir,
}

impl Hub {
    fn start(repository: Repository) -> Self {
        let shared = Arc::new(Mutex::new(repository));
        let router = Router::new()
            .route("/api/models/a/b/revision/{revision}", get(list))
            .route("/old/name/resolve/{commit}/{*file}", get(describe))
            .route("/a/b/resolve/{commit}/{*file}", get(describe))
            // Another host in truth: contents lie elsewhere.
            .route("/contents/{*file}", get(contents))
            .with_state(shared.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a local port");
        listener.set_nonblocking(true).expect("a socket");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                axum::serve(listener, router).await.expect("it serves");
            });
        });
        Self { shared, address, cache: tempfile::tempdir().expect("a temporary directory") }
    }

    fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.address.parse().expect("an address"),
            token: None,
            cache: self.cache.path().to_owned(),
            offline: false,
            pause: Duration::from_millis(1),
        }
    }

    fn fetch(&self, model: &str) -> Result<std::path::PathBuf, String> {
        self.fetch_as(model, &self.settings())
    }

    fn fetch_as(&self, model: &str, settings: &HubSettings) -> Result<std::path::PathBuf, String> {
        let model: HubModel = model.parse().expect("a name");
        fetch(&model, settings, &|_| ()).map_err(|error| error.to_string())
    }

    fn seen(&self) -> Vec<(Method, String, Option<String>, Option<String>)> {
        std::mem::take(&mut self.shared.lock().expect("the server lives").seen)
    }

    fn downloads(&self) -> Vec<(String, Option<String>)> {
        let seen = self.seen().into_iter().filter(|(_, path, ..)| path.starts_with("/contents"));
        seen.map(|(_, path, range, _)| (path, range)).collect()
    }
}

fn note(shared: &Shared, method: Method, path: String, headers: &HeaderMap) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    shared.lock().expect("the test lives").seen.push((method, path, text("range"), text("authorization")));
}

async fn list(
    State(shared): State<Shared>,
    method: Method,
    headers: HeaderMap,
    UrlPath(revision): UrlPath<String>,
) -> Response {
    note(&shared, method, format!("/api/{revision}"), &headers);
    let repository = shared.lock().expect("the test lives");
    if let Some(status) = repository.refuse {
        return status.into_response();
    }
    let token = headers.get("authorization").and_then(|value| value.to_str().ok());
    if repository.token.is_some() && token != repository.token.as_deref() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if !["main", "v1", COMMIT].contains(&revision.as_str()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let siblings: Vec<_> =
        repository.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
    axum::Json(serde_json::json!({"sha": COMMIT, "siblings": siblings})).into_response()
}

async fn describe(
    State(shared): State<Shared>,
    method: Method,
    headers: HeaderMap,
    UrlPath((commit, file)): UrlPath<(String, String)>,
) -> Response {
    note(&shared, method, format!("/resolve/{file}"), &headers);
    assert_eq!(commit, COMMIT);
    let repository = shared.lock().expect("the test lives");
    let Some(data) = repository.files.get(&file) else { return StatusCode::NOT_FOUND.into_response() };
    let etag = format!("\"{}\"", hex(data));
    let size = data.len().to_string();
    let headers =
        [("location", format!("/contents/{file}")), ("x-linked-etag", etag), ("x-linked-size", size)];
    (StatusCode::FOUND, headers).into_response()
}

async fn contents(
    State(shared): State<Shared>,
    method: Method,
    headers: HeaderMap,
    UrlPath(file): UrlPath<String>,
) -> Response {
    note(&shared, method, format!("/contents/{file}"), &headers);
    let mut repository = shared.lock().expect("the test lives");
    let data = repository.instead.clone().unwrap_or_else(|| repository.files[&file].clone());
    let range = headers.get("range").and_then(|value| value.to_str().ok());
    let start: usize = range
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or_default();
    if start > 0 && start >= data.len() {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let status = if start > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let rest = data[start..].to_vec();
    if repository.breaks > 0 {
        repository.breaks -= 1;
        let part = rest[..rest.len().min(repository.break_after)].to_vec();
        // The connection breaks after a part of what was announced.
        let broken = async {
            // By then the part is on its way.
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(std::io::Error::other("cut off"))
        };
        let pieces = stream::once(async { Ok(part) }).chain(stream::once(broken));
        let headers = [("content-length", rest.len().to_string())];
        return (status, headers, Body::from_stream(pieces)).into_response();
    }
    (status, rest).into_response()
}

fn hex(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 31 % 251) as u8).collect()
}

fn files(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    names.iter().enumerate().map(|(i, name)| ((*name).to_owned(), bytes(10_000 + i))).collect()
}

#[test]
fn a_gguf_file_is_fetched_once_and_lies_where_the_hubs_tools_look() {
    let hub = Hub::start(Repository { files: files(&["q4/x.gguf"]), ..Repository::default() });
    let path = hub.fetch("hf:a/b/q4/x.gguf").expect("it is fetched");
    assert_eq!(std::fs::read(&path).expect("a file"), bytes(10_000));
    let within = path.strip_prefix(hub.cache.path()).expect("in the cache");
    assert_eq!(within, Path::new("models--a--b/snapshots").join(COMMIT).join("q4/x.gguf"));
    let reference = hub.cache.path().join("models--a--b/refs/main");
    assert_eq!(std::fs::read_to_string(reference).expect("a reference"), COMMIT);
    let blob = hub.cache.path().join("models--a--b/blobs").join(hex(&bytes(10_000)));
    assert_eq!(std::fs::canonicalize(&path).ok(), std::fs::canonicalize(blob).ok());
    assert_eq!(hub.downloads().len(), 1);
    assert_eq!(hub.fetch("hf:a/b/q4/x.gguf"), Ok(path.clone()));
    assert_eq!(hub.fetch("hf:a/b"), Ok(path), "it is the only one");
    assert_eq!(hub.downloads(), []);
}

#[test]
fn a_folder_of_safetensors_has_what_a_model_needs_and_nothing_else() {
    let needed = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let tool_use = "additional_chat_templates/tool_use.jinja";
    let beside = ["model.safetensors.index.json", "tokenizer.json", "chat_template.jinja"];
    let all = [&needed[..], &beside[..], &[tool_use, "README.md", "onnx/m.onnx"]].concat();
    let hub = Hub::start(Repository { files: files(&all), ..Repository::default() });
    let path = hub.fetch("hf:a/b@v1").expect("it is fetched");
    let mut there: Vec<_> =
        std::fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
    there.sort();
    let mut expected = [&needed[..], &beside[..], &["additional_chat_templates"]].concat();
    expected.sort_unstable();
    assert_eq!(there, expected);
    assert!(std::fs::read(path.join(tool_use)).is_ok(), "its link leads to the contents");
    assert!(hub.cache.path().join("models--a--b/refs/v1").is_file());
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let repository =
        Repository { files: files(&["x.gguf"]), breaks: 2, break_after: 4000, ..Repository::default() };
    let hub = Hub::start(repository);
    let done = Mutex::new(Vec::new());
    let model: HubModel = "hf:a/b".parse().expect("a name");
    let path = fetch(&model, &hub.settings(), &|fetching| {
        assert_eq!((fetching.file, fetching.size), ("x.gguf", Some(10_000)));
        done.lock().expect("a list").push(fetching.done);
    });
    assert_eq!(std::fs::read(path.expect("it is fetched")).expect("a file"), bytes(10_000));
    let ranges: Vec<_> = hub.downloads().into_iter().map(|(_, range)| range).collect();
    assert_eq!(ranges, [None, Some("bytes=4000-".to_owned()), Some("bytes=8000-".to_owned())]);
    let done = done.into_inner().expect("a list");
    assert!(done.is_sorted() && done.last() == Some(&10_000), "{done:?}");
}

#[test]
fn a_worker_that_starts_again_goes_on_with_what_is_there() {
    let repository =
        Repository { files: files(&["x.gguf"]), breaks: 9, break_after: 100, ..Repository::default() };
    let hub = Hub::start(repository);
    hub.shared.lock().expect("the server lives").break_after = 0;
    let said = hub.fetch("hf:a/b").expect_err("it never gets further");
    assert!(said.contains("x.gguf broke off after 0 bytes") && said.contains("run this again"), "{said}");
    let blobs = hub.cache.path().join("models--a--b/blobs");
    let growing = blobs.join(hex(&bytes(10_000)) + ".incomplete");
    std::fs::write(&growing, &bytes(10_000)[..6000]).expect("the cache can be written");
    hub.shared.lock().expect("the server lives").breaks = 0;
    hub.seen();
    let path = hub.fetch("hf:a/b").expect("it is fetched");
    assert_eq!(std::fs::read(path).expect("a file"), bytes(10_000));
    assert_eq!(hub.downloads()[0].1.as_deref(), Some("bytes=6000-"));
    assert!(!growing.exists());
}

#[test]
fn what_arrives_damaged_is_removed_and_fetched_anew() {
    let repository =
        Repository { files: files(&["x.gguf"]), instead: Some(vec![0; 10_000]), ..Repository::default() };
    let hub = Hub::start(repository);
    let said = hub.fetch("hf:a/b").expect_err("other bytes");
    assert!(said.contains("x.gguf arrived damaged (SHA-256"), "{said}");
    hub.shared.lock().expect("the server lives").instead = None;
    assert!(hub.fetch("hf:a/b").is_ok());
}

#[test]
fn without_the_hub_what_was_fetched_before_is_used() {
    let hub = Hub::start(Repository { files: files(&["x.gguf", "y.gguf"]), ..Repository::default() });
    let path = hub.fetch("hf:a/b/x.gguf").expect("it is fetched");
    let gone = HubSettings { endpoint: "http://127.0.0.1:1".parse().expect("an address"), ..hub.settings() };
    assert_eq!(hub.fetch_as("hf:a/b/x.gguf", &gone), Ok(path.clone()));
    assert_eq!(hub.fetch_as(&format!("hf:a/b@{COMMIT}/x.gguf"), &gone), Ok(path.clone()));
    let said = hub.fetch_as("hf:a/b/y.gguf", &gone).expect_err("it was never fetched");
    assert!(said.contains("cannot reach http://127.0.0.1:1") && said.contains("HF_ENDPOINT"), "{said}");
    hub.seen();
    let offline = HubSettings { offline: true, ..hub.settings() };
    assert_eq!(hub.fetch_as("hf:a/b/x.gguf", &offline), Ok(path));
    assert!(hub.fetch_as("hf:a/b/y.gguf", &offline).expect_err("not kept").contains("HF_HUB_OFFLINE"));
    assert_eq!(hub.seen(), []);
}

#[test]
fn each_refusal_is_one_sentence_that_says_what_to_do() {
    let hub = Hub::start(Repository {
        files: files(&["x.gguf"]),
        token: Some("Bearer secret".into()),
        ..Repository::default()
    });
    let said = hub.fetch("hf:a/b").expect_err("no token");
    assert!(said.contains("a/b does not exist on") && said.contains("HF_TOKEN"), "{said}");
    let known = HubSettings { token: Some("secret".into()), ..hub.settings() };
    hub.fetch_as("hf:a/b", &known).expect("with the token");
    for (refuse, part) in
        [(StatusCode::FORBIDDEN, "accept its terms at"), (StatusCode::SERVICE_UNAVAILABLE, "answered 503")]
    {
        hub.shared.lock().expect("the server lives").refuse = Some(refuse);
        let said = hub.fetch_as("hf:a/b", &known).expect_err("it is refused");
        assert!(said.contains(part) && said.lines().count() == 1 && !said.contains("secret"), "{said}");
    }
    hub.shared.lock().expect("the server lives").refuse = None;
    let said = hub.fetch_as("hf:a/b@other", &known).expect_err("no such revision");
    assert!(said.contains("a/b at revision other is not on"), "{said}");
    let said = hub.fetch_as("hf:a/b/z.gguf", &known).expect_err("no such file");
    assert!(said.contains("no GGUF file z.gguf") && said.contains("x.gguf"), "{said}");
}
