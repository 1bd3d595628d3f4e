"""What a method is: a function of a host module's input and output, one file in `methods/`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pelasr.config import arguments_of, class_in, construct, find_module
from pelasr.errors import PelasrError
from pelasr.nn.parts import Parts

SIDES = ("encoder", "decoder")  # the second is all that comes after the encoder


class Adapter(nn.Module):
    """Base of a method: one language's adapter at one site. A subclass is written for one language and any batch, and
    has a `forward`, which changes what its host puts out, or a `before`, which changes what goes into it, or both. Both
    must be independent between rows.

    The constructor takes the options, and as far as it names them `width`, of the host's output, `width_in`, of its
    input, `host`, the module itself, to be looked at, `path`, its name in the backbone, `index`, its number among those
    of its kind, from 0, `language`, whose adapter it is to be, and `alone`, whether only languages that are new to the
    backbone have one at this site. `sites`
    are the kinds of site the method goes to by itself, as far as the backbone has them, `sides` those of the backbone,
    `because` what is said where there is no such site. `size` is the option that is 0 where there is to be no adapter.
    A method that `copies` has neither: every language gets its own copy of the host modules, to be trained. One that is
    made of others says in `parts` which hangs on which kind of site; its options are theirs; and in `together` those
    kinds of which a language has all or none. One that `fuses` the
    adapters of other packs hangs where these do, whose method and options are its options `method` and `method_conf`;
    its `load(number, tensors)` takes an adapter, and own parts are those of such a pack and not trained.

    `by_row`: it also works with parameters that have a row for each of x, (B, ...), as the modules of `pelasr.nn.mixed`
    do: so mixed batches are faster. Any other is run under `vmap` in mixed batches, where it sees batches of one.

    `shifts`: all that `forward` does is to add to y what does not depend on x or y. Only such a method may hang on an
    output layer (`output`), of which a loss may take the weights and not call it.

    `needs` are further arguments of `forward`, by name: `inside` (B, T), which frames are the utterance's own, in the
    encoder; `counted` (B, T), the same in a loss alone, of labels in a decoder too; `shared`, see `Shared`, which a
    method must be `by_row` for.
    """

    sites: tuple[str, ...] = ("layer",)
    sides: tuple[str, ...] = SIDES
    because: str = ""
    parts: Mapping[str, type["Adapter"]] = {}
    together: tuple[str, ...] = ()
    size: str = ""
    copies: bool = False
    fuses: bool = False
    by_row: bool = False
    shifts: bool = False
    needs: tuple[str, ...] = ()

    def before(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the host is called with instead of its positional and keyword arguments, which are as the backbone gives
        them: tensors have a row for each utterance, (B, ...), or a first dimension of 1 for what all share.

        An input that gets longer is returned with the frames (B,) or the mask that say its length, longer too, where
        the host is given them; otherwise it is refused. The host then puts out more frames than without, which must be
        right for what comes after: whole encoders return their frames, and attention puts out one for each query,
        whatever keys and values there are.
        """
        return args, kwargs

    def forward(self, x: Tensor, y: Tensor, **needed: Any) -> Tensor:
        """What replaces the host's output y, given its input x (as `before` leaves it): (B, T, D) each; of some hosts
        (B, D) or (B, T, F, D), but D is always last. Only where what comes after takes it may T change."""
        return y

    @classmethod
    def wants(cls, host: nn.Module) -> bool:
        """Whether there is something to adapt at a host, where one method looks for a bias, say. By default always."""
        return True

    @classmethod
    def choose(cls, found: Mapping[str, Any], backbone: Parts) -> Mapping[str, Any]:
        """Of the sites {path: `adapters.where.Site`} where it would hang, those where it does. Raises PelasrError for
        sites that do not go together, and for a backbone that it cannot work on. By default all of them."""
        return found

    def settle(self) -> None:
        """Become what the pack of a fitted language holds, where training had more, and do the same as before. One that
        did so already stays as it is. A method that does keeps all its tensors in parameters and what `state_dict`
        holds: to be loaded it is made without values."""

    def fold(self, host: nn.Module) -> None:
        """Change the host's weights so that it does alone what it did with the adapter, exactly. Raises PelasrError
        for a method that no weights of a host can express."""
        raise PelasrError(f"{type(self).__name__.lower()} adapters cannot be folded into the backbone's weights")


@dataclass
class Shared:
    """What the adapters of a batch share, for methods whose sites depend on each other: `values` by any name, and
    `losses` (B,) that are added to what is minimised, by site or any other name. A module that is computed again in a
    backward pass must find and leave the same as the first time."""

    values: dict[Any, Tensor] = field(default_factory=dict)
    losses: dict[Any, Tensor] = field(default_factory=dict)


# What a method's constructor is given beside its options.
GIVEN = ("width", "width_in", "host", "path", "index", "language", "alone")


def options_of(cls: type[Adapter]) -> list[str]:
    """Options of a class of a method."""
    return [key for key in arguments_of(cls) if key not in GIVEN]


def method_options(name: str) -> list[str]:
    """Options of a method, `sites` included; those of a fine-tuning are none."""
    cls = find_method(name)
    parts = cls.parts.values() if cls.parts else [cls]
    sites = [] if cls.copies or cls.fuses else ["sites"]
    return [] if cls.copies else [*sites, *dict.fromkeys(key for part in parts for key in options_of(part))]


def make_adapter(cls: type[Adapter], options: dict[str, Any], where: str, **given: Any) -> Adapter:
    """An adapter of a class with its options, and with what is given as far as the class names it. Raises PelasrError,
    which begins with `where`, for options that it cannot have."""
    return construct(cls, options, where, **{name: given[name] for name in given if name in arguments_of(cls)})


def find_method(name: str) -> type[Adapter]:
    """The adapter class of `pelasr/adapters/methods/<name>.py`, or of a recipe's `local/methods/<name>.py`; an unknown
    name is an error that lists them."""
    return class_in(find_module("pelasr.adapters.methods", name, "adapter: no method"), Adapter)
