"""Where exact metrics are written, and where not."""

import pytest
import zoo

from nlhf_zoo import algorithms
from nlhf_zoo.callbacks import ExactMetrics, read_history
from nlhf_zoo.game.realisation import ClosedForm, GradientSteps


@pytest.mark.parametrize("folder", [None, ".", "given"])
def test_nothing_is_written_where_no_folder_was_given(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    options = {} if folder is None else {"default_root_dir": folder}
    metrics = ExactMetrics()
    zoo.fit(zoo.small_game(algorithms.NashMP()), 3, callbacks=[metrics], **options)
    assert metrics.latest["exploitability"] > 0
    if folder is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert len(read_history(tmp_path / folder)["round"]) == 4


@pytest.mark.parametrize("realisation", [ClosedForm(1), GradientSteps()])
def test_whoever_monitors_sees_the_last_figure(realisation):
    """Lightning 2.6 would keep that of the start, if it were logged by the same name."""
    metrics = ExactMetrics()
    game = zoo.small_game(algorithms.NashMP(), realisation=realisation)
    trainer = zoo.fit(game, 3, callbacks=[metrics]).trainer
    monitored = trainer.callback_metrics["game/exploitability"]
    assert float(monitored) == pytest.approx(metrics.latest["exploitability"], rel=1e-6)
