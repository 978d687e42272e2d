"""Kubernetes: every document against the API's own schema, and what no schema knows."""

import json
import re
import subprocess
from pathlib import Path

import kubernetes_validate

from . import read
from .worker import Worker, unknown

FOLDER = "deploy/kubernetes"
# The oldest and the newest API that the manifests are for.
VERSIONS = ["1.30", "1.37"]
# Custom resources, and the type that the package of their group has for them.
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): ("@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject", "IScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"): (
        "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
        "IPodMonitor",
    ),
}
KUSTOMIZE = "kustomize.config.k8s.io"


def documents(tree: Path):
    """(file, document) of everything in the folder, kustomizations apart."""
    for path in sorted((tree / FOLDER).rglob("*.yaml")):
        for document in read.yaml_documents(path):
            if not str(document.get("apiVersion")).startswith(KUSTOMIZE):
                yield path.relative_to(tree / FOLDER), document


def one(tree: Path, kind: str) -> dict:
    """The only document of a kind."""
    found = [document for _, document in documents(tree) if document["kind"] == kind]
    if len(found) != 1:
        raise read.Fault(f"there are {len(found)} documents of kind {kind} instead of one")
    return found[0]


def schemas(tree: Path):
    """Kubernetes' own kinds, strictly: a field that the API does not know is a fault, since the API drops some in silence."""
    for file, document in documents(tree):
        if (document["apiVersion"], document["kind"]) in CUSTOM:
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{file}: {'.'.join(map(str, error.path))}: {error.message} (Kubernetes {version})"
            except kubernetes_validate.utils.SchemaNotFoundError as error:
                yield f"{file}: {error.message}"


def custom_resources(tree: Path, tools, scratch: Path):
    """Custom resources against the types that their projects' own Go types become in TypeScript. An object literal with a field that
    its type does not have is an error there, at every depth."""
    lines = []
    files = []
    for file, document in documents(tree):
        custom = CUSTOM.get((document["apiVersion"], document["kind"]))
        if custom is not None:
            module, name = custom
            lines.append(
                f'import type {{ {name} }} from "{module}"; export const document{len(lines)}: {name} = '
                f"{json.dumps(document)};"
            )
            files.append(file)
    # Beside the packages, where the compiler looks for them. No two runs may share it.
    program = tools.types / f"check-{scratch.name}.ts"
    try:
        program.write_text("\n".join(lines) + "\n")
        compiler = [
            tools.node,
            tools.types / "node_modules/typescript/lib/tsc.js",
            "--noEmit",
            "--strict",
            "--skipLibCheck",
            "--module",
            "esnext",
            "--moduleResolution",
            "bundler",
            "--pretty",
            "false",
            program.name,
        ]
        done = subprocess.run(list(map(str, compiler)), cwd=tools.types, capture_output=True, text=True, timeout=120)
    finally:
        program.unlink(missing_ok=True)
    for line in done.stdout.splitlines():
        match = re.match(rf"{re.escape(program.name)}\((\d+),\d+\): (.*)", line)
        yield f"{files[int(match[1]) - 1]}: {match[2]}" if match else f"the compiler says: {line}"
    if done.returncode != 0 and not done.stdout:
        yield f"the TypeScript compiler failed: {done.stderr.strip()}"
    if set(CUSTOM) != {(d["apiVersion"], d["kind"]) for _, d in documents(tree)} & set(CUSTOM):
        yield "a custom resource that is checked here is not there any more; correct CUSTOM in kubernetes.py"


def kustomizations(tree: Path):
    """Every file is in the kustomization of its folder, and every entry is there. Examples of secrets are in none."""
    for path in sorted((tree / FOLDER).rglob("kustomization.yaml")):
        where = path.parent
        name = path.relative_to(tree / FOLDER)
        own = read.yaml_document(path)
        extra = set(own) - {"apiVersion", "kind", "namespace", "resources", "components", "images"}
        if extra:
            yield f"{name}: {', '.join(sorted(extra))} is not among the fields that these files use"
        listed = set(own["resources"])
        there = {file.name for file in where.glob("*.yaml")} - {"kustomization.yaml"}
        examples = {file for file in there if ".example." in file}
        for file in sorted(listed & examples):
            yield f"{name}: {file} is an example and would be applied"
        for file in sorted(listed - there):
            yield f"{name}: {file} is not there"
        for file in sorted(there - listed - examples):
            yield f"{name}: {file} is in no list, so nobody would apply it"


def settings(tree: Path) -> dict:
    """The variables that a worker gets from ConfigMap, secret and the container's own list."""
    return {**one(tree, "ConfigMap")["data"], **one(tree, "Secret")["stringData"]}


def known_settings(tree: Path, worker: Worker):
    """Keys of ConfigMap, secret and container are names that the worker reads, and it takes their values."""
    container = one(tree, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    own = {variable["name"] for variable in container["env"]}
    for name in unknown(worker, set(settings(tree)) | own):
        yield f"no setting reads {name}"
    for name in sorted(own & set(settings(tree))):
        yield f"{name} is given twice, in the container and in ConfigMap or secret"
    if not all(isinstance(value, str) for value in settings(tree).values()):
        yield "a value of ConfigMap or secret is no text; quote it"
        return
    try:
        worker.settings(settings(tree))
    except ValueError as refusal:
        yield f"the worker refuses the settings: {refusal}"
