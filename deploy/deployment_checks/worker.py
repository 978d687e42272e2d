"""What the worker itself says: the names of its settings, whether it takes values, and what its source promises."""

import json
import re
import subprocess
from pathlib import Path

# What a variable's value may be taken for where the file leaves it to somebody's secret or choice.
STAND_IN = "abc"


class Worker:
    """A built turnmill-worker, and the repository it was built from."""

    def __init__(self, binary: Path, root: Path):
        self.binary = binary
        help_text = self._run(["serve", "--help"], {})
        self.variables = set(re.findall(r"\[env: (TURNMILL_[A-Z0-9_]+)", help_text.stdout))
        if len(self.variables) < 20:
            raise SystemExit(
                f"error: {binary} names {len(self.variables)} settings in its help; is it a turnmill-worker?"
            )
        self.defaults = self._settings({})
        self.http_source = (root / "schema/telemetry/src/probes/mod.rs").read_text()
        recording = [root / "worker/src/observe", root / "schema/telemetry/src"]
        self.metrics_source = "".join(path.read_text() for room in recording for path in sorted(room.rglob("*.rs")))
        self.runner_source = "".join(path.read_text() for path in sorted((root / "worker/src/runner").rglob("*.rs")))
        self.after_drain = self._after_drain(root)
        self.version = re.search(r'^version = "(.+)"', (root / "Cargo.toml").read_text(), re.MULTILINE)[1]

    def _run(self, arguments: list, environment: dict):
        # Nothing of this shell's own settings may count.
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment}
        return subprocess.run(
            [str(self.binary), *arguments], env=environment, capture_output=True, text=True, timeout=30
        )

    def _settings(self, environment: dict) -> dict:
        """The settings in force, by name. ValueError with the worker's own words where it refuses them."""
        done = self._run(["config", "--json"], environment)
        if done.returncode != 0:
            raise ValueError(done.stderr.strip().replace("\n", "; "))
        return {setting["name"]: setting["value"] for setting in json.loads(done.stdout)}

    def settings(self, environment: dict) -> dict:
        """The same with the variables of a deployment, secrets replaced by stand-ins."""
        filled = {name: re.sub(r"\$\{[^}]*:?-([^}]*)\}", r"\1", str(value)) for name, value in environment.items()}
        filled = {name: re.sub(r"\$\{[^}]*\}", STAND_IN, value) for name, value in filled.items()}
        return self._settings(filled)

    @staticmethod
    def _after_drain(root: Path) -> float:
        """Seconds that a worker may take after its drain window, from the constants that bound them."""
        total = 0
        stops, server = "worker/src/runner/service.rs", "schema/telemetry/src/probes/server.rs"
        for file, name in [(stops, "REQUEUE"), (stops, "FLUSH"), (server, "LAST_ANSWERS")]:
            source = (root / file).read_text()
            match = re.search(rf"^const {name}: Duration = Duration::from_secs\((\d+)\);", source, re.MULTILINE)
            if not match:
                raise SystemExit(
                    f"error: {file} has no constant {name} in seconds any more; correct {__file__}"
                )
            total += int(match[1])
        return total

    def probes(self) -> set:
        """Paths that its server answers."""
        return set(re.findall(r'\.route\("([^"]+)"', self.http_source))

    def records(self, metric: str) -> bool:
        """Whether a metric of that name occurs in the source that records them."""
        return f'"{metric}"' in self.metrics_source

    @property
    def port(self) -> int:
        """The port of health and metrics, by default."""
        return int(self.defaults["http_addr"].rsplit(":", 1)[1])


# Variables that are not the worker's own settings, but are read by it: from what its object store client and the hub's tools read,
# and by the system's libraries.
FOREIGN = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT",
    "AWS_ALLOW_HTTP",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "XDG_CACHE_HOME",
    "HOME",
}


def unknown(worker: Worker, names) -> list:
    """Names among `names` that nobody reads."""
    return sorted(name for name in names if name not in worker.variables and name not in FOREIGN)
