"""Breaks of Kubernetes."""

from .mutation import Mutation


def _kubernetes(check, what, file, old, new, expects):
    return Mutation(check, what, "deploy/kubernetes/" + file, old, new, expects)


MUTATIONS = [
    _kubernetes(
        "kubernetes-schemas",
        "a field that the API does not know",
        "deployment.yaml",
        "revisionHistoryLimit",
        "revisionHistoryLimits",
        "revisionHistoryLimits",
    ),
    _kubernetes(
        "kubernetes-schemas",
        "a field one level too high",
        "poddisruptionbudget.yaml",
        "spec:\n  maxUnavailable: 1",
        "maxUnavailable: 1\nspec:",
        "maxUnavailable",
    ),
    _kubernetes(
        "kubernetes-schemas", "a number that must be text", "settings.yaml", 'SEQUENCES: "32"', "SEQUENCES: 32", "32"
    ),
    _kubernetes(
        "kubernetes-schemas",
        "a key that stands twice",
        "service.yaml",
        "  clusterIP: None",
        "  clusterIP: None\n  clusterIP: None",
        "stands twice",
    ),
    _kubernetes(
        "custom-resources",
        "a field that KEDA does not know",
        "keda/scaledobject.yaml",
        "formula:",
        "formulas:",
        "formulas",
    ),
    _kubernetes(
        "custom-resources",
        "a fallback that KEDA does not know",
        "keda/scaledobject.yaml",
        "currentReplicasIfHigher",
        "keep",
        "keep",
    ),
    _kubernetes(
        "custom-resources",
        "a threshold that is no text",
        "keda/scaledobject.yaml",
        'threshold: "8"',
        "threshold: 8",
        "string",
    ),
    _kubernetes(
        "custom-resources",
        "a field that PodMonitor does not know",
        "prometheus-operator/podmonitor.yaml",
        "scrapeTimeout",
        "timeout",
        "timeout",
    ),
    _kubernetes(
        "kustomizations",
        "a document in no list",
        "kustomization.yaml",
        "  - poddisruptionbudget.yaml\n",
        "",
        "in no list",
    ),
    _kubernetes(
        "kustomizations",
        "an example that would be applied",
        "kustomization.yaml",
        "  - settings.yaml",
        "  - settings.yaml\n  - secret.example.yaml",
        "would be applied",
    ),
    _kubernetes(
        "kubernetes-settings",
        "a misspelt setting",
        "settings.yaml",
        "TURNMILL_QUEUE:",
        "TURNMILL_QEUE:",
        "TURNMILL_QEUE",
    ),
    _kubernetes(
        "kubernetes-settings",
        "a misspelt secret",
        "secret.example.yaml",
        "TURNMILL_REDIS_URL",
        "TURNMILL_REDIS_ULR",
        "TURNMILL_REDIS_ULR",
    ),
    _kubernetes(
        "kubernetes-settings",
        "a value that the worker refuses",
        "settings.yaml",
        "512MiB",
        "512MB of memory",
        "refuses",
    ),
    _kubernetes(
        "selectors",
        "a Service that selects nobody",
        "service.yaml",
        "  selector:\n    app.kubernetes.io/name: turnmill-worker",
        "  selector:\n    app.kubernetes.io/name: worker",
        "Service selects",
    ),
    _kubernetes(
        "selectors",
        "KEDA scales somebody else",
        "keda/scaledobject.yaml",
        "    name: turnmill-worker\n  polling",
        "    name: turnmill\n  polling",
        "KEDA scales turnmill",
    ),
    _kubernetes(
        "selectors",
        "a namespace of its own",
        "networkpolicy.yaml",
        "namespace: turnmill",
        "namespace: default",
        "default",
    ),
    _kubernetes(
        "references",
        "a ConfigMap of another name",
        "settings.yaml",
        "turnmill-worker-settings",
        "settings",
        "ConfigMap",
    ),
    _kubernetes(
        "references",
        "a cache that nobody can write",
        "settings.yaml",
        "HF_HOME: /var",
        "HF_HOME: /srv",
        "nobody can write",
    ),
    _kubernetes(
        "references",
        "a label of another queue",
        "deployment.yaml",
        "turnmill.dev/queue: default",
        "turnmill.dev/queue: other",
        "queue other",
    ),
    _kubernetes(
        "probes", "a probe of a path that is not there", "deployment.yaml", "/health/live", "/healthz", "/healthz"
    ),
    _kubernetes("probes", "the wrong question", "deployment.yaml", "/health/startup", "/health/ready", "startupProbe"),
    _kubernetes("probes", "another port", "deployment.yaml", "containerPort: 9470", "containerPort: 9471", "9471"),
    _kubernetes(
        "probes", "a policy for another port", "networkpolicy.yaml", "port: 9470", "port: 9090", "NetworkPolicy"
    ),
    _kubernetes(
        "grace", "killed while it drains", "deployment.yaml", "PeriodSeconds: 75", "PeriodSeconds: 56", "is 56"
    ),
    _kubernetes("grace", "a longer drain", "settings.yaml", '"45000"', '"90000"', "takes 90 s"),
    _kubernetes(
        "grace", "taken away too fast", "keda/scaledobject.yaml", "periodSeconds: 90", "periodSeconds: 30", "every 30 s"
    ),
    _kubernetes(
        "memory",
        "a pool larger than the pod",
        "settings.yaml",
        "POOL_BYTES: 512MiB",
        "POOL_BYTES: 2GiB",
        "is less than",
    ),
    _kubernetes(
        "scaling",
        "lag alone",
        "keda/scaledobject.yaml",
        "formula: runnable + leased",
        "formula: runnable",
        "uses ['runnable']",
    ),
    _kubernetes(
        "scaling", "down to nobody", "keda/scaledobject.yaml", "minReplicaCount: 1", "minReplicaCount: 0", "below 1"
    ),
    _kubernetes(
        "scaling",
        "a sum over workers",
        "keda/scaledobject.yaml",
        "max(turnmill_queue_leased",
        "sum(turnmill_queue_leased",
        "is not max(",
    ),
    _kubernetes(
        "scaling",
        "a metric that nobody records",
        "keda/scaledobject.yaml",
        "queue_runnable_agents",
        "queue_runnable",
        "no worker records turnmill_queue_runnable",
    ),
    _kubernetes(
        "scaling",
        "absent is nothing to do",
        "keda/scaledobject.yaml",
        '        ignoreNullValues: "false"\n',
        "",
        "ignoreNullValues",
    ),
    _kubernetes(
        "restricted",
        "a root file system to write",
        "deployment.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "readOnlyRootFilesystem is False",
    ),
]
