"""Breaks of Logs."""

from .mutation import Mutation

LOGS = "deploy/logs/"
UNIT = "deploy/systemd/turnmill-worker.service"
PLIST = "deploy/launchd/dev.turnmill.worker.plist"

MUTATIONS = [
    Mutation(
        "rotation",
        "a word that logrotate does not know",
        LOGS + "logrotate.conf",
        "copytruncate\n",
        "copytruncates\n",
        "copytruncates",
    ),
    Mutation(
        "rotation",
        "the file is moved away from its writer",
        LOGS + "logrotate.conf",
        "    copytruncate\n",
        "    create\n",
        "moved away",
    ),
    Mutation("rotation", "nothing is forgotten", LOGS + "logrotate.conf", "    maxage 30\n", "", "forty days"),
    Mutation(
        "journald",
        "a key that journald does not know",
        LOGS + "journald.conf",
        "SystemMaxUse=",
        "SystemMaxSize=",
        "SystemMaxSize",
    ),
    Mutation(
        "vector",
        "a program that does not compile",
        LOGS + "vector.yaml",
        'to_string(.message) ?? ""',
        "to_string(.message)",
        "does not compile",
    ),
    Mutation(
        "vector",
        "a source that is not there",
        LOGS + "vector.yaml",
        "inputs: [journal, files]",
        "inputs: [journal, file]",
        "not there",
    ),
    Mutation(
        "vector", "warnings that are not kept", LOGS + "vector.yaml", '["WARN", "ERROR"]', '["ERROR"]', "kept cold"
    ),
    Mutation(
        "vector",
        "a line that nobody logs",
        LOGS + "vector.yaml",
        "the turn has ended",
        "the turn ended",
        "no worker logs",
    ),
    Mutation("policy", "a journal for a month", LOGS + "journald.conf", "7day", "30day", "30 days"),
    Mutation("policy", "files for a year", LOGS + "logrotate.conf", "maxage 30", "maxage 365", "365"),
    Mutation(
        "policy",
        "logs where nobody looks",
        PLIST,
        "/usr/local/var/log/turnmill/worker.log",
        "/var/log/worker.log",
        "does not look",
    ),
    Mutation(
        "policy",
        "a journal that Vector does not read",
        UNIT,
        "LogNamespace=turnmill",
        "LogNamespace=worker",
        "does not read",
    ),
]
