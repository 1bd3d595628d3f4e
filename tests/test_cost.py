"""What a fit or a decoding took, as its folder has it."""

import pytest
import torch

from pelasr.cost import COST, read_cost, write_cost


def test_what_is_written_is_read(tmp_path):
    assert read_cost(tmp_path) is None
    write_cost(tmp_path, 1.23456, torch.device("cpu"))
    found = read_cost(tmp_path)
    assert found is not None and found.seconds == 1.235 and found.memory_mb > 20 and found.device == "cpu"
    assert found.threads == torch.get_num_threads()
    assert found.where == f"cpu, {found.threads} thread{'s' * (found.threads > 1)}"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_a_damaged_one_is_none(tmp_path, damage):
    (tmp_path / COST).write_bytes(damage)
    assert read_cost(tmp_path) is None


def test_an_altered_one_is_none(tmp_path):
    write_cost(tmp_path, 11.5, torch.device("cpu"))
    path = tmp_path / COST
    path.write_text(path.read_text().replace("11.5", "10.5"))
    assert read_cost(tmp_path) is None
