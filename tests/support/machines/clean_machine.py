"""A Debian as debootstrap makes it, with its own systemd and an ordinary user who may sudo.

`boot.sh` boots it. It has nothing that edgefold's README does not install itself. What the
machine below it gives: the address of its package registries (apt, pip), and its network for what
the user types. Services have a network of their own, of which several machines may have one in
common; it is only a loopback, with the address 192.0.2.10 too, so that README's server is there.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["ADDRESS", "CleanMachine", "debootstrap", "repository_of", "why_no_machine"]

SOURCE = Path(__file__).parents[3]
ADDRESS = "https://git.example.org/edgefold.git"  # what README calls the place of edgefold
USER = "pi"
BOOT = Path(__file__).parents[2] / "systemd/boot.sh"
PACKAGES = "systemd,systemd-sysv,dbus,sudo"
PIP_KEYS = ("cert", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def why_no_machine() -> str | None:
    """Return why this computer cannot boot a Debian in namespaces, None if nothing is known."""
    if os.geteuid() != 0:
        return "booting a Debian needs root"
    for program in ("debootstrap", "nsenter", "unshare", "setpriv", "git"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None


def debootstrap(suite: str, directory: Path) -> Path:
    """Return the untouched root file system of ``suite``; it is made once, and kept."""
    root = directory / suite
    if root.exists():
        return root
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f"{suite}.{os.getpid()}"
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(draft)]
    done = subprocess.run([*command, *_mirror()], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(draft, ignore_errors=True)
        raise RuntimeError(f"debootstrap {suite} failed: {(done.stdout + done.stderr)[-500:]}")
    draft.rename(root)
    return root


def repository_of(source: Path, directory: Path) -> Path:
    """Make a bare repository of what ``source`` has, with uncommitted changes to known files."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    commit = git("stash", "create") or git("rev-parse", "HEAD")
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(directory)], check=True)
    git("-C", str(directory), "config", "receive.shallowUpdate", "true")  # CI may clone so
    git("push", "-q", str(directory), f"{commit}:refs/heads/main")
    return directory


class CleanMachine:
    """One booted Debian; as a context it is switched off and deleted at the end."""

    def __init__(
        self, suite: Path, root: Path, *, repository: Path, network_of: Self | None = None
    ) -> None:
        """Copy ``suite`` to ``root``, give it its user, and boot it.

        ``repository`` is what its git finds at `ADDRESS`.

        Raises:
            RuntimeError: it does not boot here; the message is the last line of boot.sh.
        """
        self.root = root
        self.name = root.name
        subprocess.run(["cp", "-a", "--reflink=auto", str(suite), str(root)], check=True)
        self._furnish(repository)
        self._log = root.with_suffix(".log")
        arguments = [str(network_of.pid)] if network_of else []
        with self._log.open("wb") as log:
            self._boot = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "TERM",
                    BOOT,
                    root,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self._wait_for_systemd()
        self.cwd = f"/home/{USER}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._boot.poll() is None:
            os.kill(self.pid, signal.SIGRTMIN + 14)  # to systemd: power off, and stop nothing first
            try:
                self._boot.wait(60)
            except subprocess.TimeoutExpired:
                self._boot.terminate()
                self._boot.wait()
        shutil.rmtree(self.root)

    def type(self, command: str, *, user: str = USER, timeout_s: float = 600) -> str:
        """Run ``command`` as typed by ``user`` in a shell; return what it printed, stderr too.

        A ``cd`` holds for the next command.

        Raises:
            AssertionError: it failed.
        """
        code, printed = self.attempt(command, user=user, timeout_s=timeout_s)
        assert code == 0, f"{self.name}: {user}$ {command}\n{printed}\nexit code {code}"
        return printed

    def attempt(
        self,
        command: str,
        *,
        user: str = USER,
        timeout_s: float = 600,
        services_network: bool = False,
    ) -> tuple[int, str]:
        """Likewise; return the exit code too.

        The shell has the network of the machine below (packages come from there), or with
        ``services_network`` that of the services.
        """
        script = f'cd "$1" || exit\n{command}\nstatus=$?\npwd >~/.cwd\nexit $status\n'
        (self.root / "var/tmp/typed.sh").write_text(script)
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-p", "-C"]
        enter += ["-n"] if services_network else []
        where = self.cwd if user == USER else ""  # others start in their home
        done = subprocess.run(
            [*enter, "--", "su", "-", user, "-c", f'bash /var/tmp/typed.sh "{where}"'],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if user == USER:
            self.cwd = (self.root / f"home/{USER}/.cwd").read_text().strip()
        return done.returncode, done.stdout

    def file(self, path: str) -> Path:
        """Return where the file ``path`` of the machine lies on the one below it."""
        return self.root / path.removeprefix("/")

    def give(self, path: str) -> None:
        """Make ``path`` the user's own."""
        self._chroot("chown", "-R", f"{USER}:{USER}", path)

    def add_user(self, name: str) -> None:
        """Add an ordinary user."""
        self._chroot("useradd", "--create-home", "--shell", "/bin/bash", name)

    def _furnish(self, repository: Path) -> None:
        self.add_user(USER)
        etc = self.root / "etc"
        rule = f'{USER} ALL=(ALL) NOPASSWD: ALL\nDefaults env_keep += "{" ".join(PROXIES)}"\n'
        (etc / "sudoers.d/010_pi-nopasswd").write_text(rule)  # as on Raspberry Pi OS
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        shutil.copy("/etc/resolv.conf", etc / "resolv.conf")
        (etc / "systemd/system/console-getty.service").symlink_to("/dev/null")  # no console here
        with (etc / "environment").open("a") as environment:
            environment.writelines(
                f"{name}={os.environ[name]}\n" for name in PROXIES if name in os.environ
            )
        (etc / "apt/apt.conf.d/90machine").write_text(_apt_settings())
        (etc / "pip.conf").write_text(_pip_settings(self.root))
        shutil.copytree(repository, self.root / "srv/edgefold.git")
        self.give("/srv/edgefold.git")
        rule = f'[url "/srv/edgefold.git"]\n\tinsteadOf = {ADDRESS}\n'
        (etc / "gitconfig").write_text(rule)

    def _wait_for_systemd(self) -> int:
        pid_file = self.root.with_name(f"{self.name}.pid")
        for _ in range(600):
            if self._boot.poll() is not None:
                raise RuntimeError(self._log.read_text().strip().rpartition("\n")[2])
            if pid_file.exists() and (written := pid_file.read_text().strip()):
                self.pid = int(written)
                state = self.attempt("systemctl is-system-running", user="root")[1].strip()
                if state in ("running", "degraded"):
                    return self.pid
            time.sleep(0.1)
        self._boot.terminate()
        raise RuntimeError("systemd does not come up within a minute")

    def _chroot(self, *command: str) -> None:
        subprocess.run(["chroot", str(self.root), *command], check=True)


def _mirror() -> list[str]:
    """Return where this machine has Debian's packages from; nothing: debootstrap knows one."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()[:1]


def _apt_settings() -> str:
    """Return how this machine's apt reaches its registry: proxies, and what it checks."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    wanted = re.compile(r"Acquire::(https?|Check-)", re.IGNORECASE)
    kept = [line for line in done.stdout.splitlines() if wanted.match(line)]
    return "\n".join([*kept, 'Acquire::Retries "3";', ""])


def _pip_settings(root: Path) -> str:
    """Return a pip.conf with which ``root`` has its packages from where this machine has them."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = {}
    for line in listed.splitlines():
        name, _, quoted = line.partition("=")
        settings[name.rpartition(".")[2]] = quoted.strip("'")
    kept = {key: settings[key] for key in PIP_KEYS if key in settings}
    if "extra-index-url" in kept and kept["extra-index-url"].startswith("file:"):
        del kept["extra-index-url"]  # of this machine's own disk
    if "cert" in kept:
        shutil.copy(kept["cert"], root / "etc/machine-ca.pem")
        kept["cert"] = "/etc/machine-ca.pem"
    return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in kept.items())
