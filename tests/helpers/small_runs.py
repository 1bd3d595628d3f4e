"""Options of trainings that take seconds."""

SMALL = {
    "encoder_conf": {"num_layers": 2, "hidden_size": 24, "output_size": 16, "reduction_layer": 1},
    "decoder_conf": {"num_layers": 1, "hidden_size": 16, "output_size": 16},
    "joint_net_conf": {"joint_space_size": 16},
    "max_epoch": 3,
    "batch_size": 6,
    "warmup_steps": 5,
    "val_interval": 1,
}
