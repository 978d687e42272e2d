"""What must agree between the Kubernetes documents, and between them and the worker."""

import re
from pathlib import Path

from . import read
from .kubernetes import documents, one, settings
from .worker import Worker

NAMESPACE = "turnmill"
# Beside pool and caches: the program, buffers of a step, connections, and weights of a small model.
BESIDE_THE_POOL = 512 << 20


def _pod(tree: Path) -> dict:
    return one(tree, "Deployment")["spec"]["template"]


def _container(tree: Path) -> dict:
    return _pod(tree)["spec"]["containers"][0]


def selectors(tree: Path):
    """Who selects pods selects these, and names that refer to something refer to what is there."""
    labels = _pod(tree)["metadata"]["labels"]
    deployment = one(tree, "Deployment")
    selecting = {
        "Deployment": deployment["spec"]["selector"]["matchLabels"],
        "Service": one(tree, "Service")["spec"]["selector"],
        "PodDisruptionBudget": one(tree, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": one(tree, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        "PodMonitor": one(tree, "PodMonitor")["spec"]["selector"]["matchLabels"],
    }
    for number, spread in enumerate(_pod(tree)["spec"]["topologySpreadConstraints"]):
        selecting[f"topologySpreadConstraints {number}"] = spread["labelSelector"]["matchLabels"]
    for who, wanted in selecting.items():
        if not wanted.items() <= labels.items():
            yield f"{who} selects {wanted}, which the pods' labels {labels} do not have"
    target = one(tree, "ScaledObject")["spec"]["scaleTargetRef"]["name"]
    if target != deployment["metadata"]["name"]:
        yield f"KEDA scales {target}, the Deployment is {deployment['metadata']['name']}"
    for file, document in documents(tree):
        namespace = document["metadata"].get("namespace", document["metadata"]["name"])
        if namespace != NAMESPACE:
            yield f"{file} is in the namespace {namespace}, the others in {NAMESPACE}"


def references(tree: Path):
    """What the pod names is there: settings, secret, account, volumes, the queue of its label."""
    pod, container = _pod(tree)["spec"], _container(tree)
    for source in container["envFrom"]:
        for key, kind in [("configMapRef", "ConfigMap"), ("secretRef", "Secret")]:
            there = one(tree, kind)["metadata"]["name"]
            if key in source and source[key]["name"] != there:
                yield f"the container takes variables of {kind} {source[key]['name']}, which is called {there}"
    account = one(tree, "ServiceAccount")["metadata"]["name"]
    if pod["serviceAccountName"] != account:
        yield f"the pod's account is {pod['serviceAccountName']}, which is called {account}"
    volumes = {volume["name"] for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        if mount["name"] not in volumes:
            yield f"the volume {mount['name']} is mounted and not there"
    queue = _pod(tree)["metadata"]["labels"]["turnmill.dev/queue"]
    if queue != settings(tree)["TURNMILL_QUEUE"]:
        yield f"the pods' label says queue {queue}, TURNMILL_QUEUE {settings(tree)['TURNMILL_QUEUE']}"
    cache = container["volumeMounts"][0]["mountPath"]
    for name in ["HF_HOME", "XDG_CACHE_HOME"]:
        if not settings(tree)[name].startswith(cache):
            yield f"{name} is {settings(tree)[name]}, which nobody can write: only {cache} is a volume"


def probes(tree: Path, worker: Worker):
    """Probes ask what the worker answers, where it listens."""
    container = _container(tree)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe, path in [
        ("startupProbe", "/health/startup"),
        ("livenessProbe", "/health/live"),
        ("readinessProbe", "/health/ready"),
    ]:
        asked = container[probe]["httpGet"]
        if asked["path"] != path or path not in worker.probes():
            yield f"{probe} asks {asked['path']}; the worker answers {', '.join(sorted(worker.probes()))}, and {path} is meant"
        if ports.get(asked["port"], asked["port"]) != worker.port:
            yield f"{probe} asks port {asked['port']}, which is not {worker.port}"
    listens = int(settings(tree)["TURNMILL_HTTP_ADDR"].rsplit(":", 1)[1])
    service = one(tree, "Service")["spec"]["ports"][0]
    policy = one(tree, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"]
    found = {
        "TURNMILL_HTTP_ADDR": listens,
        "containerPort": ports.get("http"),
        "the Service": service["port"],
        "what the Service leads to": ports.get(service["targetPort"]),
        "NetworkPolicy": policy,
    }
    for endpoint in one(tree, "PodMonitor")["spec"]["podMetricsEndpoints"]:
        found["PodMonitor"] = ports.get(endpoint["port"])
        if endpoint["path"] not in worker.probes():
            yield f"PodMonitor asks {endpoint['path']}, which the worker does not answer"
    for where, port in found.items():
        if port != worker.port:
            yield f"the port of {where} is {port}, the worker's is {worker.port}"


def grace(tree: Path, worker: Worker):
    """Nobody is killed while it drains, and scaling down waits for who goes."""
    drain = worker.settings(settings(tree))["drain_ms"] / 1000
    given = _pod(tree)["spec"]["terminationGracePeriodSeconds"]
    if given <= drain + worker.after_drain:
        yield f"terminationGracePeriodSeconds is {given}; a drain takes {drain:g} s and {worker.after_drain} s after it"
    behaviour = one(tree, "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for policy in behaviour["scaleDown"]["policies"]:
        if policy["periodSeconds"] < given:
            yield f"KEDA takes workers away every {policy['periodSeconds']} s, and one may take {given} s to go"


def memory(tree: Path, worker: Worker):
    """The limit holds what the settings allow."""
    effective = worker.settings(settings(tree))
    kept = sum(
        read.size(effective[name]) for name in ["pool_bytes", "host_cache_bytes", "save_queue_bytes", "offload_bytes"]
    )
    limit = read.size(_container(tree)["resources"]["limits"]["memory"])
    if limit < kept + BESIDE_THE_POOL:
        yield f"the limit of {limit >> 20} MiB is less than pool and caches ({kept >> 20} MiB) and {BESIDE_THE_POOL >> 20} MiB"


def scaling(tree: Path, worker: Worker):
    """KEDA scales on waiting and leased work, of metrics that exist, and never to nobody."""
    spec = one(tree, "ScaledObject")["spec"]
    if spec["minReplicaCount"] < 1:
        yield "minReplicaCount is below 1: nobody would wake delayed agents, and no metric would be told"
    modifiers = spec["advanced"]["scalingModifiers"]
    if "fallback" not in spec:
        yield "there is no fallback: without metrics nobody would say how many workers run"
    names = [trigger.get("name") for trigger in spec["triggers"]]
    used = set(re.findall(r"[A-Za-z_]\w*", modifiers.get("formula", "")))
    if len(set(names)) != len(names) or set(names) != used:
        yield f"the formula {modifiers.get('formula')!r} uses {sorted(used)}, the triggers are {names}"
    queue = settings(tree)["TURNMILL_QUEUE"]
    metrics = set()
    for trigger in spec["triggers"]:
        query = trigger["metadata"]["query"]
        found = re.fullmatch(r'max\((turnmill_\w+)\{job="turnmill",queue="([^"]+)"\}\)', query)
        if not found:
            yield f'{query} is not max(METRIC{{job="turnmill",queue="…"}}): every worker tells the same counts'
            continue
        metrics.add(found[1])
        if found[2] != queue:
            yield f"{query} asks for the queue {found[2]}, the workers serve {queue}"
        if not worker.records(found[1]):
            yield f"no worker records {found[1]}"
        if trigger["metadata"].get("ignoreNullValues") != "false":
            yield f"the trigger {trigger['name']} takes absent metrics for 0 (ignoreNullValues)"
    both = {"turnmill_queue_runnable_agents", "turnmill_queue_leased_agents"}
    if metrics != both:
        yield f"the triggers ask for {sorted(metrics)}; lag and pending are {sorted(both)}, and both count"


def restricted(tree: Path):
    """The pod keeps to what its namespace enforces, and can change nothing but its volume."""
    namespace = one(tree, "Namespace")["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
    if namespace != "restricted":
        yield f"the namespace enforces {namespace}, not restricted"
    pod, container = _pod(tree)["spec"], _container(tree)
    wanted = [
        (pod["securityContext"].get("runAsNonRoot"), True, "runAsNonRoot"),
        (pod["securityContext"].get("seccompProfile", {}).get("type"), "RuntimeDefault", "seccompProfile"),
        (container["securityContext"].get("allowPrivilegeEscalation"), False, "allowPrivilegeEscalation"),
        (container["securityContext"].get("readOnlyRootFilesystem"), True, "readOnlyRootFilesystem"),
        (container["securityContext"].get("capabilities", {}).get("drop"), ["ALL"], "capabilities"),
        (pod.get("automountServiceAccountToken"), False, "automountServiceAccountToken"),
        (pod.get("enableServiceLinks"), False, "enableServiceLinks"),
    ]
    for is_, should, name in wanted:
        if is_ != should:
            yield f"{name} is {is_}, not {should}"
