"""What a run's configuration is compared with when it resumes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import part

from nlhf_zoo.cli.resuming import refuse_other_config
from nlhf_zoo.errors import UserError


def configuration(name: str, **arguments: Any) -> dict[str, Any]:
    oracle = part(f"nlhf_zoo.{name}", **arguments)
    game = part("nlhf_zoo.OnlineGame", oracle=oracle)
    return {"model": game, "data": None, "seed_everything": 0, "trainer": {}, "ckpt_path": None}


FORMER = {"VotesOracle": "votes", "MatrixOracle": "matrix", "EmbeddingOracle": "embeddings"}


@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("present", [True, False])
def test_a_former_name_is_the_present_one(name: str, present: bool, tmp_path: Path):
    """A run of version 0.1 was refused where its configuration was brought up to date."""
    old, saved = FORMER[name], tmp_path / "config.yaml"
    was = {"path": None, old: "a.npy"} if present else {old: "a.npy"}  # which 0.1 had alone
    saved.write_text(yaml.safe_dump(configuration(name, **was)))
    refuse_other_config(saved, configuration(name, **{"path": "a.npy", old: None}))
    refuse_other_config(saved, configuration(name, **{"path": None, old: "a.npy"}))
    with pytest.raises(UserError, match=r"path = a\.npy, the configuration has b\.npy"):
        refuse_other_config(saved, configuration(name, **{"path": "b.npy", old: None}))
    saved.write_text(yaml.safe_dump(configuration(name, **{"path": "a.npy", old: None})))
    refuse_other_config(saved, configuration(name, **{"path": None, old: "a.npy"}))
