#!/bin/sh
# Shows that lightning 2.6.6 gives those who monitor what a metric was at the start, where it is logged there and later.
#
# Logged values are kept by hook. A name that `on_train_start` and `on_train_batch_end` both log has two of them, and
# `callback_metrics`, which checkpoints and early stopping read, shows the one of `on_train_start` to the end.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet lightning==2.6.6
cat > "$folder/finding.py" <<'END'
import logging
import warnings

warnings.filterwarnings("ignore")
import lightning as L
import torch
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def on_train_start(self):
        self.log("gap", 100.0)

    def on_train_batch_end(self, *_):
        self.log("gap", float(self.global_step))

    def training_step(self, batch, number):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


trainer = L.Trainer(
    max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    accelerator="cpu", devices=1,
)
trainer.fit(Model(), DataLoader(torch.ones(3, 1)))
seen = float(trainer.callback_metrics["gap"])
print(f"lightning {L.__version__}: logged 100 at the start, then 1, 2, 3; callback_metrics shows {seen:g}")
assert seen == 100
END
"$folder/venv/bin/python" "$folder/finding.py"
