"""A trained preference model as a folder, from which an oracle is made."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from nlhf_zoo.preference_models.adapters import plain_classifier
from nlhf_zoo.text_models.settings import ModelSettings, write_settings

NAME = "preference_model"


def write_folder(
    place: Path, network: Any, config: Any, tokenizer: Any, settings: ModelSettings
) -> None:
    """Write a classifier, its tokenizer and its settings, in place of an earlier folder.

    All is written beside it first: whoever looks finds a whole model at any time, but for the
    moment between two renamings. A kill there leaves the earlier one as ``<name>.before``.

    The network, with or without adapters, stays as it is; ``config`` is its own as it was loaded,
    for in use its padding changes with each batch.
    """
    beside = place.with_name(f"{place.name}.part")
    before = place.with_name(f"{place.name}.before")
    for left in (beside, before):
        shutil.rmtree(left, ignore_errors=True)
    beside.mkdir(parents=True)
    tokenizer.save_pretrained(beside)
    _save_network(plain_classifier(network), config, beside)
    write_settings(beside, settings)
    if place.exists():
        os.replace(place, before)
    os.replace(beside, place)
    shutil.rmtree(before, ignore_errors=True)


def _save_network(network: Any, config: Any, folder: Path) -> None:
    """Write weights and configuration."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for each checkpoint says nothing
    used, network.config = network.config, copy.deepcopy(config)
    try:
        network.save_pretrained(folder)
    finally:
        network.config = used
        if shown:
            logging.enable_progress_bar()
