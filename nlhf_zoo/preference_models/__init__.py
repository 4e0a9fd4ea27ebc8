"""Preference models that are trained here: heads on sequence classifiers, and their module."""

from nlhf_zoo.preference_models.backbones import Backbone, LettersBackbone, PretrainedBackbone
from nlhf_zoo.preference_models.module import PreferenceModel
from nlhf_zoo.text_models.heads import (
    BradleyTerryHead,
    GeneralPreferenceHead,
    PairHead,
    PreferenceHead,
)

__all__ = [
    "Backbone",
    "BradleyTerryHead",
    "GeneralPreferenceHead",
    "LettersBackbone",
    "PairHead",
    "PreferenceHead",
    "PreferenceModel",
    "PretrainedBackbone",
]
