"""Logs: real rotations, journald's keys, Vector's programs over real lines, and one policy in all of them."""

import fnmatch
import gzip
import json
import os
import re
import subprocess
import time
from pathlib import Path

import vrl_python

from . import read
from .services import PLIST, UNIT
from .worker import Worker

LOGROTATE = "deploy/logs/logrotate.conf"
JOURNALD = "deploy/logs/journald.conf"
VECTOR = "deploy/logs/vector.yaml"
POLICY = "docs/LOGS.md"
LOGROTATE_PROGRAM = ["/usr/sbin/logrotate", "/usr/local/sbin/logrotate", "/opt/homebrew/sbin/logrotate"]


def _logrotate() -> str:
    return next((path for path in LOGROTATE_PROGRAM if os.path.exists(path)), "logrotate")


def _rotate(config: Path, state: Path, *flags: str):
    return subprocess.run(
        [_logrotate(), *flags, "--state", str(state), str(config)], capture_output=True, text=True, timeout=60
    )


class _Writer:
    """Writes numbered JSON lines as a worker does: one file, kept open for appending, one write a line."""

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        self.count = 0

    def write(self, lines: int):
        for _ in range(lines):
            os.write(self.file, json.dumps({"level": "INFO", "n": self.count}).encode() + b"\n")
            self.count += 1


def rotation(tree: Path, scratch: Path):
    """logrotate reads the file, and three forced rotations of a file that is being written lose no line and leave no half one."""
    folder = scratch / "log"
    folder.mkdir()
    text = (tree / LOGROTATE).read_text()
    pattern = re.search(r"^(/\S.*)\{", text, re.MULTILINE)
    if not pattern:
        yield "there is no pattern of files"
        return
    config = scratch / "logrotate.conf"
    config.write_text(text.replace(pattern[1].strip(), str(folder / "*.log")))
    config.chmod(0o644)
    state, log = scratch / "state", folder / "worker.log"
    writer = _Writer(log)
    writer.write(100)
    done = _rotate(config, state, "--debug")
    for line in done.stderr.splitlines():
        if line.startswith("error:") or "unknown" in line.lower():
            yield f"logrotate --debug: {line}"
    if done.returncode != 0:
        yield f"logrotate --debug ends with {done.returncode}"
        return
    old = folder / "archive" / f"worker.log-20200101-{int(time.time()) - 40 * 86400}.gz"
    for turn in range(3):
        done = _rotate(config, state, "--force")
        if done.returncode != 0:
            yield f"a rotation fails: {done.stderr.strip()}"
            return
        if turn == 0:
            # Of forty days ago: the next rotation must forget it.
            old.write_bytes(gzip.compress(b""))
            os.utime(old, (time.time() - 40 * 86400,) * 2)
        writer.write(100)
        # Names of old files have the second in them.
        _next_second()
    rotated = sorted((folder / "archive").iterdir())
    if not log.exists() or os.fstat(writer.file).st_ino != log.stat().st_ino:
        yield "the worker writes into a file that a rotation has moved away"
        return
    if old.exists():
        yield "a file of forty days ago is still there"
    if not any(path.suffix == ".gz" for path in rotated):
        yield "no old file is compressed"
    lines = "".join(_text(path) for path in [*rotated, log]).splitlines()
    try:
        numbers = sorted(json.loads(line)["n"] for line in lines)
    except ValueError as error:
        yield f"a line is torn: {error}"
        return
    if numbers != list(range(writer.count)):
        yield f"{writer.count} lines were written, {len(numbers)} are there after three rotations"


def _next_second():
    # A little more: logrotate reads a coarser clock.
    until = int(time.time()) + 1.05
    while time.time() < until:
        time.sleep(0.02)


def _text(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


def journald(tree: Path, program: Path):
    """journald has no way to check its file, and ignores what it does not know. Its program has the names it knows in it."""
    known = set(re.findall(rb"Journal\.([A-Za-z]+)", program.read_bytes()))
    sections = read.unit(tree / JOURNALD)
    if set(sections) != {"Journal"}:
        yield f"its sections are {sorted(sections)}; journald reads [Journal]"
    for key in sections.get("Journal", {}):
        if key.encode() not in known:
            yield f"{program} knows no {key}"
    for key in ["MaxRetentionSec", "MaxFileSec"]:
        value = sections["Journal"][key][-1]
        done = subprocess.run(["systemd-analyze", "timespan", value], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            yield f"{key}={value} is no time: {done.stderr.strip()}"


_LINES = [
    ('{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","message":"ready","target":"turnmill_worker"}', "warm"),
    (
        '{"timestamp":"2026-01-01T00:00:01Z","level":"INFO","message":"the turn has ended","agent":"ada"}',
        "cold",
    ),
    (
        '{"timestamp":"2026-01-01T00:00:02Z","level":"WARN","message":"the attempt failed; the turn is tried again"}',
        "cold",
    ),
    ("thread 'http' panicked at schema/telemetry/src/probes/mod.rs", "cold"),
    ('["not","an","object"]', "cold"),
]


def vector(tree: Path, worker: Worker):
    """Its programs compile and do what they say, and components are connected. Vector itself is not asked."""
    config = read.yaml_document(tree / VECTOR)
    if set(config) != {"data_dir", "sources", "transforms", "sinks"}:
        yield f"it has {sorted(config)}"
        return
    there = set(config["sources"]) | set(config["transforms"])
    used = set()
    for name, component in {**config["transforms"], **config["sinks"]}.items():
        used |= set(component["inputs"])
        for source in set(component["inputs"]) - there:
            yield f"{name} takes from {source}, which is not there"
    for name in sorted(there - used):
        yield f"nobody takes from {name}"
    lines = config["transforms"]["lines"]["source"]
    for message in re.findall(r'\.message == ("[^"]+")', config["transforms"]["lasting"]["condition"]["source"]):
        if message not in worker.runner_source:
            yield f"no worker logs {message}"
    # A condition is a program whose value says yes or no; a field makes it visible.
    lasting = f".lasting = ({config['transforms']['lasting']['condition']['source'].strip()})"
    runtime = vrl_python.VRLRuntime()
    try:
        for text, where in _LINES:
            event = {"message": text, "host": "h", "timestamp": "2026-01-01T00:00:00Z", "source_type": "file"}
            event = runtime.execute(lines, event).processed_event
            if (
                event.get("host") != "h"
                or not event.get("message")
                or event.get("level") not in ["INFO", "WARN", "ERROR"]
            ):
                yield f"{text} becomes {event}"
            if runtime.execute(lasting, dict(event)).processed_event["lasting"] is not (where == "cold"):
                yield f"{text} is not kept {where}"
    except (vrl_python.VRLCompileError, ValueError) as error:
        # The package raises either; what Vector's compiler says is in it.
        yield f"a program does not compile: {str(error).strip()}"
    except vrl_python.VRLRuntimeError as error:
        yield f"a program fails: {error}"


def policy(tree: Path):
    """Seven days hot, thirty warm, a year cold at most: everywhere the same. And logs are where they are looked for."""
    said = (tree / POLICY).read_text()
    table = dict(re.findall(r"^\| (hot|warm|cold) \| ([0-9 to]+) days", said, re.MULTILINE))
    if table != {"hot": "7", "warm": "30", "cold": "90 to 365"}:
        yield f"docs/LOGS.md says {table}"
    hot = read.seconds(read.unit(tree / JOURNALD)["Journal"]["MaxRetentionSec"][-1])
    if hot != 7 * 86400:
        yield f"the journal keeps {hot / 86400:g} days"
    rotate = (tree / LOGROTATE).read_text()
    for key in ["rotate", "maxage"]:
        found = re.findall(rf"^\s*{key} (\d+)$", rotate, re.MULTILINE)
        if found != ["30"]:
            yield f"logrotate's {key} is {found}, not 30 days"
    pattern = re.search(r"^(/\S.*)\{", rotate, re.MULTILINE)[1].split()
    config = read.yaml_document(tree / VECTOR)
    log = read.plist(tree / PLIST)["StandardErrorPath"]
    for who, patterns in [("logrotate", pattern), ("Vector", config["sources"]["files"]["include"])]:
        if not any(fnmatch.fnmatch(log, one) for one in patterns):
            yield f"{who} does not look for {log}, where launchd writes"
    namespace = read.unit(tree / UNIT)["Service"]["LogNamespace"][-1]
    if config["sources"]["journal"]["extra_args"] != [f"--namespace={namespace}"]:
        yield f"Vector does not read the journal {namespace}, where systemd writes"
    prefixes = {name: sink["key_prefix"].split("/")[0] for name, sink in config["sinks"].items()}
    rules = json.loads(re.search(r"```json\n(.*?)```", said, re.DOTALL)[1])["Rules"]
    days = {rule["Filter"]["Prefix"].rstrip("/"): rule["Expiration"]["Days"] for rule in rules}
    if prefixes != {"warm": "warm", "cold": "cold"} or days != {"warm": 30, "cold": 365}:
        yield f"Vector writes below {sorted(prefixes.values())}, the bucket's rules keep {days} days"
