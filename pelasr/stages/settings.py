"""Configurations, split among those they are for."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelasr.config import check_keys, construct
from pelasr.errors import PelasrError, brief
from pelasr.nn.defaults import settled
from pelasr.tasks.base import find_task
from pelasr.train.options import AdapterConfig, BackboneConfig, MetaOptions, TrainingOptions

if TYPE_CHECKING:
    from pelasr.backbones.base import Backbone


def split_options(config: dict[str, Any], where: str) -> BackboneConfig:
    """A flat configuration. Raises PelasrError for a key that neither the family nor the training has.

    The key `task` names a task that the languages do not tell; it is checked here. The key `model` names the folder of
    a pretrained encoder, which says what the encoder is; a configuration that leaves it empty wants it to be named.
    """
    from pelasr.backbones.base import backbone_options

    if "backbone" not in config:
        raise PelasrError(f"{where}: the key `backbone` is missing")
    family = config["backbone"]
    training = [field.name for field in fields(TrainingOptions)]
    check_keys(config, ["backbone", "task", "model", *backbone_options(family), *training], where)
    if "task" in config:
        find_task(str(config["task"]))
    options = {key: value for key, value in config.items() if key in backbone_options(family)}
    model = Path(str(config["model"])) if config.get("model") else None
    if "model" in config and model is None:
        raise PelasrError(f"{where}: model: of which pretrained encoder? Name its folder with --model DIR")
    if model is not None:
        if family != "ctc":
            raise PelasrError(f"{where}: model: a pretrained encoder goes into the backbone `ctc`, not {family!r}")
        options = _options_of(model, options, f"{where}: model")
    return BackboneConfig(family, settled(options), _training(config), model)


def _options_of(model: Path, options: dict[str, Any], where: str) -> dict[str, Any]:
    """The options, with what the folder of a pretrained encoder says of it; those of the configuration count first."""
    from pelasr.backbones.pretrained import read_pretrained

    found = read_pretrained(model)
    if options.get("encoder", found.encoder) != found.encoder:
        raise PelasrError(f"{where}: {model} is a {found.encoder}, the configuration says {options['encoder']!r}")
    conf = {**found.encoder_conf, **(options.get("encoder_conf") or {})}
    masks = {"masks": found.mask_conf} if found.mask_conf else {}
    return {"normalise": found.normalise, **masks, **options, "encoder": found.encoder, "encoder_conf": conf}


def configured_backbone(config: dict[str, Any]) -> "Backbone":
    """The backbone of a flat configuration without its weights, to be asked what it hears, and how fast it is."""
    import torch

    from pelasr.backbones.base import build_backbone

    family, options, *_ = split_options(config, "configuration")
    with torch.device("meta"):
        return build_backbone(family, options, vocab_size=3, num_languages=1)


def trains_with_ctc(config: dict[str, Any]) -> bool:
    """Whether a flat configuration's utterances must be as long as CTC needs for their labels."""
    from pelasr.backbones.base import find_backbone

    if config.get("ctc_weight"):
        return True
    return "backbone" in config and find_backbone(config["backbone"]).trains_with_ctc


def split_adapter_options(config: dict[str, Any], where: str) -> AdapterConfig:
    """A flat configuration of adapters. Raises PelasrError for an unknown key, and for options that are no mapping."""
    training = [field.name for field in fields(TrainingOptions)]
    check_keys(config, ["adapter", "adapter_conf", "meta_conf", *training], where)
    if "adapter" not in config:
        raise PelasrError(f"{where}: the key `adapter` is missing")
    meta = construct(MetaOptions, config.get("meta_conf") or {}, "meta_conf")
    options = config.get("adapter_conf") or {}
    if not isinstance(options, dict):
        raise PelasrError(f"{where}: adapter_conf: expected `key: value` lines, found {brief(repr(options))}")
    return AdapterConfig(config["adapter"], options, _training(config), meta)


def _training(config: dict[str, Any]) -> TrainingOptions:
    return TrainingOptions(
        **{field.name: config[field.name] for field in fields(TrainingOptions) if field.name in config}
    )


def check_adapter(config: dict[str, Any], where: str) -> None:
    """Raise PelasrError for options that the configured method does not have, long before stage 5."""
    from pelasr.adapters.base import method_options

    method, options, *_ = split_adapter_options(config, where)
    check_keys(options, method_options(method), f"{where}: adapter_conf of {method}")
