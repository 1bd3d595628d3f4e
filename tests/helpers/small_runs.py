"""Options of trainings that take seconds, and how two processes are started for one."""

import socket

SMALL = {
    "encoder_conf": {"num_layers": 2, "hidden_size": 24, "output_size": 16, "reduction_layer": 1},
    "decoder_conf": {"num_layers": 1, "hidden_size": 16, "output_size": 16},
    "joint_net_conf": {"joint_space_size": 16},
    "max_epoch": 3,
    "batch_size": 6,
    "warmup_steps": 5,
    "val_interval": 1,
}


def as_torchrun_does() -> list[dict[str, str]]:
    """The environments of two processes that train together (`tests/test_docs.py` types torchrun itself)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
    both |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [{**both, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
