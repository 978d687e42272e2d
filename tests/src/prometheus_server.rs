//! A private Prometheus: a real `prometheus` on a free port, with our rules and configuration, in a directory of its own,
//! gone when dropped. It scrapes and evaluates every second.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Url};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::observability::{path, rules};
use crate::redis_server::free_port;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server; killed on drop. A test that fails prints its log.
pub struct PrometheusServer {
    child: Child,
    url: Url,
    client: Client,
    directory: TempDir,
}

impl PrometheusServer {
    /// Starts one that scrapes `workers`, and waits until it has done so once: what happens afterwards is in its rates.
    /// Panics where there is no `prometheus`.
    pub async fn start(workers: &[SocketAddr]) -> Self {
        let directory = TempDir::new().expect("the temporary directory is writable");
        let configuration = directory.path().join("prometheus.yml");
        // JSON is YAML.
        std::fs::write(&configuration, configured(workers).to_string()).expect("the directory is writable");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let child = spawn(directory.path(), &configuration, address);
        // An error means that somebody chose the cryptography already, which is as good; it is not used here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().build().expect("a client without TLS needs nothing");
        let url = Url::parse(&format!("http://{address}")).expect("an address makes a URL");
        let mut server = Self { child, url, client, directory };
        server.until_ready().await;
        server.until_scraped(workers.len()).await;
        server
    }

    async fn until_ready(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        let ready = self.url.join("/-/ready").expect("a path");
        while !self.client.get(ready.clone()).send().await.is_ok_and(|answer| answer.status().is_success()) {
            let exited = self.child.try_wait().expect("our own child can be waited for");
            assert!(exited.is_none(), "prometheus does not start:\n{}", self.log());
            assert!(Instant::now() < deadline, "prometheus is not ready in time:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_scraped(&self, workers: usize) {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let up = self.query("up == 1").await.expect("Prometheus knows up");
            if up.len() == workers {
                return;
            }
            assert!(Instant::now() < deadline, "prometheus has scraped {up:?} of {workers}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The series that an expression gives now, or what Prometheus has against it.
    pub async fn query(&self, expr: &str) -> Result<Vec<Value>, String> {
        let data = self.get("/api/v1/query", &[("query", expr)]).await?;
        match &data["result"] {
            // A number is a result too.
            Value::Array(result) if data["resultType"] == "scalar" => Ok(vec![Value::Array(result.clone())]),
            Value::Array(result) => Ok(result.clone()),
            other => Err(format!("a result that is no list: {other}")),
        }
    }

    /// The values that an expression gave over the last seconds, a second apart: what a panel draws.
    pub async fn query_range(&self, expr: &str, seconds: u32) -> Result<Vec<Value>, String> {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970");
        let (start, end) = (now.as_secs() - u64::from(seconds), now.as_secs());
        let (start, end) = (start.to_string(), end.to_string());
        let asked = [("query", expr), ("start", &start), ("end", &end), ("step", "1")];
        let data = self.get("/api/v1/query_range", &asked).await?;
        data["result"].as_array().cloned().ok_or_else(|| format!("a result that is no list: {data}"))
    }

    /// All rules as Prometheus has them, with their health.
    pub async fn rules(&self) -> Vec<Value> {
        let data = self.get("/api/v1/rules", &[]).await.expect("Prometheus tells its rules");
        let groups = data["groups"].as_array().expect("a list of groups");
        groups.iter().flat_map(|group| group["rules"].as_array().expect("a list of rules")).cloned().collect()
    }

    async fn get(&self, path: &str, pairs: &[(&str, &str)]) -> Result<Value, String> {
        let mut url = self.url.join(path).expect("a path");
        url.query_pairs_mut().extend_pairs(pairs);
        let answer = self.client.get(url).send().await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if answer["status"] == "success" {
            Ok(answer["data"].clone())
        } else {
            Err(answer["error"].to_string())
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PrometheusServer {
    fn drop(&mut self) {
        // Nothing to be done about a failure here: it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of prometheus:\n{}", self.log());
        }
    }
}

/// The example in the repository, at a pace for tests and with these targets.
fn configured(workers: &[SocketAddr]) -> Value {
    let mut configuration = rules::configuration();
    configuration["global"] = json!({"scrape_interval": "1s", "evaluation_interval": "1s"});
    for file in configuration["rule_files"].as_array_mut().expect("a list of files") {
        *file = json!(path(&format!("{}/{}", rules::FOLDER, file.as_str().expect("a name"))));
    }
    let targets: Vec<String> = workers.iter().map(ToString::to_string).collect();
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = json!(targets);
    configuration
}

fn spawn(directory: &Path, configuration: &Path, address: SocketAddr) -> Child {
    let log = std::fs::File::create(directory.join("log")).expect("the directory is writable");
    Command::new("prometheus")
        .arg(format!("--config.file={}", configuration.display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg("--log.level=warn")
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("prometheus can be run; deploy/check-alerts installs it")
}
