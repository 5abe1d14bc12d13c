"""The machine itself: GPU, free space, folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from heimdall.doctor.findings import Finding
from heimdall.settings import Settings

LITTLE_SPACE_GIB = 5.0
NO_SPACE_GIB = 0.5
SMALL_SHARED_MEMORY_MIB = 256
GIB = 1 << 30


def check_home(settings: Settings) -> Iterator[Finding]:
    """Whether journals can be written, and how much room there is for them and for checkpoints."""
    folder = settings.home
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        yield Finding(
            name="home",
            status="failed",
            said=f"{folder} cannot be written: {error.strerror}",
            mend="free space there, change its owner, or set HEIMDALL_HOME to a folder of yours",
        )
        return
    yield Finding(name="home", status="ok", said=f"{folder} can be written")
    yield _space("space, home", folder)
    outputs = Path("outputs").absolute()
    yield _space("space, outputs", outputs if outputs.is_dir() else outputs.parent)


def _space(name: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / GIB
    said = f"{free:.1f} GiB free at {folder}"
    mend = "free some: a checkpoint or journal that finds no room ends the run"
    if free < NO_SPACE_GIB:
        return Finding(name=name, status="failed", said=said, mend=mend)
    if free < LITTLE_SPACE_GIB:
        return Finding(name=name, status="warning", said=said, mend=mend)
    return Finding(name=name, status="ok", said=said)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108 - measured, not written
    """Loader workers hand batches over in shared memory; Docker's default of 64 MiB is too little."""
    if not folder.exists():
        yield Finding(name="shared memory", status="skipped", said=f"there is no {folder} here")
        return
    size = shutil.disk_usage(folder).total // (1 << 20)
    if size < SMALL_SHARED_MEMORY_MIB:
        yield Finding(
            name="shared memory",
            status="warning",
            said=f"{size} MiB",
            mend="give the container more (TRAINING_SHM_SIZE), or keep --num-workers 0",
        )
    else:
        yield Finding(name="shared memory", status="ok", said=f"{size} MiB")


def check_gpu(*, needed: bool) -> Iterator[Finding]:
    """Whether torch sees a GPU and can compute on it. Fails only where one is ``needed``."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            values = torch.ones(256, 256, device=f"cuda:{index}")
            total = float((values @ values).sum())
            memory = torch.cuda.get_device_properties(index).total_memory / GIB
            said = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
            if total != 256.0**3:
                yield Finding(name="gpu", status="failed", said=f"{said}: computes wrong", mend="take it out of use")
            else:
                yield Finding(name="gpu", status="ok", said=said)
        return
    has_device = Path("/dev/nvidiactl").exists()
    if torch.version.cuda is None:
        said, mend = "this torch is a CPU build", "install torch from an index that offers the CUDA build"
    elif has_device:
        said = f"a driver is there, but torch for CUDA {torch.version.cuda} cannot use it"
        mend = "update the NVIDIA driver (nvidia-smi shows which CUDA it serves)"
    else:
        said, mend = "none visible", "in the stack, start with docker-compose.gpu.yml (make up does where it can)"
    if needed or has_device:
        yield Finding(name="gpu", status="failed" if needed else "warning", said=said, mend=mend)
    else:
        yield Finding(name="gpu", status="skipped", said=f"{said}; training uses the CPU")
