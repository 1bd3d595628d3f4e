# Sourced by the pipeline: what the long stages are run by. Empty: on this machine. On a cluster, for example
#   train_cmd="srun --partition=gpu --gres=gpu:1 --cpus-per-task=8"
# or, on several nodes, one task per GPU (see docs/clusters.md).
train_cmd="${train_cmd:-}"
decode_cmd="${decode_cmd:-}"
