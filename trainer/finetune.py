"""Fine-tune one backbone: ``accelerate launch trainer/finetune.py --config FILE.yaml key=value``.

Also ``python -m trainer.finetune`` for one process, and ``python -m trainer.launch`` to be spared Accelerate's flags.
Exit status 0: finished (now or before); 85: stopped on request, the same command resumes; 2: the user's mistake. (Of
these accelerate launch makes 0 or 1; trainer.launch restores 85.)
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

if __name__ == "__main__" and sys.path[0] == str(Path(__file__).parent):
    del sys.path[0]  # run as a file: our modules are trainer.config and so on, never top-level "config"

from data_shards.command import InputError, run
from trainer.config import FinetuneConfig
from trainer.finished import read_result
from trainer.startup import Startup

STOPPED = 85
"""Exit status of a run that was asked to stop and has saved its state."""
RANK_ZERO_FIRST = 5
"""Seconds that the other processes leave rank 0 to tell the user's mistake. Launchers look at their processes each
second or more often."""


def finetune(config: FinetuneConfig) -> None:
    """Parse (done), build, run, close."""
    directory = config.directory
    try:
        if read_result(config) is not None:
            shutil.rmtree(directory / "state", ignore_errors=True)  # left if a kill came right after the end
            _say(f"{directory} is finished already")
            return
        if _rank() == 0:
            # or else what fails from here on would read as stopped
            (directory / "stopped.json").unlink(missing_ok=True)
        _finetune(config)
    except InputError:
        # Mostly every process has the same one, and one line is enough: the launcher ends us when rank 0 has said it.
        # Who is still here after that has a mistake of its own to tell, a file that only this machine lacks, say.
        if _rank() != 0:
            time.sleep(RANK_ZERO_FIRST)
        raise


def _finetune(config: FinetuneConfig) -> None:
    startup = Startup()
    startup.mark("Python and config")
    import timm  # noqa: F401  (needed later in any case; here its time counts as an import)

    from data_shards.reader import CorruptSample
    from trainer import distributed
    from trainer.loop import NonFiniteLoss, Stopped, fit

    startup.mark("imports")
    accelerator = distributed.build_accelerator(config)
    startup.mark("processes")
    status = 1
    try:
        result = fit(config, accelerator, startup=startup)
        auc, epoch = result["selected"]["validation/auc"], result["selected"]["epoch"]
        _say(f"{config.directory} is finished: validation AUC {auc:.4f} after {epoch:.2f} epochs was selected")
        status = 0
    except Stopped as stopped:
        _say(str(stopped))
        status = STOPPED
    except (NonFiniteLoss, CorruptSample, distributed.LaunchError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    if status in (0, STOPPED):
        distributed.close(accelerator)
    sys.exit(status)


def _say(line: str) -> None:
    if _rank() == 0:
        print(line, flush=True)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    run(FinetuneConfig, finetune)
