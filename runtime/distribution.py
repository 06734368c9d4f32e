"""Finds the real tritonserver, or installs it from NVIDIA's wheel: no docker, no root."""

import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import referent
from referent.triton.repository import Device

WHEEL = "nvidia-pytriton==0.7.0"
VERSION = "2.51.0"  # of the tritonserver in the wheel
BACKENDS = Path(__file__).parent / "backends"
PACKAGES = Path(referent.__file__).parents[1]  # what the generator backend imports is the code that runs here

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distribution:
    """A tritonserver: `root` has its bin/, backends/, caches/; `wheel` is the unpacked wheel, None for a vendor's."""

    root: Path
    wheel: Path | None = None

    @property
    def executable(self) -> Path:
        return self.root / "bin" / "tritonserver"

    def environment(self) -> dict[str, str]:
        """Variables for the server: its libraries, and this interpreter for the Python stubs."""
        path = f"{PACKAGES}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
        if not self.wheel:
            return {**os.environ, "PYTHONPATH": path}
        folders = [sysconfig.get_config_var("LIBDIR"), f"{self.wheel}/nvidia_pytriton.libs"]
        libraries = ":".join([*folders, os.environ.get("LD_LIBRARY_PATH", "")])
        binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "LD_LIBRARY_PATH": libraries.rstrip(":"), "PATH": binaries, "PYTHONPATH": path}

    def best_device(self) -> Device:
        """The GPU if there is one and ONNX Runtime was built for it, else the CPU."""
        if not Path("/dev/nvidiactl").exists():
            return "cpu"
        try:
            import onnxruntime
        except ImportError:
            return "cpu" if self.wheel else "gpu"
        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return "gpu" if has_cuda or not self.wheel else "cpu"

    def assemble_backends(self, directory: Path) -> Path:
        """The backend directory to serve with, made in `directory`: the vendor's own and the generator's, or, for the
        wheel, Python's for the running interpreter and all of ours."""
        target = directory / "backends"
        target.mkdir(parents=True)
        if not self.wheel:
            for backend in (self.root / "backends").iterdir():
                (target / backend.name).symlink_to(backend)
            (target / "generator").symlink_to(BACKENDS / "generator")
            return target
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self.root / "python_backend_stubs" / python / "triton_python_backend_stub"
        if not stub.exists():
            raise RuntimeError(f"tritonserver {VERSION} has no stub for Python {python}; use Python 3.11 to 3.13")
        shutil.copytree(self.root / "backends" / "python", target / "python")  # Triton refuses linked files
        shutil.copy(stub, target / "python")
        _link_to_this_python(target / "python" / stub.name)
        for backend in BACKENDS.iterdir():
            (target / backend.name).symlink_to(backend)
        return target


def find_distribution() -> Distribution:
    """A vendor's tritonserver on PATH with its ONNX Runtime backend, else the wheel's, installed at first use.

    The wheel (55 MB, 144 MB unpacked) lives in $REFERENT_TRITON_DIR, by default
    ~/.cache/referent/tritonserver-<version>. Raises RuntimeError where it cannot be installed.
    """
    if vendor := shutil.which("tritonserver"):
        root = Path(vendor).resolve().parent.parent
        if (root / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").exists():
            return Distribution(root)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wheel = Path(os.environ.get("REFERENT_TRITON_DIR") or cache / "referent" / f"tritonserver-{VERSION}")
    distribution = Distribution(wheel / "pytriton" / "tritonserver", wheel)
    if not distribution.executable.exists():
        _install(wheel)
    return distribution


def _link_to_this_python(stub: Path) -> None:
    """Makes the stub load the interpreter's own library. The wheel's library is of an early Python 3.13 and lacks what
    the standard library of later releases imports. Does nothing for a static build, which has no such library."""
    name = str(sysconfig.get_config_var("INSTSONAME")).encode()
    if Path(sysconfig.get_config_var("LIBDIR"), name.decode()).is_file():
        bundled = re.compile(rb"libpython3-[0-9a-f]+\.\d+\.so\.1\.0")
        # at the same length, since a string of an ELF file ends with a zero
        stub.write_bytes(bundled.sub(lambda match: name.ljust(len(match[0]), b"\0"), stub.read_bytes()))


def _install(directory: Path) -> None:
    """Unpacks the wheel beside `directory`, then renames: no reader ever sees a part of it."""
    logger.info("installing tritonserver %s (a download of 55 MB) into %s", VERSION, directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".tritonserver-") as temporary:
        unpacked = Path(temporary, "wheel")
        options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--target", str(unpacked)]
        pip = subprocess.run([sys.executable, "-m", "pip", "install", *options, WHEEL], capture_output=True, text=True)
        if pip.returncode:
            remedy = f"install it yourself: pip install --no-deps --target {directory} {WHEEL}"
            raise RuntimeError(f"tritonserver could not be installed: {pip.stderr.strip()[-500:]}\n{remedy}")
        try:
            unpacked.rename(directory)
        except OSError:  # another process was faster
            if not (directory / "pytriton").exists():
                raise
