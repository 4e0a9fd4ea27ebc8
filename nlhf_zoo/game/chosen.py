"""Which pairs are asked about: a mask of them, or a choice by what is answered."""

from torch import Tensor

from nlhf_zoo.game.best_worst import BestWorst
from nlhf_zoo.game.knockout import Knockout

Chosen = BestWorst | Knockout
Asked = Tensor | Chosen
