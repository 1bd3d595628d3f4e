"""Fits by several learning rates: which is taken, what is not done again, and what other seeds do."""

import json
import shutil
from dataclasses import replace

import pytest
from small_fits import ADAPTED, CONFIG, fit, pack, same

from pelasr.cost import read_cost
from pelasr.errors import PelasrError
from pelasr.stages.decode import decode
from pelasr.stages.rates import fit_rates, read_record
from pelasr.train.loop import Fit


def fit_all(place, *rates, experiment=ADAPTED, languages=(), go_on=False, **options):
    """Fit by each of the rates; which were, and whether there was anything to do."""
    fitted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "run", lambda self, run=Fit.run: (fitted.append(self.folder.parent.name), run(self)))
        only = list(languages) or place.languages
        done = fit_rates(place, replace(experiment, rates=rates), CONFIG | options, "test", only, 0, go_on=go_on)
    assert done == bool(fitted) or not fitted
    return fitted


def record(place, name="A5", languages=("hi", "ta")):
    return read_record(place.exp / name, list(languages))


def candidate(place, folder, language, name="A5"):
    return (place.exp / name / folder / "packs" / language / "pack.yaml").read_bytes()


def test_the_best_on_dev_is_taken(place):
    assert fit_all(place, 1e-9, 0.03) == ["lr_1e-09", "lr_0.03"]
    found = record(place)
    scores = {each["lr"]: (each["dev"]["wer"], each["dev"]["loss"]) for each in found["candidates"]}
    assert found["chosen"] == min(scores, key=lambda rate: scores[rate]) == 0.03
    assert all(each["epochs"] == 2 and each["seconds"] > 0 for each in found["candidates"])
    for language in place.languages:
        path = place.exp / "A5/packs" / language
        assert (path / "pack.yaml").read_bytes() == candidate(place, "lr_0.03", language)
        assert (path / "pack.safetensors").read_bytes() == (
            place.exp / "A5/lr_0.03/packs" / language / "pack.safetensors"
        ).read_bytes()
    assert decode(place, ADAPTED, ["test"], place.languages, 0)
    cost = read_cost(place.exp / "A5/decode/test_hi")
    assert cost is not None and cost.seconds > 0 and cost.memory_mb > 50 and cost.where.startswith("cpu, ")


def test_one_rate_gives_the_packs_of_a_usual_fit(place):
    """What the grid adds is folders."""
    assert fit_all(place, 0.03)
    chosen = {language: pack(place, language) for language in place.languages}
    shutil.rmtree(place.exp / "A5")
    assert fit(place, optim_conf={"lr": 0.03})
    assert all(same(chosen[language], pack(place, language)) for language in place.languages)


def test_what_is_done_is_not_done_again_and_a_grid_may_grow(place):
    assert fit_all(place, 0.001) == ["lr_0.001"]
    assert fit_all(place, 0.001) == [] and record(place)["chosen"] == 0.001
    assert fit_all(place, 0.001, 0.03) == ["lr_0.03"]
    assert record(place)["chosen"] == 0.03 and len(record(place)["candidates"]) == 2
    assert (place.exp / "A5/packs/hi/pack.yaml").read_bytes() == candidate(place, "lr_0.03", "hi")
    assert fit_all(place, 0.001, 0.03) == []
    (place.exp / "A5/packs/hi/pack.safetensors").write_bytes(b"x")  # is made again
    assert fit_all(place, 0.001, 0.03) == []
    assert fit_all(place, 0.001) == [] and record(place)["chosen"] == 0.001  # of what is asked for
    assert (place.exp / "A5/packs/hi/pack.yaml").read_bytes() == candidate(place, "lr_0.001", "hi")


def test_it_goes_on_where_it_was(place, monkeypatch):
    """Also in the second of two rates, to the same packs; the time is that of both parts."""
    assert fit_all(place, 0.001, 0.03)
    packs = {language: pack(place, language) for language in place.languages}
    shutil.rmtree(place.exp / "A5")
    save = Fit._save

    def stop(self):
        save(self)
        if self.folder.parent.name == "lr_0.03" and self.place.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fit, "_save", stop)
        fit_all(place, 0.001, 0.03)
    assert not (place.exp / "A5/packs").exists()  # nothing is chosen yet
    before = []
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_load", lambda self, load=Fit._load: (load(self), before.append(self.place.seconds)))
        assert fit_all(place, 0.001, 0.03) == ["lr_0.03"]
    assert all(same(packs[language], pack(place, language)) for language in place.languages)
    assert read_cost(place.exp / "A5/lr_0.03/fit_hi_ta").seconds > before[0] > 0


def test_other_seeds_take_the_choice_of_the_first(place):
    other = replace(ADAPTED, name="A5.seed3", seed=3)
    with pytest.raises(PelasrError, match=r"A5/rates_hi_ta.json: no such file.*the learning rate is chosen with"):
        fit_all(place, 0.001, 0.03, experiment=other, seed=3)
    fit_all(place, 0.001, 0.03)
    assert fit_all(place, 0.001, 0.03, experiment=other, seed=3) == ["lr_0.03"]
    assert record(place, "A5.seed3")["chosen"] == 0.03
    paths = [place.exp / name / "lr_0.03/fit_hi_ta/adapt.json" for name in ("A5", "A5.seed3")]
    seeds = [json.loads(path.read_text())["inputs"]["seed"] for path in paths]
    assert seeds == [0, 3]


def test_only_the_chosen_one_is_trained_further(place):
    fit_all(place, 0.001, 0.03)
    before = candidate(place, "lr_0.03", "hi")
    assert fit_all(place, 0.001, 0.03, go_on=True) == ["lr_0.03"]
    assert candidate(place, "lr_0.03", "hi") != before
    assert (place.exp / "A5/packs/hi/pack.yaml").read_bytes() == candidate(place, "lr_0.03", "hi")
    assert fit_all(place, 0.001, 0.03) == []
    assert [each["epochs"] for each in record(place)["candidates"]] == [2, 4]


def test_a_new_language_has_a_choice_of_its_own(place):
    fit_all(place, 0.001, 0.03)
    assert fit_all(place, 0.001, 0.03, languages=["ur"]) == ["lr_0.001", "lr_0.03"]
    assert record(place, languages=["ur"])["chosen"] in (0.001, 0.03)
    assert fit_all(place, 0.001, 0.03) == []


def test_a_pack_from_elsewhere_is_not_lost(place):
    fit(place, optim_conf={"lr": 0.5})
    shutil.rmtree(place.exp / "A5/fit_hi_ta")
    with pytest.raises(PelasrError, match="A5/packs/hi: no fit here has made it, and this one would overwrite it"):
        fit_all(place, 0.001)
