//! What can go wrong while a program starts to tell how it is doing, or is told to tell more.

use std::net::SocketAddr;

/// Errors of logs, traces, metrics and probes. All but [`Self::LogFilter`] belong to the start; a program that runs does not meet
/// them.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Another process listens there.
    #[error("http_addr {addr} is in use; stop the process that listens there or set another http_addr")]
    PortInUse {
        /// Where.
        addr: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on http_addr {addr}: {source}; set an address of this machine")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
    /// The server's thread or its runtime cannot be made.
    #[error("cannot start the HTTP server's thread: {0}; the limit on threads or files may be reached")]
    Thread(std::io::Error),
    /// The recorder refused its set-up, or this process has one already.
    #[error("cannot set up metrics: {0}; they are set up once a process")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// This process has a log subscriber already.
    #[error("cannot set up logs: {0}; they are set up once a process")]
    Logs(#[from] tracing_subscriber::util::TryInitError),
    /// The log's subscriber is gone, as it is while the process ends.
    #[error("the log filter cannot be changed: {0}")]
    LogFilter(#[from] tracing_subscriber::reload::Error),
    /// Spans cannot be exported as the settings say.
    #[error(
        "spans cannot be exported: {0}; correct otlp_endpoint and the OTEL_EXPORTER_OTLP_ variables, or unset them"
    )]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
}
