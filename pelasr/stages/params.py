"""Counting parameters."""

from typing import Any

from pelasr.stages.settings import split_adapter_options, split_options


def count(
    config: dict[str, Any], adapter: dict[str, Any] | None, where: str, vocab_size: int, num_languages: int
) -> dict[str, int]:
    """Integer parameter counts of a configured backbone, and of the adapters of its languages, on the very modules that
    train, built without their numbers. `where` names the configuration in errors. Where languages have output layers of
    their own, these have `vocab_size` tokens each and count as the adapters do; `adapter_alone` is without them."""
    import torch

    from pelasr.adapters.bank import count_parameters
    from pelasr.adapters.finetune import make_bank
    from pelasr.adapters.freeze import freeze
    from pelasr.adapters.own import HEAD, OwnParts
    from pelasr.backbones.base import build_backbone
    from pelasr.data.tokenizer import SPECIAL

    family, options, *_ = split_options(config, where)
    with torch.device("meta"):
        backbone = build_backbone(family, options, vocab_size, num_languages)
        own = HEAD in backbone.own_sites().values()
        if own:  # which has but the special tokens of its own
            backbone = build_backbone(family, options, len(SPECIAL), num_languages)
        if adapter is None:
            return count_parameters(backbone)
        method, method_options, *_ = split_adapter_options(adapter, where)
        freeze(backbone)
        bank = make_bank(method, method_options, backbone)
        tokens = [f"<{number}>" for number in range(vocab_size - len(SPECIAL))]
        for number in range(num_languages):
            bank.add(f"language{number}", OwnParts(backbone, tokens, vector=False) if own else None)
    report = count_parameters(backbone, bank)
    if own:
        report["adapter_alone"] = report["adapter_per_language"] - _size(bank.own_of("language0"))
    return report


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
