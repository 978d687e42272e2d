"""Breaks of Compose."""

from .mutation import Mutation


def _compose(check, what, file, old, new, expects):
    return Mutation(check, what, "deploy/compose/" + file, old, new, expects)


MUTATIONS = [
    _compose(
        "grafana",
        "no address of Prometheus",
        "compose.yaml",
        "PROMETHEUS_URL:",
        "PROMETHEUS_ADDRESS:",
        "PROMETHEUS_URL",
    ),
    _compose(
        "compose",
        "a key that Compose does not know",
        "compose.yaml",
        "    stop_signal: SIGTERM",
        "    stop_signals: SIGTERM",
        "stop_signals",
    ),
    _compose(
        "compose", "a network that is not there", "compose.yaml", "networks: [inside]", "networks: [outside]", "outside"
    ),
    _compose("compose", "a port for everybody", "compose.yaml", "127.0.0.1:9090:9090", "9090:9090", "to everybody"),
    _compose(
        "hadolint", "a package manager that asks", "Dockerfile", "apt-get install --yes", "apt-get install", "DL3014"
    ),
    _compose(
        "compose-settings",
        "a misspelt setting",
        "compose.yaml",
        "TURNMILL_POOL_BYTES",
        "TURNMILL_POOL_SIZE",
        "TURNMILL_POOL_SIZE",
    ),
    _compose(
        "compose-settings", "a variable that .env lacks", "env.example", "STORE_SECRET_KEY=\n", "", "STORE_SECRET_KEY"
    ),
    _compose(
        "compose-settings",
        "a misspelt setting of the image",
        "Dockerfile",
        "TURNMILL_HTTP_ADDR=",
        "TURNMILL_ADDR=",
        "TURNMILL_ADDR",
    ),
    _compose("compose-worker", "a longer drain", "compose.yaml", '"30000"', '"60000"', "takes 60 s"),
    _compose(
        "compose-worker",
        "a health check of another port",
        "Dockerfile",
        "127.0.0.1:9470/health/ready",
        "127.0.0.1:8080/health/ready",
        "8080",
    ),
    _compose(
        "compose-worker",
        "a health check of a path that is not there",
        "compose.yaml",
        "/health/ready",
        "/ready",
        "does not answer",
    ),
    _compose(
        "compose-worker",
        "another image",
        "compose.yaml",
        "turnmill-worker:0.1.0",
        "turnmill-worker:0.2.0",
        "images differ",
    ),
    _compose("compose-worker", "another user", "Dockerfile", "USER 10001:10001", "USER 1000:1000", "Kubernetes runs"),
    _compose(
        "images", "whatever is newest", "compose.yaml", "grafana/grafana:13.2.0", "grafana/grafana:latest", "not pinned"
    ),
    _compose(
        "images", "a stage without a version", "Dockerfile", "FROM debian:12.11-slim", "FROM debian", "not pinned"
    ),
    _compose("mounts", "a file that is not there", "compose.yaml", "./redis.conf:", "./redis.cfg:", "is not there"),
    _compose(
        "mounts",
        "a mount that can be written",
        "compose.yaml",
        "./prometheus.yml:/etc/prometheus/prometheus.yml:ro",
        "./prometheus.yml:/etc/prometheus/prometheus.yml",
        "could write",
    ),
    _compose(
        "scraped",
        "a job of another name",
        "prometheus.yml",
        "job_name: turnmill",
        "job_name: worker",
        "expect turnmill",
    ),
    _compose("scraped", "a port where nobody listens", "prometheus.yml", "port: 9470", "port: 9090", "port 9090"),
    _compose(
        "redis",
        "a word that Redis does not know",
        "redis.conf",
        "appendfsync everysec",
        "appendfsync sometimes",
        "does not start",
    ),
    _compose("redis", "turns that may be evicted", "redis.conf", "noeviction", "allkeys-lru", "noeviction"),
    _compose(
        "redis",
        "a user without a name",
        "redis.conf",
        "user default off",
        "user default on nopass ~* +@all",
        "nobody may",
    ),
    _compose("redis", "a worker without its channels", "compose.yaml", '      - "&tm:{*"\n', "", "may not publish"),
    _compose(
        "redis", "a worker that may not ask what it needs", "compose.yaml", "      - +info\n", "", "cannot do its work"
    ),
]
