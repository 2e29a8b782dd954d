"""The tools of the comparison besides Python: compiled programs, a certificate, and twistd.

Everything is made in a temporary directory. A missing tool is not an error: it is named with the
reason, and the servers that need it are skipped.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# How long a compiler may take, in seconds.
COMPILE_TIME = 120


@dataclass(frozen=True)
class Tools:
    """The available tools.

    Attributes:
        directory: where it was made; the caller's to remove.
        missing: why something cannot be had, by name.
        load: the load's command, for plain TCP.
        tls_load: the load's command, for TLS.
    """

    directory: Path
    missing: dict[str, str]
    load: tuple[str, ...]
    tls_load: tuple[str, ...]

    @property
    def certificate(self) -> Path:
        """The certificate's file, in PEM."""
        return self.directory / "certificate.pem"

    @property
    def key(self) -> Path:
        """The file of the certificate's key, in PEM."""
        return self.directory / "key.pem"

    @property
    def twistd(self) -> Path:
        """The twistd of this Python's environment."""
        return _twistd()

    def built(self, name: str) -> Path:
        """Return where a compiled program is."""
        return self.directory / name


def prepare(directory: Path, *, python_load: bool = False) -> Tools:
    """Make the tools that can be made.

    Args:
        directory: an empty directory for it.
        python_load: use the slow load even where a compiler is.
    """
    missing = {}
    for module in ("uvloop", "gevent", "twisted"):
        if importlib.util.find_spec(module) is None:
            missing[module] = f"the Python package {module} is not installed"
    attempts = {
        "cc": _compile_c(directory / "epoll_echo", HERE / "peers" / "epoll_echo.c"),
        "go": _compile_go(directory),
        "certificate": _make_certificate(directory),
        "twistd": _look_for_twistd(),
    }
    missing |= {name: why for name, why in attempts.items() if why}
    shutil.copy(HERE / "peers" / "working.py", directory)
    slow: tuple[str, ...] = (sys.executable, "-m", "bench.load")
    load = tls_load = slow
    if not python_load:
        if not _compile_load(directory / "load"):
            load = (str(directory / "load"),)
        if not _compile_load(directory / "tls_load", "-DWITH_TLS", "-lssl", "-lcrypto"):
            tls_load = (str(directory / "tls_load"),)
    return Tools(directory, missing, load, tls_load)


def _compile_load(target: Path, *flags: str) -> str | None:
    return _compile_c(target, HERE / "load.c", "-pthread", *flags)


def _compile_c(target: Path, source: Path, *flags: str) -> str | None:
    """Compile; return why that failed, None where it did not."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc"))), None)
    if compiler is None:
        return "there is no C compiler (cc, gcc or $CC)"
    return _run([compiler, "-O3", "-o", str(target), str(source), *flags])


def _compile_go(directory: Path) -> str | None:
    go = shutil.which("go")
    if go is None:
        return "go is not installed"
    # Nothing is fetched, and nothing is left in the user's cache.
    settings = {"GO111MODULE": "off", "GOPROXY": "off", "GOCACHE": str(directory / "go_cache")}
    command = [go, "build", "-o", str(directory / "go_echo"), str(HERE / "peers" / "echo.go")]
    return _run(command, settings)


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str | None:
    """Run a compiler; return its first line of complaint where it failed."""
    try:
        result = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=COMPILE_TIME,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} did not work: {error}"
    if result.returncode == 0:
        return None
    complaint = next((line for line in result.stderr.splitlines() if "error" in line), "no reason")
    return f"{Path(command[0]).name} failed: {complaint.strip()}"


def _twistd() -> Path:
    return Path(sys.executable).parent / "twistd"


def _look_for_twistd() -> str | None:
    if not _twistd().exists():
        return "there is no twistd beside this Python"
    if importlib.util.find_spec("echod") is None:
        return "echod is not installed"
    return None


def _make_certificate(directory: Path) -> str | None:
    """Make a certificate of the kind that is cheapest to serve: ECDSA over P-256."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        return "the Python package cryptography is not installed"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (directory / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return None
