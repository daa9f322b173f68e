import json
import sys

import pytest
import torch

from benchmarks import gpu
from stn import ops
from stn.ops import cpu, dispatch
from stn_recipes.cli import main


def test_every_available_backend_is_compared():
    found = ops.check(30)
    available = {name for name, state in ops.backends().items() if state == "available"} - {"reference"}
    assert set(found) == available
    for compared in found.values():
        assert compared.wrong == ()
        assert 0 < compared.largest < 1e-4
        assert 10 < compared.cases <= 30 * (2 if torch.cuda.is_available() else 1)


@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.skipif(ops.backends()["cpu"] != "available", reason="no native backend")
def test_a_wrong_backend_is_found(monkeypatch, what):
    right = getattr(cpu, what)

    def wrong(*args):
        results = right(*args)
        return results * 1.001 if what == "forward" else (results[0], results[1] * 1.001)

    monkeypatch.setattr(cpu, what, wrong)
    assert len(ops.check(20)["cpu"].wrong) > 5
    assert ops.check(20)["aten"].wrong == ()


def test_nan_is_wrong(monkeypatch):
    backend = dispatch.BACKENDS[-2]
    monkeypatch.setattr(backend, "forward", lambda image, c, r: image.new_full((*image.shape[:2], *c.size), torch.nan))
    assert len(ops.check(20)[backend.NAME].wrong) > 5


@pytest.mark.parametrize("bad", [0, -1, 1.5, "ten"])
def test_a_bad_number_of_cases(bad):
    with pytest.raises(ValueError, match=r"^cases: "):
        ops.check(bad)


def test_on_the_command_line(capsys, monkeypatch):
    assert main(["info", "--check"]) == 0
    assert "against the reference, all right" in capsys.readouterr().out
    monkeypatch.setattr(ops, "check", lambda: {"cpu": ops.selfcheck.Checked(3, 0.5, ("a case, off by 0.5",))})
    assert main(["info", "--check"]) == 1
    assert "a case, off by 0.5" in capsys.readouterr().err


def test_the_command_for_owners_of_a_gpu(monkeypatch, tmp_path, capsys):
    file = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--seconds", "0.01", "--cases", "10", "--only", "28,28", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    gpu.main()
    cases = json.loads(file.read_text())["cases"]
    assert [row["case"] for row in cases] == ["256,1,28,28", "256,1,60,60 -> 28,28", "8,256,28,28", "1,1,28,28"]
    assert all(times[name] > 0 for row in cases for times in row["steps"].values() for name in ("stn", "torch"))
    monkeypatch.setattr(gpu, "check", lambda n: {"triton": ops.selfcheck.Checked(n, 0.5, ("a case, off by 0.5",))})
    with pytest.raises(SystemExit, match=r"a backend is wrong, nothing is timed:\ntriton: a case, off by 0\.5"):
        gpu.main()
    assert json.loads(file.read_text())["cases"] == []
