"""Cores, memory and devices of this machine against what the run asks for."""

import os
from pathlib import Path
from typing import Any

from rayjepa.config import RunConfig
from rayjepa.doctor.finding import Check, Finding, error, ok, warning
from rayjepa.train.room import available_gib, memory_gib

DRIVER, DEVICES = Path("/proc/driver/nvidia/version"), Path("/dev")
IMPORT_S = 60.0
"""Importing PyTorch from a loaded network drive takes this long."""
NVIDIA = "https://docs.nvidia.com/deploy/cuda-compatibility"


def compute_checks(run: RunConfig, *, alone: bool) -> list[Check]:
    """`alone`: the run has no other machine than this one."""
    return [
        Check("cores", lambda: cores(run, alone=alone)),
        Check("memory", lambda: memory(run, alone=alone)),
        Check("devices", lambda: devices(run, alone=alone), IMPORT_S),
    ]


def cores(run: RunConfig, *, alone: bool) -> list[Finding]:
    """CPUs that this process may use, what a container leaves of them, and who else uses them."""
    have, quota = len(os.sched_getaffinity(0)), cpu_quota()
    usable = min(have, quota or have)
    need = run.cluster.workers * run.train.threads + run.cluster.decoders
    found = f"{have} cores" + (f", of which the container may use {quota:g}" if quota and quota < have else "")
    lines = [ok("cores", found)]
    if alone and need > usable:
        what = f"{found}; the run starts {run.cluster.workers} worker(s) x {run.train.threads} thread(s) and "
        what += f"{run.cluster.decoders} decoder(s): correct, and slow"
        remedy = f"lower cluster.workers, cluster.decoders or train.threads to {usable:g} in all"
        lines = [warning("cores", what, remedy)]
    load = os.getloadavg()[0]
    if load > 1.5 * usable:
        what = f"{load:.1f} processes want to run on {usable:g} cores: start-up is slow and timings say little"
        lines.append(warning("load", what, "find the others with `top`, or wait"))
    return lines


def cpu_quota(limits: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that the container may keep busy; None: as many as there are."""
    try:
        quota, period = limits.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory(run: RunConfig, *, alone: bool) -> Finding:
    """Free memory, also that which a container leaves, against the processes of the run."""
    free = available_gib()
    if not alone:
        return ok("memory", f"{free:.1f} GiB free")
    need = memory_gib(run) + _model_gib(run)
    found = f"{free:.1f} GiB free; the run takes about {need:.1f} GiB"
    if need > free:
        remedy = "lower cluster.workers, cluster.decoders or cluster.object_store_gib, or attach to a cluster"
        return error("memory", found, f"{remedy} with cluster.address")
    return ok("memory", found)


def _model_gib(run: RunConfig) -> float:
    """Parameters, gradients, optimizer and target of all workers, if this machine's memory has to hold them."""
    from rayjepa.model import sizes
    from rayjepa.train import budget

    if any(DEVICES.glob("nvidia[0-9]*")) and run.cluster.gpus is not False:
        return 0.0
    encoder, predictor = sizes(run)
    held = budget.memory(budget.engine_of(run), run, encoder=encoder, predictor=predictor, activations=0.0)
    return run.ranks * held.state / 2**30


def devices(run: RunConfig, *, alone: bool) -> list[Finding]:
    """What PyTorch sees, and why it may see less than there is."""
    import torch

    cuda: Any = torch.cuda
    driver, asked = DRIVER.exists(), bool(run.cluster.gpus) and run.cluster.workers > 0
    if not cuda.is_available():
        return [_no_gpu(torch.__version__, torch.version.cuda, driver=driver, asked=asked and alone)]
    names = [cuda.get_device_name(k) for k in range(cuda.device_count())]
    sizes = [cuda.get_device_properties(k).total_memory / 2**30 for k in range(len(names))]
    nccl = ".".join(map(str, cuda.nccl.version()))
    kinds = sorted({f"{name}, {size:.0f} GiB" for name, size in zip(names, sizes, strict=True)})
    lines = [ok("devices", f"{len(names)} x {'; '.join(kinds)}; CUDA {torch.version.cuda}, NCCL {nccl}")]
    if alone and run.cluster.gpus and len(names) < run.cluster.workers:
        what = f"{len(names)} GPU(s) for cluster.workers={run.cluster.workers}, and cluster.gpus=true"
        lines.append(error("devices", what, f"cluster.workers={len(names)}, or cluster.gpus=false"))
    if len(kinds) > 1:
        what = "GPUs of several kinds: every step waits for the slowest"
        lines.append(warning("devices", what, "choose those of one kind with CUDA_VISIBLE_DEVICES"))
    if any("MIG" in name for name in names) and run.cluster.workers > 1:
        what = f"slices of a GPU (MIG); NCCL joins no two of one GPU, and cluster.workers={run.cluster.workers}"
        lines.append(warning("devices", what, "cluster.workers=1, or whole GPUs: `nvidia-smi -mig 0` as root"))
    if run.train.precision == "bf16" and not cuda.is_bf16_supported(including_emulation=False):
        what = f"train.precision=bf16, which {names[0]} only emulates"
        lines.append(warning("devices", what, "train.precision=fp32"))
    return lines


def _no_gpu(version: str, cuda: str | None, *, driver: bool, asked: bool) -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver and cuda is None:
        what = f"an NVIDIA driver is here, and PyTorch {version} was built without CUDA"
        return warning("devices", what, "pip install --force-reinstall torch, from the index for your CUDA")
    if driver and hidden is not None and hidden.strip() in ("", "-1"):
        what = f"an NVIDIA driver is here, and CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU"
        return warning("devices", what, "unset CUDA_VISIBLE_DEVICES")
    if driver:
        what = f"an NVIDIA driver is here, and PyTorch {version} (CUDA {cuda}) cannot use it: too old, or no device"
        return warning("devices", what, f"`nvidia-smi` shows the driver's CUDA version; what goes with what: {NVIDIA}")
    if asked:
        return error("devices", "no GPU, and cluster.gpus=true", "cluster.gpus=false, or a cluster that has some")
    return ok("devices", f"no GPU; PyTorch {version} on CPU cores")
