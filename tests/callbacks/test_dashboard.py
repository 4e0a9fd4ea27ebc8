"""TensorBoard's first page: the budget, queries, the layout, hyper-parameters and figures."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import zoo
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from nlhf_zoo import (
    Budget,
    CollapseWatch,
    Dashboard,
    ExactMetrics,
    GameFigures,
    GradientSteps,
    Sample,
    TabularPolicy,
    read_history,
)
from nlhf_zoo.algorithms import EGPO, NashMD, NashMP
from nlhf_zoo.callbacks.budget import spent_share
from nlhf_zoo.callbacks.dashboard import LAYOUT, final_tags
from nlhf_zoo.data.tables.games import cyclic
from nlhf_zoo.metrics.processes import run_folder
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.solvers import regularised_nash


class Board(Logger):
    """Has the interface of Lightning's WandbLogger, and remembers what it was told."""

    save_dir = name = version = ""

    def __init__(self, folder: Path, version: str = "a1b2") -> None:
        self.save_dir, self.name, self.version = str(folder), "project", version
        self.told: list[tuple[str, int, float]] = []
        self.images: list[str] = []

    @property
    def experiment(self) -> object:
        return self

    def log_hyperparams(self, params) -> None:
        json.dumps(params)

    def log_metrics(self, metrics, step=None) -> None:
        assert "step" not in metrics
        self.told += [(tag, step, float(value)) for tag, value in metrics.items()]

    def log_image(self, key: str, images: list, step=None, **kwargs) -> None:
        assert isinstance(images, list)
        self.images.append(key)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    (file,) = folder.rglob("events*")
    events = EventAccumulator(str(file)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def rock_paper_scissors(tmp_path_factory):
    """Nash-MP on a cycle of three, in TensorBoard and in a board of the other kind."""
    folder = tmp_path_factory.mktemp("runs")
    P = cyclic(3, 0.9)
    log_reference = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    policy = TabularPolicy(zoo.TensorReference(log_reference))
    game = zoo.OnlineGame(policy, MatrixOracle(P), NashMP())
    callbacks = [ExactMetrics(), Dashboard(), GameFigures(), Budget(queries=61)]
    board = Board(folder)
    loggers = [TensorBoardLogger(folder, "game", 0, default_hp_metric=False), board]
    player = zoo.rows.trainer(devices=1, limit_val_batches=0, callbacks=callbacks, logger=loggers)
    player.fit(game, zoo.TablePrompts())
    return folder, game, board, callbacks[2]


def test_the_share_of_the_budget_ends_at_one(rock_paper_scissors):
    """61 queries are thirty rounds: no round is left, though a query is."""
    share = scalars(rock_paper_scissors[0])["budget/share"]
    assert share[0] == (0, 0)
    assert share[-1] == (30, 1)
    assert all(0 <= value <= 1 for _, value in share)


def test_both_loggers_have_the_same_tags(rock_paper_scissors):
    folder, _, board, _ = rock_paper_scissors
    here = scalars(folder)
    told = {(tag, step) for tag, step, _ in board.told if tag != "epoch"}
    assert told == {(tag, step) for tag, rows in here.items() for step, _ in rows} - {("epoch", 0)}
    assert board.images == ["figures/convergence", "figures/preferences", "figures/simplex"]
    assert here["hp/exploitability"][-1][1] == here["game/exploitability"][-1][1]


def test_figures_are_there_against_queries(rock_paper_scissors):
    here = scalars(rock_paper_scissors[0])
    by_round, by_query = (here[f"{area}/exploitability"] for area in ("game", "by_query"))
    assert by_query == [(2 * number, value) for number, value in by_round]


def test_the_layout_shows_what_is_logged_and_each_tag_alone(rock_paper_scissors):
    (file,) = rock_paper_scissors[0].rglob("events*")
    events = EventAccumulator(str(file)).Reload()
    (told,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(told.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [*LAYOUT]
    tags = [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]
    shown = {one for one in events.Tags()["scalars"] for tag in tags if re.match(tag, one)}
    assert {"by_query/exploitability", "budget/share", "game/kl_to_reference"} <= shown
    assert not [one for one in shown if one.endswith("_max")]
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    assert [tag for tag in tags if f"`{tag.rstrip('$')}`" not in page] == []


def test_figures_lie_in_the_run_and_the_path_is_the_policys(rock_paper_scissors):
    folder, game, _, figures = rock_paper_scissors
    for name in ("convergence", "preferences", "simplex"):
        with Image.open(folder / f"game/version_0/figures/{name}.png") as image:
            assert len({*image.convert("L").tobytes()}) > 10  # not empty
    path = np.exp(figures.state_dict()["path"].numpy())
    assert path.shape == (31, 3)
    assert path[0] == pytest.approx([0.7, 0.2, 0.1])
    nash = regularised_nash(game.oracle.table, game.log_policy("reference"), game.beta)
    assert path[-1] == pytest.approx(nash.log_policy[0].exp().numpy(), abs=1e-2)
    again = GameFigures()
    again.load_state_dict(figures.state_dict())
    assert again.state_dict()["path"].tolist() == figures.state_dict()["path"].tolist()
    again._add(31, torch.zeros(5000, 1, 3))
    assert len(again.state_dict()["path"]) <= 2000


def test_short_runs_and_large_tables_are_not_drawn(tmp_path):
    for rounds, names in ((19, []), (20, ["convergence.png"])):
        oracle = MatrixOracle(zoo.games.uniform_random(1, 13, seed=3))
        policy = TabularPolicy(zoo.TensorReference(torch.zeros(1, 13).log_softmax(-1)))
        game = zoo.OnlineGame(policy, oracle, EGPO())
        logger = TensorBoardLogger(tmp_path, "game", rounds)
        zoo.fit(game, rounds, callbacks=[ExactMetrics(), GameFigures()], logger=logger)
        found = tmp_path.glob(f"game/version_{rounds}/figures/*")
        assert [path.name for path in found] == names


def sampled(folder: Path, **options) -> tuple[L.Trainer, Board]:
    board = Board(folder)
    parts = {"rollout": Sample(4, 2), "realisation": GradientSteps()}
    game = zoo.small_game(NashMD(), **parts)
    player = zoo.rows.trainer(
        devices=1, callbacks=[Budget(rounds=6), CollapseWatch(), Dashboard()], logger=board,
        val_check_interval=2, check_val_every_n_epoch=None, limit_val_batches=1, **options,
    )  # fmt: skip
    player.fit(game, zoo.TablePrompts())
    return player, board


def test_validation_is_logged_against_queries_and_beside_the_hyper_parameters(tmp_path):
    trainer, board = sampled(tmp_path)
    rounds, queries = (
        {step: value for tag, step, value in board.told if tag == name}
        for name in ("val/win_rate", "by_query/val_win_rate")
    )
    assert [*queries] == [step * 8 for step in (2, 4, 6)]  # 4 responses against 2 opponents
    assert [*queries.values()] == [*rounds.values()]
    last = {tag: value for tag, _, value in board.told if tag.startswith("hp/")}
    assert last["hp/win_rate_vs_reference"] == [*rounds.values()][-1]
    kl = [value for tag, _, value in board.told if tag == "policy/kl"]
    assert last["hp/kl_to_reference"] == kl[-1]
    assert last.keys() <= final_tags(trainer, trainer.lightning_module).keys()


def test_runs_in_one_board_have_folders_of_their_own(tmp_path):
    """Both wrote their history into the folder of all runs, the second over the first's."""
    for version, rounds in (("a1", 4), ("b2", 7)):
        game = zoo.small_game(NashMP())
        board = Board(tmp_path, version)
        zoo.fit(game, rounds, callbacks=[ExactMetrics()], logger=board)
        assert run_folder(game.trainer) == str(tmp_path / "project" / version)
    rounds = [len(read_history(tmp_path / "project" / each)["round"]) for each in ("a1", "b2")]
    assert rounds == [5, 8]


@pytest.mark.parametrize(
    ("budget", "steps", "share"), [(8, -1, 0.5), (8, 5, 0.8), (None, -1, None)]
)
def test_the_share_is_of_what_ends_first(budget, steps, share):
    game = zoo.small_game(NashMP())
    game.progress.round = 4
    game.set_budget(budget, None)
    trainer = SimpleNamespace(max_steps=steps, global_step=4)
    assert spent_share(trainer, game) == share
