"""Papers for clients of a server with TLS and tokens, made for one run of a bench."""

import shutil
import subprocess
import sys
from pathlib import Path

from runtime.serve.client import Tls


def made_token(folder: Path) -> str:
    """A token that the server knows."""
    command = [sys.executable, "-m", "runtime", "token", "new", "--name", "bench", "--file", str(folder / "tokens.txt")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def certificates(folder: Path) -> Tls | None:
    """An authority, a server's, a client's, and a client's that expired yesterday; None without openssl."""
    if shutil.which("openssl") is None:
        print("note: openssl is not installed; no TLS, no tokens", file=sys.stderr)
        return None

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=bench", "-days", "2")
    (folder / "san.cnf").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=it\n[it]\ndatabase=index.txt\nnew_certs_dir=.\ncertificate=ca.crt\nprivate_key=ca.key\n"
        "rand_serial=yes\ndefault_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n"
    )
    (folder / "index.txt").touch()
    for who in ("server", "client", "expired"):
        openssl("req", *key, "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        valid = ("-days", "2")
        if who == "expired":
            valid = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z")  # type: ignore[assignment]
        extra = ("-extfile", "san.cnf") if who == "server" else ()
        openssl(
            "ca", "-batch", "-config", "ca.cnf", "-in", f"{who}.csr", "-out", f"{who}.crt", "-notext", *valid, *extra
        )
    return Tls(ca=folder / "ca.crt", cert=folder / "client.crt", key=folder / "client.key")
