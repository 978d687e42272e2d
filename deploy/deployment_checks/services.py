"""The systemd unit and the launchd job: what their own tools say, and what must agree with the worker."""

import re
import shutil
import subprocess
from pathlib import Path

from . import read
from .worker import Worker, unknown

UNIT = "deploy/systemd/turnmill-worker.service"
ENV_EXAMPLE = "deploy/systemd/turnmill-worker.env.example"
PLIST = "deploy/launchd/dev.turnmill.worker.plist"
# Tenths of `systemd-analyze security`'s exposure: what the unit reaches under Debian 12. Lower is safer.
EXPOSURE = 12
# Keys of launchd.plist(5) that the job uses. launchd ignores others in silence.
LAUNCHD_KEYS = {
    "Label": str,
    "ProgramArguments": list,
    "UserName": str,
    "EnvironmentVariables": dict,
    "RunAtLoad": bool,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "SoftResourceLimits": dict,
    "HardResourceLimits": dict,
    "WorkingDirectory": str,
    "Umask": int,
    "StandardErrorPath": str,
    "StandardOutPath": str,
}


def _service(tree: Path) -> dict:
    return read.unit(tree / UNIT)["Service"]


def systemd_reads_it(tree: Path, scratch: Path):
    """`systemd-analyze verify` and `security`, on a copy whose program exists here."""
    copy = scratch / "turnmill-worker.service"
    text = (tree / UNIT).read_text()
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60
    )
    for line in (done.stdout + done.stderr).strip().splitlines():
        # It looks at the machine's other units, too.
        if "turnmill-worker" in line:
            yield f"systemd-analyze verify: {line}"
    if done.returncode != 0:
        yield f"systemd-analyze verify ends with {done.returncode}"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        yield f"its exposure is over {EXPOSURE / 10}: {' '.join(last)}"


def unit_settings(tree: Path, worker: Worker):
    """The worker knows every variable of unit and example, also those in comments, and takes their values."""
    given = read.assignments(tree / ENV_EXAMPLE)
    commented = set(re.findall(r"^#Environment=([A-Z_]+)=", (tree / UNIT).read_text(), re.MULTILINE))
    own = dict(pair.split("=", 1) for line in _service(tree)["Environment"] for pair in line.split())
    for name in unknown(worker, {*given, *own, *commented, *read.examples(tree / ENV_EXAMPLE)}):
        yield f"no setting reads {name}"
    try:
        effective = worker.settings({**own, **given})
    except ValueError as refusal:
        yield f"the worker refuses the settings: {refusal}"
        return
    if effective["store"] == "auto" and not {"HOME", "XDG_CACHE_HOME"} <= own.keys():
        yield "store is auto, and a user without HOME and XDG_CACHE_HOME has no folder for it"
    drain, stop = effective["drain_ms"] / 1000, read.seconds(_service(tree)["TimeoutStopSec"][-1])
    if stop <= drain + worker.after_drain:
        yield f"TimeoutStopSec is {stop:g} s; a drain takes {drain:g} s and {worker.after_drain} s after it"
    if not effective["http_addr"].endswith(f":{worker.port}"):
        yield f"TURNMILL_HTTP_ADDR is {effective['http_addr']}, the worker's port {worker.port}"
    if not effective["http_addr"].startswith("127.0.0.1:"):
        yield f"TURNMILL_HTTP_ADDR is {effective['http_addr']}: the example opens it to other machines"


def unit_behaviour(tree: Path):
    """It drains on SIGTERM, comes back after failures, and stays away after a drain that was ordered."""
    wanted = {
        "KillSignal": "SIGTERM",
        "Restart": "on-failure",
        "StandardError": "journal",
        "LogNamespace": "turnmill",
        "EnvironmentFile": "/etc/turnmill/worker.env",
        "RestartPreventExitStatus": "2",
    }
    for key, value in wanted.items():
        if _service(tree).get(key) != [value]:
            yield f"{key} is {_service(tree).get(key)}, not {value}"


def launchd_job(tree: Path, worker: Worker):
    """Keys and their types; the worker's variables; time to drain."""
    job = read.plist(tree / PLIST)
    for key, value in job.items():
        kind = LAUNCHD_KEYS.get(key)
        if kind is None:
            yield f"{key} is not among the keys of launchd.plist(5) that this job uses; launchd would ignore a misspelt one"
        elif type(value) is not kind:
            yield f"{key} is of the type {type(value).__name__}, not {kind.__name__}"
    for key in LAUNCHD_KEYS.keys() - job.keys():
        yield f"{key} is missing"
        return
    if f"{job['Label']}.plist" != Path(PLIST).name:
        yield f"Label is {job['Label']}, the file {Path(PLIST).name}"
    environment = job["EnvironmentVariables"]
    for name in unknown(worker, environment):
        yield f"no setting reads {name}"
    try:
        effective = worker.settings(environment)
    except ValueError as refusal:
        yield f"the worker refuses the settings: {refusal}"
        return
    drain = effective["drain_ms"] / 1000
    if job["ExitTimeOut"] <= drain + worker.after_drain:
        yield f"ExitTimeOut is {job['ExitTimeOut']} s; a drain takes {drain:g} s and {worker.after_drain} s after it"
    if job["KeepAlive"] != {"SuccessfulExit": False}:
        yield "KeepAlive is not what starts it again after a failure only"
    if effective["http_addr"] != f"127.0.0.1:{worker.port}":
        yield f"TURNMILL_HTTP_ADDR is {effective['http_addr']}, not this machine's port {worker.port}"
    if shutil.which("plutil"):
        done = subprocess.run(["plutil", "-lint", str(tree / PLIST)], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            yield f"plutil: {done.stdout.strip()}"
