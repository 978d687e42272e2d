"""Breaks of systemd and launchd."""

from .mutation import Mutation

UNIT = "deploy/systemd/turnmill-worker.service"
ENV_EXAMPLE = "deploy/systemd/turnmill-worker.env.example"
PLIST = "deploy/launchd/dev.turnmill.worker.plist"

MUTATIONS = [
    Mutation(
        "systemd",
        "a word that systemd does not know",
        UNIT,
        "NoNewPrivileges=yes",
        "NoNewPrivilege=yes",
        "NoNewPrivilege",
    ),
    Mutation("systemd", "less hardened", UNIT, "SystemCallFilter=@system-service\n", "", "exposure"),
    Mutation(
        "unit-settings",
        "a misspelt setting",
        ENV_EXAMPLE,
        "TURNMILL_STORE=auto",
        "TURNMILL_STOER=auto",
        "TURNMILL_STOER",
    ),
    Mutation(
        "unit-settings",
        "a misspelt example",
        ENV_EXAMPLE,
        "#TURNMILL_MODEL_SHA256",
        "#TURNMILL_MODEL_SHA",
        "TURNMILL_MODEL_SHA",
    ),
    Mutation(
        "unit-settings",
        "a misspelt setting in a comment",
        UNIT,
        "TURNMILL_KV_KEYS=%d",
        "TURNMILL_KEYS=%d",
        "TURNMILL_KEYS",
    ),
    Mutation("unit-settings", "killed while it drains", UNIT, "TimeoutStopSec=60", "TimeoutStopSec=40", "is 40 s"),
    Mutation("unit-settings", "nowhere to keep K and V", UNIT, "HOME=%S/turnmill ", "", "has no folder"),
    Mutation(
        "unit-behaviour", "stopped by another signal", UNIT, "KillSignal=SIGTERM", "KillSignal=SIGQUIT", "SIGQUIT"
    ),
    Mutation("launchd", "no XML", PLIST, "</plist>", "</list>", "cannot be read"),
    Mutation(
        "launchd",
        "a key that launchd does not know",
        PLIST,
        "<key>ExitTimeOut</key>",
        "<key>ExitTimeout</key>",
        "ExitTimeout",
    ),
    Mutation("launchd", "a number as text", PLIST, "<integer>15</integer>", "<string>15</string>", "of the type str"),
    Mutation("launchd", "killed while it drains", PLIST, "<integer>60</integer>", "<integer>35</integer>", "is 35 s"),
    Mutation(
        "launchd", "a misspelt setting", PLIST, "<key>TURNMILL_QUEUE</key>", "<key>TURNMILL_QEUE</key>", "TURNMILL_QEUE"
    ),
]
