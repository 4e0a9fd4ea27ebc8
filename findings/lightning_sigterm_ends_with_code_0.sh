#!/bin/sh
# Shows that a training run of lightning 2.6.6 which is ended by SIGTERM ends with exit code 0, and leaves out the rest of
# the program.
#
# Schedulers send SIGTERM when a job's time is over. `fit` then raises an exception that is a `SystemExit` without a code:
# what stands behind `fit`, such as writing the result, is not run, nothing is printed, and whoever asks for the exit code
# takes the run for one that was finished.
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
import os
import signal
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

    def training_step(self, batch, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


trainer = L.Trainer(
    max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    accelerator="cpu", devices=1,
)
print("begins", flush=True)
trainer.fit(Model(), DataLoader(torch.ones(100, 1)))
print("behind fit", flush=True)
END
code=0
said=$("$folder/venv/bin/python" "$folder/finding.py" 2> "$folder/err") || code=$?
echo "lightning 2.6.6: SIGTERM in step 2 of 100: exit code $code, printed: $said"
[ "$code" = 0 ] && [ "$said" = begins ] || { cat "$folder/err"; exit 1; }
