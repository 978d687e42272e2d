"""Compose, its Dockerfile and what they start: Compose itself reads the file, hadolint the Dockerfile, Redis its configuration."""

import json
import re
import subprocess
from pathlib import Path

from . import read
from .kubernetes import one
from .worker import STAND_IN, Worker, unknown

FOLDER = "deploy/compose"


def _services(tree: Path) -> dict:
    return read.yaml_document(tree / FOLDER / "compose.yaml")["services"]


def _stand_ins(tree: Path) -> dict:
    """What .env says once it is filled in."""
    return {name: value or STAND_IN for name, value in read.assignments(tree / FOLDER / "env.example").items()}


def compose_reads_it(tree: Path, tools):
    """`docker compose config`: the schema, strictly, and every ${VARIABLE}."""
    command = [*tools.compose, "--file", str(tree / FOLDER / "compose.yaml"), "config", "--format", "json"]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tools.folder), **_stand_ins(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        yield f"Compose refuses it: {done.stderr.strip()}"
        return
    for line in done.stderr.strip().splitlines():
        yield f"Compose warns: {line}"
    for name, service in json.loads(done.stdout)["services"].items():
        for port in service.get("ports", []):
            if port.get("host_ip") != "127.0.0.1":
                yield f"{name} opens port {port['published']} to everybody, not to this machine alone"


def hadolint(tree: Path, tools):
    """The Dockerfile's linter."""
    done = subprocess.run(
        [str(tools.hadolint), "--no-color", str(tree / FOLDER / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        yield from (done.stdout + done.stderr).strip().splitlines()


def known_settings(tree: Path, worker: Worker):
    """The worker knows every variable that Compose and the image give it, and takes their values."""
    given = _services(tree)["worker"]["environment"]
    built = dict(
        re.findall(r"([A-Z][A-Z0-9_]*)=(\S+)", " ".join(rest for word, rest in _dockerfile(tree) if word == "ENV"))
    )
    for name in unknown(worker, {*given, *built}):
        yield f"no setting reads {name}"
    try:
        worker.settings({**built, **given})
    except ValueError as refusal:
        yield f"the worker refuses the settings: {refusal}"
    example = read.assignments(tree / FOLDER / "env.example").keys() | read.examples(tree / FOLDER / "env.example")
    used = set(re.findall(r"\$\{([A-Z_]+)", (tree / FOLDER / "compose.yaml").read_text()))
    if used != example:
        yield f"compose.yaml asks .env for {sorted(used - example)} that env.example lacks, and not for {sorted(example - used)}"


def _dockerfile(tree: Path) -> list:
    return read.dockerfile(tree / FOLDER / "Dockerfile")


def worker_service(tree: Path, worker: Worker):
    """Grace, ports, probes, user and image agree with the worker, the Dockerfile and Kubernetes."""
    service = _services(tree)["worker"]
    effective = worker.settings(service["environment"])
    drain, given = effective["drain_ms"] / 1000, read.seconds(service["stop_grace_period"])
    if given <= drain + worker.after_drain:
        yield f"stop_grace_period is {given:g} s; a drain takes {drain:g} s and {worker.after_drain} s after it"
    instructions = _dockerfile(tree)
    said = {word: rest for word, rest in instructions}
    probes = [
        " ".join(service["healthcheck"]["test"]),
        said["HEALTHCHECK"],
        effective["http_addr"],
        f":{said['EXPOSE']}/",
    ]
    for text in probes:
        asked = re.findall(r":(\d{4,5})(/[a-z/]*)?", text)
        if [int(port) for port, _ in asked] != [worker.port]:
            yield f"{text!r} does not mean the worker's port {worker.port}"
        if any(len(path) > 1 and path not in worker.probes() for _, path in asked):
            yield f"{text!r} asks what the worker does not answer"
    for signal in [service["stop_signal"], said["STOPSIGNAL"]]:
        if signal != "SIGTERM":
            yield f"the worker is stopped with {signal}; it drains on SIGTERM"
    pod = one(tree, "Deployment")["spec"]["template"]["spec"]
    if service["image"] != pod["containers"][0]["image"] or service["image"] != f"turnmill-worker:{worker.version}":
        yield f"images differ: Compose {service['image']}, Kubernetes {pod['containers'][0]['image']}, version {worker.version}"
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    if said["USER"] != user:
        yield f"the image's user is {said['USER']}, Kubernetes runs {user}"
    kept = sum(effective[name] for name in ["pool_bytes", "host_cache_bytes", "save_queue_bytes", "offload_bytes"])
    if read.size(service["mem_limit"]) < kept + (512 << 20):
        yield f"mem_limit {service['mem_limit']} is less than pool and caches ({kept >> 20} MiB) and 512 MiB"


def images(tree: Path):
    """Every image has a version, so that the same file starts the same programs."""
    found = {f"the service {name}": service["image"] for name, service in _services(tree).items()}
    stages = {rest.split()[2] for word, rest in _dockerfile(tree) if word == "FROM" and " AS " in rest}
    found.update(
        {f"FROM {rest}": rest.split()[0] for word, rest in _dockerfile(tree) if word == "FROM" and rest not in stages}
    )
    for where, image in found.items():
        if not re.search(r":v?\d+\.\d+(\.\d+)?([.-][\w.-]+)?$", image):
            yield f"{where}: {image} is not pinned to a version"


def mounts(tree: Path):
    """What is mounted from the repository is there, and read-only."""
    for name, service in _services(tree).items():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            # Models are the user's own.
            if not source.startswith(".") or source == "./models":
                continue
            if not (tree / FOLDER / source).exists():
                yield f"{name} mounts {source} at {target}, which is not there"
            if mode != ["ro"]:
                yield f"{name} could write {source}"


def scraped(tree: Path, worker: Worker):
    """Prometheus finds the workers, under the job that rules and dashboard expect."""
    config = read.yaml_document(tree / FOLDER / "prometheus.yml")
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    if set(jobs) != {"turnmill"}:
        yield f"the jobs are {sorted(jobs)}; rules and dashboard expect turnmill"
        return
    for discovery in jobs["turnmill"]["dns_sd_configs"]:
        if discovery["port"] != worker.port or discovery["names"] != ["worker"] or "worker" not in _services(tree):
            yield f"it scrapes {discovery['names']} at port {discovery['port']}; workers are the service worker, port {worker.port}"
    mounted = {volume.split(":")[1] for volume in _services(tree)["prometheus"]["volumes"]}
    for file in config["rule_files"]:
        if f"/etc/prometheus/{file}" not in mounted:
            yield f"it reads {file}, which is not mounted"


def grafana_asks(tree: Path):
    """Grafana gets every variable that its provisioning reads."""
    given = _services(tree)["grafana"]["environment"]
    for path in sorted((tree / "deploy/grafana/provisioning").rglob("*.yml")):
        text = re.sub(r"#.*", "", path.read_text())
        for name in re.findall(r"\$\{?([A-Z_]+)", text):
            if name not in given:
                yield f"{path.name} reads {name}, which Grafana is not given"


def redis_command(tree: Path) -> list:
    """How Compose starts Redis, from the first argument on, with stand-ins for passwords."""
    return [re.sub(r"\$\{[^}]*\}", STAND_IN, word) for word in _services(tree)["redis"]["command"]][2:]
