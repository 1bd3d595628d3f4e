"""Devices, processes and precision of a training, by Lightning Fabric."""

import os
from typing import Any

import lightning.fabric
import torch
from lightning.fabric.strategies.ddp import DDPStrategy

from pelasr.done import Marker
from pelasr.errors import PelasrError
from pelasr.train.checkpoint import CHECKPOINT


def make_fabric(ngpu: int, adapters: bool = False) -> lightning.fabric.Fabric:
    """`ngpu` GPUs of this machine, or its CPU; as many processes and nodes as torchrun or SLURM started."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    devices, nodes = max(ngpu, 1), 1
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif SLURMEnvironment.detect():
        nodes = int(os.environ["SLURM_NNODES"])
        tasks = int(os.environ.get("SLURM_NTASKS", 1))
        if tasks != devices * nodes:
            raise PelasrError(
                f"SLURM started {tasks} tasks, {devices * nodes} are wanted:"
                f" train_cmd='srun --ntasks-per-node={devices} ...'"
            )
    if ngpu > torch.cuda.device_count():
        raise PelasrError(
            f"--ngpu {ngpu}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; use a smaller --ngpu, or"
            " install a CUDA torch (TORCH=cuda tools/install.sh in a new .venv)"
        )
    half = bool(ngpu) and torch.cuda.is_bf16_supported()
    fabric = lightning.fabric.Fabric(
        accelerator="cuda" if ngpu else "cpu",
        devices=devices,
        num_nodes=nodes,
        # A batch need not hold every language, so some adapters have no gradient in some steps.
        strategy=DDPStrategy(find_unused_parameters=adapters) if devices * nodes > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
    )
    fabric.launch()
    return fabric


def claim(marker: Marker, fabric: Any) -> None:
    """The first process claims the folder; all of them stop if it cannot."""
    error = None
    if fabric.global_rank == 0:
        try:
            marker.lock()
            if marker.found is not None and marker.found["done"]:  # by a run that was killed at its very end
                (marker.path.parent / CHECKPOINT).unlink(missing_ok=True)
            marker.write(done=False)
        except PelasrError as refused:
            error = str(refused)
    error = fabric.broadcast(error)
    if error is not None:
        raise PelasrError(error)
