"""Brokers that are not Mosquitto, started for one test: RabbitMQ with its MQTT plugin, NATS."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guarded_program import GUARD

from tools.local_fleet.local_broker import answers_mqtt, free_port

STARTS_S = 60.0  # RabbitMQ takes ten seconds on an idle machine
PATHS = (*os.environ.get("PATH", os.defpath).split(":"), "/usr/sbin", "/usr/local/sbin")


def find(program: str) -> Path | None:
    """Return where ``program`` is, also if only root's PATH looks there."""
    found = shutil.which(program, path=":".join(PATHS))
    return Path(found) if found else None


@contextmanager
def nats(directory: Path) -> Iterator[int]:
    """Run NATS with JetStream and MQTT; yield the port of the latter."""
    directory.mkdir(parents=True)
    port, own = free_port(), free_port()
    (directory / "nats.conf").write_text(
        f'listen: "127.0.0.1:{own}"\nserver_name: edgefold\n'
        f'jetstream {{ store_dir: "{directory}/store", max_mem: 64M, max_file: 256M }}\n'
        f'mqtt {{ listen: "127.0.0.1:{port}" }}\n'
    )
    command = [str(find("nats-server")), "-c", str(directory / "nats.conf")]
    with _running(command, directory, dict(os.environ), port, ""):
        yield port


@contextmanager
def rabbitmq(directory: Path) -> Iterator[int]:
    """Run RabbitMQ in a directory of its own; yield its port.

    Its user is guest, whose password is guest, and from elsewhere than here nobody gets in.
    """
    directory.mkdir(parents=True)
    port, own = free_port(), free_port()
    (directory / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{own}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\n"
        "mqtt.allow_anonymous = false\nmqtt.prefetch = 8\n"
        "vm_memory_high_watermark.absolute = 256MB\ndisk_free_limit.absolute = 50MB\n"
    )
    (directory / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
    cookie = directory / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ")
    } | {
        "HOME": str(directory),
        "RABBITMQ_NODENAME": f"edgefold{port}@localhost",
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "ERL_EPMD_PORT": str(free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +A 16 -kernel inet_dist_use_interface "
        "{127,0,0,1}",
    }
    # Not /usr/sbin/rabbitmq-server: that one changes to another user.
    command = ["/usr/lib/rabbitmq/bin/rabbitmq-server"]
    with _running(command, directory, environment, port, "guest"):
        yield port


@contextmanager
def _running(
    command: list[str], directory: Path, environment: dict[str, str], port: int, account: str
) -> Iterator[None]:
    log_file = directory / "broker.log"
    with open(log_file, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(GUARD), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the test, which ends it
        )
    try:
        deadline = time.monotonic() + STARTS_S
        while not answers_mqtt("127.0.0.1", port, account or None, account or None):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log_file.read_text(errors="replace")[-2000:])
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30.0)
