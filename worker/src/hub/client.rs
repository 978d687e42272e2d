//! The hub over HTTP: what a repository has, and its files.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, redirect};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tracing::warn;
use url::Url;

use super::cache::{Cache, cannot};
use super::{Fetching, HubError, HubModel, HubSettings, Progress};

/// A server that takes longer to accept a connection is taken to be unreachable.
const CONNECT: Duration = Duration::from_secs(10);
/// A download from which nothing comes for this long broke off.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a download may break off without getting further.
const FAILURES: u32 = 5;
/// Redirections within the hub, of repositories that were renamed.
const RENAMES: usize = 5;
/// What the hub says about a file whose contents lie elsewhere.
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";

/// Asks for one model.
pub struct Client {
    /// Follows redirections; tokens stay with the host they are for.
    http: reqwest::Client,
    /// Follows none.
    plain: reqwest::Client,
    endpoint: Url,
    token: Option<String>,
    model: HubModel,
    pause: Duration,
}

/// What a repository has at a revision.
pub struct Listing {
    /// The commit that the revision is.
    pub commit: String,
    /// Names of its files.
    pub files: Vec<String>,
}

#[derive(Deserialize)]
struct Repository {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A file's contents, as the hub names them.
struct Contents {
    etag: String,
    size: Option<u64>,
}

impl Client {
    /// A client for `model`.
    pub fn new(settings: &HubSettings, model: &HubModel) -> Result<Self, HubError> {
        crate::cryptography::choose();
        let build = |redirections| {
            reqwest::Client::builder()
                .user_agent(concat!("turnmill/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT)
                .read_timeout(SILENCE)
                .redirect(redirections)
                .build()
                .map_err(|e| HubError::System(std::io::Error::other(e)))
        };
        Ok(Self {
            http: build(redirect::Policy::default())?,
            plain: build(redirect::Policy::none())?,
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            model: model.clone(),
            pause: settings.pause,
        })
    }

    /// What the repository has.
    pub async fn list(&self) -> Result<Listing, HubError> {
        let HubModel { owner, name, revision, .. } = &self.model;
        let url = self.url(&["api", "models", owner, name, "revision", revision]);
        let what = format!("{} at revision {revision}", self.model.repository());
        let response = self.ask(self.http.get(url)).await?;
        let response = self.accept(response, &what)?;
        let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        let odd = |reason: String| HubError::NotTheHub { endpoint: self.place(), reason };
        let repository: Repository = serde_json::from_slice(&body).map_err(|e| odd(e.to_string()))?;
        // It becomes the name of a folder.
        if !is_name(&repository.sha) {
            return Err(odd(format!("it names the commit {:?}", repository.sha)));
        }
        let files = repository.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: repository.sha, files })
    }

    /// Puts `file` of `commit` into `cache`.
    pub async fn fetch(
        &self,
        cache: &Cache,
        commit: &str,
        file: &str,
        progress: Progress<'_>,
    ) -> Result<(), HubError> {
        let HubModel { owner, name, .. } = &self.model;
        let mut url = self.url(&[owner, name, "resolve", commit]);
        url.path_segments_mut().expect("an http address has a path").extend(file.split('/'));
        let contents = self.describe(url.clone(), file).await?;
        let _lock = cache.lock(&contents.etag)?;
        if !cache.blob(&contents.etag).is_file() {
            let growing = cache.incomplete(&contents.etag)?;
            self.download(url, file, &contents, &growing, progress).await?;
            verify(file, &contents, &growing)?;
            let whole = cache.blob(&contents.etag);
            fs::rename(&growing, &whole).map_err(cannot(&whole))?;
        }
        cache.name(commit, file, &contents.etag)
    }

    /// The ETag and size of a file. The first answer has them, not the one of the host it may redirect to.
    async fn describe(&self, mut url: Url, file: &str) -> Result<Contents, HubError> {
        for _ in 0..RENAMES {
            let response = self.ask(self.plain.request(Method::HEAD, url.clone())).await?;
            let headers = response.headers();
            let moved = header(headers, LOCATION.as_str()).filter(|_| header(headers, LINKED_ETAG).is_none());
            match moved.and_then(|to| url.join(&to).ok()).filter(|to| to.origin() == url.origin()) {
                Some(to) if response.status().is_redirection() => url = to,
                _ => return self.contents(response, file),
            }
        }
        Err(HubError::NotTheHub {
            endpoint: self.place(),
            reason: format!("{file} is redirected in a circle"),
        })
    }

    fn contents(&self, response: Response, file: &str) -> Result<Contents, HubError> {
        let what = format!("{file} of {}", self.model.repository());
        let response =
            if response.status().is_redirection() { response } else { self.accept(response, &what)? };
        let headers = response.headers();
        let etag = header(headers, LINKED_ETAG).or_else(|| header(headers, ETAG.as_str()));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        // It becomes the name of a file.
        let Some(etag) = etag.filter(|etag| is_name(etag)) else {
            let reason = format!("{file} has no ETag");
            return Err(HubError::NotTheHub { endpoint: self.place(), reason });
        };
        let of_itself =
            || header(headers, CONTENT_LENGTH.as_str()).filter(|_| response.status().is_success());
        let size = header(headers, LINKED_SIZE).or_else(of_itself).and_then(|size| size.parse().ok());
        Ok(Contents { etag, size })
    }

    /// Downloads into `growing`, from where it ends; goes on when the connection breaks.
    async fn download(
        &self,
        url: Url,
        file: &str,
        contents: &Contents,
        growing: &Path,
        progress: Progress<'_>,
    ) -> Result<(), HubError> {
        let mut failures = 0;
        loop {
            let before = length(growing);
            let reason = match self.download_once(&url, file, contents, growing, progress).await {
                Ok(()) if contents.size.is_none_or(|size| length(growing) >= size) => return Ok(()),
                Ok(()) => "the connection was closed".to_owned(),
                Err(HubError::Unreachable { reason, .. }) => reason,
                Err(HubError::Refused { status, .. }) if status >= 500 => {
                    format!("the hub answered {status}")
                }
                Err(error) => return Err(error),
            };
            let done = length(growing);
            failures = if done > before { 1 } else { failures + 1 };
            if failures >= FAILURES {
                return Err(HubError::BrokeOff { file: file.to_owned(), done, reason });
            }
            warn!(file, done, reason, "the download broke off and goes on");
            tokio::time::sleep(self.pause * 2u32.pow(failures - 1)).await;
        }
    }

    async fn download_once(
        &self,
        url: &Url,
        file: &str,
        contents: &Contents,
        growing: &Path,
        progress: Progress<'_>,
    ) -> Result<(), HubError> {
        let mut done = length(growing);
        if contents.size == Some(done) {
            return Ok(());
        }
        let mut request = self.http.get(url.clone());
        if done > 0 {
            request = request.header(RANGE, format!("bytes={done}-"));
        }
        let response = self.ask(request).await?;
        // More is there than the file has, or it is whole and the hub gave no size: it is fetched anew.
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            fs::remove_file(growing).map_err(cannot(growing))?;
            return Err(self.unreachable("the hub has no more of it"));
        }
        let mut response = self.accept(response, file)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            done = 0;
        }
        let mut sink = open(growing, done).map_err(cannot(growing))?;
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            sink.write_all(&chunk).map_err(cannot(growing))?;
            done += chunk.len() as u64;
            progress(Fetching { file, done, size: contents.size });
        }
        Ok(())
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Response, HubError> {
        let request = match &self.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        };
        request.send().await.map_err(|e| self.unreachable(&e))
    }

    fn accept(&self, response: Response, what: &str) -> Result<Response, HubError> {
        let (repository, endpoint) = (self.model.repository(), self.place());
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED => Err(HubError::Unauthorised { repository, endpoint }),
            StatusCode::FORBIDDEN => Err(HubError::Forbidden { repository, endpoint }),
            StatusCode::NOT_FOUND => Err(HubError::NotFound { what: what.to_owned(), endpoint }),
            status => Err(HubError::Refused { what: what.to_owned(), endpoint, status: status.as_u16() }),
        }
    }

    fn unreachable(&self, error: impl ToReason) -> HubError {
        HubError::Unreachable { endpoint: self.place(), reason: error.to_reason() }
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("the settings checked it").pop_if_empty().extend(segments);
        url
    }

    /// The address for people.
    fn place(&self) -> String {
        self.endpoint.as_str().trim_end_matches('/').to_owned()
    }
}

/// What can say why there is no connection.
trait ToReason {
    fn to_reason(&self) -> String;
}

impl ToReason for &str {
    fn to_reason(&self) -> String {
        (*self).to_owned()
    }
}

impl ToReason for &reqwest::Error {
    /// The innermost cause: the others repeat the address, which redirections may have signed.
    fn to_reason(&self) -> String {
        let mut cause: &dyn std::error::Error = *self;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        cause.to_string()
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Whether `text` can be the name of a file.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Opens `path` to be written from byte `start` on.
fn open(path: &Path, start: u64) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    if start > 0 {
        options.append(true).open(path)
    } else {
        options.write(true).create(true).truncate(true).open(path)
    }
}

/// Checks a downloaded file; removes it where it is not what the hub has.
fn verify(file: &str, contents: &Contents, path: &Path) -> Result<(), HubError> {
    let damaged = |reason: String| {
        // What cannot be removed is found damaged again.
        let _ = fs::remove_file(path);
        HubError::Damaged { file: file.to_owned(), reason }
    };
    let found = length(path);
    if let Some(size) = contents.size.filter(|size| *size != found) {
        return Err(damaged(format!("{found} bytes instead of {size}")));
    }
    // Large files have their SHA-256 as ETag, small ones a hash of git's.
    if contents.etag.len() == 64 && contents.etag.chars().all(|c| c.is_ascii_hexdigit()) {
        let mut hasher = Sha256::new();
        std::io::copy(&mut File::open(path).map_err(cannot(path))?, &mut hasher).map_err(cannot(path))?;
        let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if !found.eq_ignore_ascii_case(&contents.etag) {
            return Err(damaged(format!("SHA-256 {found} instead of {}", contents.etag)));
        }
    }
    Ok(())
}
