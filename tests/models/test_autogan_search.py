"""AutoGAN's search: the policy gradient by enumeration, its rules by number, and a search that is killed."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from benchmarks.autogan import search
from benchmarks.autogan.controller import (
    EMPTY,
    ENTROPY_WEIGHT,
    Baseline,
    Beam,
    Controller,
    Draw,
    ResetRule,
    Uniform,
    best,
    policy_loss,
)
from ganbench import recipes
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.gan import checkpoint, minimize
from ganbench.reproduction.plan import Plan
from reference_models.autogan import cells_of, choices


def controller(stage=0, spread=1.0):
    torch.manual_seed(stage)
    policy = Controller(stage)
    for layer in policy.logits:  # far from uniform
        torch.nn.init.normal_(layer.weight, 0.0, spread)
    return policy.double()


def state(n, seed=0):
    h, c = torch.randn(2, n, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return h.tanh(), c


def every_arch(stage):
    return torch.tensor(list(itertools.product(*map(range, choices(stage)))))


# --- The policy ---


def test_the_controller_is_an_lstm_over_the_tokens():
    policy, given = controller(1), torch.tensor([[1, 2, 0, 1, 1]])
    h, c = (v.numpy() for v in state(1))
    log_p, entropy, tokens, last = policy.unroll(state(1), given)
    weights = {k: v.detach().numpy() for k, v in policy.lstm.named_parameters()}
    x, log_ps, entropies = np.zeros((1, 100)), [], []
    for t, token in enumerate(given[0].tolist()):
        gates = (x @ weights["weight_ih"].T + weights["bias_ih"] + h @ weights["weight_hh"].T + weights["bias_hh"])
        i, f, g, o = np.split(gates, 4, axis=1)
        sigmoid = [1 / (1 + np.exp(-v)) for v in (i, f, o)]
        c = sigmoid[1] * c + sigmoid[0] * np.tanh(g)
        h = sigmoid[2] * np.tanh(c)
        layer = policy.logits[t]
        logits = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        p = np.exp(logits) / np.exp(logits).sum()
        log_ps.append(np.log(p[0, token]))
        entropies.append(-(p * np.log(p)).sum())
        x = policy.embedding.weight.detach().numpy()[[sum((2, 3, 3, 2, 2)[:t]) + token]]
    assert log_p.item() == pytest.approx(sum(log_ps))
    assert entropy.item() == pytest.approx(np.mean(entropies))
    assert torch.equal(tokens, given)
    np.testing.assert_allclose(last[0].detach().numpy(), h)
    np.testing.assert_allclose(last[1].detach().numpy(), c)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_probabilities_of_all_architectures_add_up_to_1_and_the_entropies_to_that_of_the_policy(stage):
    archs = every_arch(stage)
    h, c = state(1)
    log_p, entropy, _, _ = controller(stage).unroll((h.expand(len(archs), -1), c.expand(len(archs), -1)), archs)
    p = log_p.exp()
    assert p.sum().item() == pytest.approx(1)
    assert (p * entropy).sum().item() == pytest.approx(-(p * log_p).sum().item() / len(choices(stage)))


def test_the_mean_gradient_of_the_policy_loss_is_that_of_the_objective_whatever_the_baseline():
    """Enumerated over all 36 architectures of a cell, and once more by finite differences."""
    policy, archs = controller(), every_arch(0)
    scores = torch.randn(len(archs), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = list(policy.parameters())
    zeros = (torch.zeros(len(archs), 100).double(),) * 2

    def objective():
        log_p, entropy, _, _ = policy.unroll(zeros, archs)
        return (log_p.exp() * (scores + ENTROPY_WEIGHT * entropy)).sum()

    exact = torch.autograd.grad(objective(), weights)
    for baseline in (0.0, 7.0):
        log_p, entropy, _, _ = policy.unroll(zeros, archs)
        losses = [
            p * policy_loss(a[None], h[None], (s + ENTROPY_WEIGHT * h.detach()).item() - baseline)
            for p, a, h, s in zip(log_p.detach().exp(), log_p, entropy, scores, strict=True)
        ]
        for mean, value in zip(torch.autograd.grad(sum(losses), weights), exact, strict=True):
            torch.testing.assert_close(-mean, value)
    bias, step = policy.logits[1].bias, 1e-5
    with torch.no_grad():
        bias[2] += step
        above = objective()
        bias[2] -= 2 * step
        below = objective()
    index = next(i for i, w in enumerate(weights) if w is bias)
    assert ((above - below) / (2 * step)).item() == pytest.approx(exact[index][2].item(), rel=1e-6)


def test_draws_follow_the_probabilities_and_their_log_p_is_that_of_their_tokens():
    policy = controller(spread=0.3).float()
    beam = Beam([(7,), (8,)], [2.0, 1.0], *torch.randn(2, 2, 100, generator=torch.Generator().manual_seed(2)))
    torch.manual_seed(0)
    with torch.no_grad():
        draw = policy.draw(10000, beam)
        tokens = torch.tensor([arch[1:] for arch in draw.archs])
        rows = torch.tensor([arch[0] - 7 for arch in draw.archs])
        log_p, entropy, _, last = policy.unroll((beam.hidden[rows], beam.cell[rows]), tokens)
        torch.testing.assert_close(draw.log_p, log_p)
        torch.testing.assert_close(draw.entropy, entropy)
        torch.testing.assert_close(draw.hidden, last[0])
        archs = every_arch(0)
        p = sum(policy.unroll((beam.hidden[[r] * 36], beam.cell[[r] * 36]), archs)[0].exp() / 2 for r in (0, 1))
    counts = torch.zeros(2, 3, 3, 2).index_put(tuple(tokens.T), torch.ones(10000), accumulate=True).flatten()
    chi2 = ((counts - 10000 * p) ** 2 / (10000 * p)).sum().item()
    assert chi2 < 70  # 35 degrees of freedom: once in 2,000 seeds
    assert rows.float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_random_search_draws_every_architecture_equally_often():
    torch.manual_seed(0)
    beam = Beam([(7,), (8,)], [2.0, 1.0], EMPTY.hidden.expand(2, -1), EMPTY.cell.expand(2, -1))
    draw = Uniform(2).draw(28800, beam)
    counts = dict.fromkeys(itertools.product((7, 8), *map(range, choices(2))), 0)
    for arch in draw.archs:
        counts[arch] += 1
    chi2 = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi2 < 372  # 287 degrees of freedom: once in 2,000 seeds
    assert draw.log_p.tolist()[:2] == pytest.approx([-math.log(144)] * 2)
    assert draw.entropy[0].item() == pytest.approx(math.log(144) / 5)


def test_the_controller_learns_which_architecture_is_best():
    """Eight draws a step: with one, a start in ten stays with the second best."""
    torch.manual_seed(0)
    policy = Controller(0)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2, betas=(0.0, 0.9))
    for _ in range(60):
        draws = [policy.draw(1, EMPTY) for _ in range(8)]
        rewards = [float(draw.archs[0][0] + (draw.archs[0][2] == 1)) for draw in draws]
        terms = [
            policy_loss(draw.log_p, draw.entropy, reward - sum(rewards) / 8)
            for draw, reward in zip(draws, rewards, strict=True)
        ]
        minimize(torch.stack(terms).mean(), optimizer)
    with torch.no_grad():
        found = policy.draw(100, EMPTY).archs
    assert sum(arch[0] == 1 and arch[2] == 1 for arch in found) > 80


# --- Baseline, beam, reset ---


def test_the_baseline_is_a_moving_average_from_the_first_reward_on():
    baseline = Baseline()
    assert [baseline.advantage(r) for r in (2.0, 3.0, 1.0)] == pytest.approx([0, 1, 1 - 2.1])
    assert baseline.value == pytest.approx(0.9 * 2.1 + 0.1)


def test_the_beam_keeps_the_best_with_their_hidden_states():
    hidden = torch.arange(5.0).unsqueeze(1).expand(5, 100)
    zeros = torch.zeros(5)
    draws = [
        Draw([(0,), (1,)], zeros[:2], zeros[:2], hidden[:2], -hidden[:2]),
        Draw([(2,), (1,), (4,)], zeros[:3], zeros[:3], hidden[2:], -hidden[2:]),
    ]
    found = best(draws, [1.0, 3.0, 2.0, 3.0, 0.5], 3)
    assert found.archs == [(1,), (1,), (2,)]
    assert found.scores == [3.0, 3.0, 2.0]
    assert found.hidden[:, 0].tolist() == [3, 1, 2]  # of equal scores the later one first
    assert found.cell[:, 0].tolist() == [-3, -1, -2]


def test_the_reset_comes_when_a_full_window_hardly_varies():
    rule = ResetRule(4, 1e-3)
    rule.d.extend([1.0] * 4)
    rule.g.extend([0.0, 1.0, 0.0])
    assert not rule.due()  # that of G is not full
    rule.g.append(1.0)
    assert rule.due()  # that of D has no variance
    assert not rule.g
    assert not rule.d
    for amplitude, due in ((0.032, False), (0.031, True)):  # variances 1.024e-3 and 0.961e-3
        rule = ResetRule(4, 1e-3)
        rule.d.extend([0.0, 1.0] * 2)
        rule.g.extend([9.0, 9.0, *[-amplitude, amplitude] * 2])  # the first two have left the window
        assert rule.due() == due


# --- A whole search ---

OPTIONS = ["--budget", "smoke", "--data", "synthetic:1x16x16:4:train", "--extractor", "mnist-cnn", "--image-size", "16",
           "--device", "cpu"]


def run(folder, *options):
    return search.main([str(folder), *OPTIONS, *options])


def contents(folder):
    saved = torch.load(folder / "state.pt", weights_only=True)
    files = {p.name: p.read_text() for p in sorted(folder.glob("*.toml"))}
    return saved, (folder / "log.jsonl").read_text(), files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing interrupts, and what it prints last."""
    folder = tmp_path_factory.mktemp("search") / "whole"
    assert run(folder) == 0
    return folder


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", [1, 5, 14])
def test_a_killed_search_goes_on_to_the_same_result(whole, tmp_path, monkeypatch, calls):
    """Killed at its first score, at the selection between two stages, and in the last iteration."""
    count, score = itertools.count(1), search.Search.score

    def until_killed(self, arch):
        if next(count) == calls:
            raise Killed
        return score(self, arch)

    with monkeypatch.context() as patch:
        patch.setattr(search.Search, "score", until_killed)
        with pytest.raises(Killed):
            run(tmp_path)
    assert run(tmp_path) == 0
    (ours, *texts), (expected, *others) = contents(tmp_path), contents(whole)
    assert texts == others
    for name in ("G", "D", "policy"):
        assert all(torch.equal(a, b) for a, b in zip(ours[name].values(), expected[name].values(), strict=True)), name
    assert run(tmp_path) == 0  # finished: nothing is searched again
    assert contents(tmp_path)[1:] == tuple(others)


def test_the_log_tells_stages_scores_and_beams(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "arch" in line]
    assert [line["stage"] for line in scored] == [1] * 3 + [2] * 3 + [3] * 3
    assert all(len(cells_of(line["arch"])) == line["stage"] for line in scored)
    beams = [line for line in lines if "best" in line]
    assert [len(beam["best"][0]) for beam in beams] == [4, 9, 14]
    assert all(line["scores"] == sorted(line["scores"], reverse=True) for line in beams)
    for beam, later in itertools.pairwise(beams):  # each stage goes on from the beam before
        assert {tuple(arch[: len(beam["best"][0])]) for arch in later["best"]} <= set(map(tuple, beam["best"]))
    assert all(1 <= line["score"] <= 10 for line in scored)


def test_what_it_finds_is_a_recipe_that_can_be_trained(whole, tmp_path, capsys):
    assert run(whole) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"ganbench reproduce {whole / 'autogan-search-s0-top1.toml'}"
    recipe = recipes.read(whole / "autogan-search-s0-top1.toml")
    best_line = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    assert recipe.model.args["arch"] == best_line["best"][0]
    assert checkpoint.make_model("autogan", recipe.model.args, "").image_shape == (1, 16, 16)
    outcome = Plan({recipe.name: recipe}, {}, [0], tmp_path).run(torch.device("cpu"), Reporter(quiet=True))
    ((done,),) = outcome.runs.values()
    assert {m.metric for m in done.result.measurements if m.value is not None} == {"score_mnist-cnn", "fd_mnist-cnn"}


def test_a_random_search_spends_as_much_and_takes_the_best_of_all_that_it_scored(whole, tmp_path):
    assert run(tmp_path, "--random") == 0
    (saved, log, files), (_, other, _) = contents(tmp_path), contents(whole)
    lines, others = ([json.loads(line) for line in text.splitlines()] for text in (log, other))
    assert [(line["iteration"], line["stage"], "steps" in line) for line in lines] == [
        (line["iteration"], line["stage"], "steps" in line) for line in others
    ]
    assert set(files) <= {"autogan-random-s0-top1.toml", "autogan-random-s0-top2.toml"}
    assert saved["policy"] == {}
    last = [line["score"] for line in lines if line["iteration"] == 2 and "arch" in line]
    if not any(line.get("reset") for line in lines if line["iteration"] == 2):
        assert lines[-1]["scores"][0] >= max(last)
    assert lines[-1]["scores"] == sorted(lines[-1]["scores"], reverse=True)


@pytest.mark.parametrize(("options", "message"), [
    (["--extractor", "nothing"], "--extractor nothing: choose one of"),
    (["--extractor", "pixels"], "--extractor pixels has no classes"),
    (["--image-size", "20"], "--image-size must be a multiple of 8"),
    (["--seed", "-1"], "--seed must be between 0"),
    (["--set", "width=3"], "--set width=3: write KEY=VALUE"),
    (["--set", "grow=2,1"], "--set: 0 < grow < grow < iterations"),
    (["--set", "lr=nan"], "--set: numbers must be positive"),
    (["--data", "synthetic:1x16x16:4:train[:2]"], "fewer than one batch"),
    (["--data", "nothing"], "nothing"),
])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(options, message, tmp_path, capsys):
    assert run(tmp_path / "new", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_state_of_another_search_and_a_damaged_one_are_refused(whole, tmp_path, capsys):
    (tmp_path / "state.pt").write_bytes((whole / "state.pt").read_bytes())
    assert run(tmp_path, "--seed", "1") == 2
    assert "is the state of another search (other seed)" in capsys.readouterr().err
    (tmp_path / "state.pt").write_bytes((whole / "state.pt").read_bytes()[:-1000])
    assert run(tmp_path) == 2
    assert "state.pt cannot be read" in capsys.readouterr().err
    assert run(tmp_path, "--fresh") == 0
    assert contents(tmp_path)[1:] == contents(whole)[1:]


def test_the_full_budget_is_the_codes():
    full = search.BUDGETS["full"]
    assert (full.iterations, full.grow, full.controller_steps, full.candidates, full.top) == (65, (15, 35), 30, 10, 5)
    assert full.shared_steps == 15 * math.ceil(50000 / full.batch_size)
    assert search.changed(full, ["grow=10,20", "lr=1e-3"]).grow == (10, 20)
    with pytest.raises(UserError, match="top must be at most"):
        search.changed(full, ["top=11"])
