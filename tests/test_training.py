"""The training loop: interrupted and resumed, in half precision, on several processes, and files that do not fit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from aa.errors import InputError
from aa.training import Objective, Run, rate_at, train


class Line(Objective):
    """A small network with dropout that learns y = 3x."""

    def __init__(self, width: int = 8):
        super().__init__()
        torch.manual_seed(0)
        self.trained = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 1))
        self.fixed = nn.Linear(1, 1)
        self.calls = 0

    def draw(self, rng, size):
        return (torch.from_numpy(rng.standard_normal((size, 1))).float(),)

    def forward(self, x):
        self.calls += 1
        loss = (self.trained(x) - 3 * x).square().mean()
        return {"total": loss, "root": loss.sqrt()}


RUN = Run(steps=60, batch=8, rate=1e-2, seed=3, average=0.9, every=20)


def weights(objective):
    return torch.cat([p.detach().flatten() for p in objective.trained.parameters()])


def test_it_learns_and_leaves_the_rest_alone():
    line = Line()
    fixed, before = line.fixed.weight.clone(), torch.random.get_rng_state()
    curves = train(line, replace(RUN, steps=200), "line")
    assert [len(v) for v in curves.values()] == [200, 200]
    assert sum(curves["total"][-20:]) < 0.2 * sum(curves["total"][:20])
    assert torch.equal(line.fixed.weight, fixed)
    assert line.fixed.weight.requires_grad
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers go on as if nothing had been"


def test_resumed_training_equals_the_uninterrupted_one_to_the_bit(tmp_path):
    whole, parts = Line(), Line()
    curves = train(whole, RUN, "line")

    class Interrupted(Exception):
        pass

    plain = parts.forward

    def breaks(x):
        if parts.calls == 47:
            raise Interrupted
        return plain(x)

    parts.forward = breaks
    kept = replace(RUN, folder=tmp_path)
    with pytest.raises(Interrupted):
        train(parts, kept, "line")
    again = Line()
    assert train(again, kept, "line") == curves
    assert again.calls == 20, "from the checkpoint of step 40 on"
    assert torch.equal(weights(again), weights(whole))
    finished = Line()
    assert train(finished, kept, "line") == curves
    assert finished.calls == 0
    assert torch.equal(weights(finished), weights(whole))
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"], "nothing is pickled, nothing half written is left"


def test_the_running_mean_is_what_is_left():
    plain, mean = Line(), Line()
    train(plain, replace(RUN, average=0.0), "line")
    train(mean, RUN, "line")
    assert not torch.equal(weights(plain), weights(mean))


def test_a_checkpoint_that_does_not_fit_is_refused_in_a_sentence(tmp_path):
    kept = replace(RUN, steps=20, folder=tmp_path)
    train(Line(), kept, "line")
    path = tmp_path / "line.safetensors"
    for other, run in ((Line(9), kept), (Line(), replace(kept, steps=30))):
        with pytest.raises(InputError, match="other settings: delete it"):
            train(other, run, "line")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="damaged"):
        train(Line(), kept, "line")


def test_rate_warms_up_and_falls():
    rates = [rate_at(n, Run(steps=1000)) for n in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 50)
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    assert rates[-1] == pytest.approx(2e-5, rel=0.1)


def test_mixed_precision_learns_with_full_precision_weights():
    line = Line()
    curves = train(line, replace(RUN, steps=100, precision="bf16"), "line")
    assert weights(line).dtype == torch.float32
    assert sum(curves["total"][-20:]) < 0.5 * sum(curves["total"][:20])
    train(Line(), RUN, "line")  # and full precision again, in the same process


def work(folder: str) -> None:
    """What each of several processes runs; the first writes what it got."""
    line = Line()
    curves = train(line, replace(RUN, folder=folder), "line")
    if int(os.environ["RANK"]) == 0:
        (Path(folder) / "got.json").write_text(json.dumps([curves["total"], weights(line).tolist()]))


@pytest.mark.slow
def test_two_processes_share_a_training(tmp_path):
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29511"]  # as `accelerate launch` on CPUs
    subprocess.run([sys.executable, *launch, __file__, str(tmp_path)], check=True, capture_output=True)
    curve, ended = json.loads((tmp_path / "got.json").read_text())
    assert len(curve) == RUN.steps
    assert sum(curve[-10:]) < sum(curve[:10])
    alone = Line()
    assert train(alone, RUN, "line")["total"] != curve, "the other process draws other examples"
    again = Line()
    train(again, replace(RUN, folder=tmp_path), "line")  # one process reads what two have written
    torch.testing.assert_close(weights(again), torch.tensor(ended))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    work(sys.argv[1])
