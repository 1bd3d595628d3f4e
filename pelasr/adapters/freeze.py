"""A frozen backbone."""

from functools import partial

from torch import nn

from pelasr.errors import PelasrError


def freeze(backbone: nn.Module) -> None:
    """No gradients, and evaluation mode (dropout off, BatchNorm's statistics fixed) that `train()` does not end."""
    backbone.requires_grad_(False)
    backbone.train = partial(_stay_frozen, backbone)  # not a function in here, which could not be pickled
    backbone.train()


def _stay_frozen(backbone: nn.Module, mode: bool = True) -> nn.Module:
    for module in backbone.modules():
        # cuDNN refuses a recurrent layer's backward pass in evaluation mode; it has no dropout of its own here.
        module.training = isinstance(module, nn.RNNBase)
    return backbone


def check_frozen(backbone: nn.Module) -> None:
    """Raise PelasrError if any tensor of the backbone would train."""
    training = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    if training:
        raise PelasrError(f"{len(training)} tensors of the backbone would train, {training[0]} first: freeze it")
