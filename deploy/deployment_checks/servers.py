"""A real Redis, started as Compose starts it: it takes its configuration, keeps what it should, and lets its users do their work."""

import json
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from . import compose
from .worker import STAND_IN, Worker

CONFIG = "deploy/compose/redis.conf"


def _free_port() -> int:
    """A port that nobody listens on, below those that the system hands out itself: between now and the server's start, another
    check's connection could get one of those."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise SystemExit("error: found no free port between 20000 and 29999 on 127.0.0.1")


class _Redis:
    """redis-server as Compose starts it, with a port and a folder of its own."""

    def __init__(self, tree: Path, scratch: Path):
        data = scratch / "redis"
        data.mkdir()
        self.port = _free_port()
        self.log = scratch / "redis.log"
        config = scratch / "redis.conf"
        config.write_text(re.sub(r"^dir .*$", f"dir {data}", (tree / CONFIG).read_text(), flags=re.MULTILINE))
        words = [
            "redis-server",
            str(config),
            *compose.redis_command(tree),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def ask(self, user: str, password: str, *words: str) -> str:
        command = [
            "redis-cli",
            "-p",
            str(self.port),
            "--no-auth-warning",
            *(["--user", user, "--pass", password] if user else []),
        ]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=10)
        return (done.stdout + done.stderr).strip()

    def answers(self) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.ask("health", "none", "ping") == "PONG":
                return True
            time.sleep(0.02)
        return False

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def redis(tree: Path, worker: Worker, scratch: Path):
    """Durability, users, and a few hundred turns through the worker's own code as the user `worker`."""
    server = _Redis(tree, scratch)
    try:
        if not server.answers():
            yield f"Redis does not start, or does not let the health check ask: {server.log.read_text().strip()[-500:]}"
            return
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        for key, value in wanted.items():
            said = server.ask("producer", STAND_IN, "config", "get", key).split()
            if said != [key, value]:
                yield f"Redis says {' '.join(said)}, not {key} {value}"
        for user, password, words in [
            ("", "", ["ping"]),
            ("health", "none", ["get", "x"]),
            ("worker", STAND_IN, ["flushall"]),
            ("worker", STAND_IN, ["get", "other"]),
            ("producer", STAND_IN, ["config", "set", "save", ""]),
        ]:
            said = server.ask(user, password, *words)
            if not said.startswith(("NOAUTH", "NOPERM")):
                yield f"{user or 'nobody'} may {' '.join(words)}: {said}"
        for user in ["worker", "producer"]:
            said = server.ask(user, STAND_IN, "publish", "tm:{default.0}:x", "y")
            if said != "0":
                yield f"{user} may not publish in the queue's channels: {said}"
        yield from _turns(server, worker)
    finally:
        server.stop()


def _turns(server: _Redis, worker: Worker):
    url = f"redis://worker:{STAND_IN}@127.0.0.1:{server.port}"
    command = [str(worker.binary), "bench", "queue", "--redis-url", url, "--turns", "200", "--workers", "2", "--json"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        yield f"a worker cannot do its work as the user worker: {done.stderr.strip()[-500:]}"
        return
    json.loads(done.stdout)
