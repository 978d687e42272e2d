"""Runs every check and says what each found; or, with --mutations, breaks copies of the files and demands that checks see it."""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import compose, kubernetes, logs, mutations, pods, read, servers, services
from .worker import Worker

SLOW = "redis"


@dataclass
class Tools:
    """Programs that deploy/check-deployments installed."""

    folder: Path
    types: Path
    node: Path
    hadolint: Path
    compose: list


def checks(worker: Worker, tools: Tools) -> list:
    """(name, what is checked, function of a tree and a scratch folder)."""
    found = [
        (
            "kubernetes-schemas",
            f"Kubernetes {' and '.join(kubernetes.VERSIONS)}: schemas, strictly",
            lambda t, s: kubernetes.schemas(t),
        ),
        (
            "custom-resources",
            "KEDA and the Prometheus operator: their own types, strictly",
            lambda t, s: kubernetes.custom_resources(t, tools, s),
        ),
        ("kustomizations", "Kubernetes: nothing is left out or too many", lambda t, s: kubernetes.kustomizations(t)),
        (
            "kubernetes-settings",
            "Kubernetes: settings that the worker knows and takes",
            lambda t, s: kubernetes.known_settings(t, worker),
        ),
        ("selectors", "Kubernetes: selectors, labels, names", lambda t, s: pods.selectors(t)),
        ("references", "Kubernetes: what a pod refers to", lambda t, s: pods.references(t)),
        ("probes", "Kubernetes: probes and ports", lambda t, s: pods.probes(t, worker)),
        ("grace", "Kubernetes: time to drain", lambda t, s: pods.grace(t, worker)),
        ("memory", "Kubernetes: memory", lambda t, s: pods.memory(t, worker)),
        ("scaling", "KEDA: lag and pending, and metrics that exist", lambda t, s: pods.scaling(t, worker)),
        ("restricted", "Kubernetes: what a pod may do", lambda t, s: pods.restricted(t)),
        ("compose", "Compose: config", lambda t, s: compose.compose_reads_it(t, tools)),
        ("hadolint", "Dockerfile: hadolint", lambda t, s: compose.hadolint(t, tools)),
        (
            "compose-settings",
            "Compose: settings that the worker knows and takes",
            lambda t, s: compose.known_settings(t, worker),
        ),
        (
            "compose-worker",
            "Compose: the worker's life, beside Dockerfile and Kubernetes",
            lambda t, s: compose.worker_service(t, worker),
        ),
        ("images", "Compose: versions of images", lambda t, s: compose.images(t)),
        ("mounts", "Compose: what is mounted", lambda t, s: compose.mounts(t)),
        ("scraped", "Compose: Prometheus finds the workers", lambda t, s: compose.scraped(t, worker)),
        ("grafana", "Compose: what Grafana's provisioning reads", lambda t, s: compose.grafana_asks(t)),
        (
            "unit-settings",
            "systemd: settings that the worker knows and takes",
            lambda t, s: services.unit_settings(t, worker),
        ),
        ("unit-behaviour", "systemd: its life", lambda t, s: services.unit_behaviour(t)),
        ("launchd", "launchd: the property list, its keys, settings", lambda t, s: services.launchd_job(t, worker)),
        ("rotation", "logrotate: three real rotations", lambda t, s: logs.rotation(t, s)),
        ("vector", "Vector: programs, connections", lambda t, s: logs.vector(t, worker)),
        ("policy", "Logs: one policy everywhere", lambda t, s: logs.policy(t)),
    ]
    if platform.system() == "Linux":
        journald = next(
            path
            for path in map(Path, ["/usr/lib/systemd/systemd-journald", "/lib/systemd/systemd-journald"])
            if path.exists()
        )
        found += [
            ("systemd", "systemd: verify and security", lambda t, s: services.systemd_reads_it(t, s)),
            ("journald", "journald: keys", lambda t, s: logs.journald(t, journald)),
        ]
    else:
        print("not on this system: systemd: verify and security; journald: keys (Linux only)")
    found.append(
        ("redis", "Compose: a real Redis, its users, and turns through it", lambda t, s: servers.redis(t, worker, s))
    )
    return found


def faults(check, tree: Path) -> list:
    """What a check finds in a tree, as sentences."""
    scratch = Path(tempfile.mkdtemp(prefix="turnmill."))
    try:
        return list(check(tree, scratch))
    except read.Fault as fault:
        return [f"a file cannot be read: {fault}"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        # A check goes straight to what it compares, which is not where it was.
        return [f"something that is compared is missing or of another kind: {type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_checks(every: list, tree: Path) -> int:
    """Prints every check with its time, and what it found. The number of faults."""
    total = 0
    # This one waits most of its time, beside the others.
    beside = ThreadPoolExecutor(1)
    slow = {name: beside.submit(faults, check, tree) for name, _, check in every if name == SLOW}
    for name, what, check in every:
        began = time.monotonic()
        found = slow[name].result() if name in slow else faults(check, tree)
        total += len(found)
        print(f"{'ok    ' if not found else 'FAILED'}  {what}  ({time.monotonic() - began:.1f} s)", flush=True)
        for fault in found:
            print(f"        {fault}", flush=True)
    return total


def broken(check, tree: Path, mutation) -> list:
    """What a check finds in a copy of the tree that a mutation has broken."""
    with tempfile.TemporaryDirectory(prefix="turnmill.") as folder:
        copy = Path(folder)
        shutil.copytree(tree / "deploy", copy / "deploy")
        shutil.copytree(tree / "docs", copy / "docs")
        mutation.apply(copy)
        return faults(check, copy)


def run_mutations(every: list, tree: Path, only: str) -> int:
    """Breaks one thing in each of many copies, as many at once as there are cores. The number of breaks that went unseen."""
    by_name = {name: check for name, _, check in every}
    chosen = [
        mutation for mutation in mutations.MUTATIONS if mutation.check in by_name and only in (None, mutation.check)
    ]
    unseen = 0
    with ThreadPoolExecutor(os.cpu_count()) as beside:
        results = beside.map(lambda mutation: broken(by_name[mutation.check], tree, mutation), chosen)
        # In the order of the list, however long each took.
        for mutation, found in zip(chosen, results):
            seen = [fault for fault in found if mutation.expects in fault]
            unseen += not seen
            print(f"{'seen  ' if seen else 'UNSEEN'}  {mutation.check}: {mutation.what}", flush=True)
            print(f"        {seen[0] if seen else f'expected {mutation.expects!r}; found {found}'}", flush=True)
    tried = {mutation.check for mutation in chosen}
    for name in by_name.keys() - tried if only is None else []:
        print(f"UNTRIED {name}: no mutation breaks what it checks")
        unseen += 1
    return unseen


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--compose", nargs="+", required=True)
    parser.add_argument("--worker", type=Path, required=True)
    parser.add_argument("--mutations", action="store_true")
    parser.add_argument("--only")
    options = parser.parse_args()
    bin_folder = options.tools / "venv/bin"
    tools = Tools(options.tools, options.tools / "types", bin_folder / "node", bin_folder / "hadolint", options.compose)
    every = checks(Worker(options.worker, options.root), tools)
    if options.only:
        every = [check for check in every if check[0] == options.only]
        if not every:
            raise SystemExit(f"error: there is no check called {options.only}")
    if options.mutations:
        return 1 if run_mutations(every, options.root, options.only) else 0
    total = run_checks(every, options.root)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
