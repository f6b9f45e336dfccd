"""When accelerate looks for engines of DeepSpeed.

Not in `system/deepspeed`, because its configurations are part of the code of every stage that imports that package.
"""

from __future__ import annotations

import sys


def look_for_engines_only_with_deepspeed() -> None:
    """Keep accelerate from importing DeepSpeed, and with it MLflow, where nothing uses it.

    Where DeepSpeed is installed, accelerate imports it to see whether a model is a DeepSpeed engine, when a Trainer is
    made and when a model is saved.  No model is one unless DeepSpeed has been imported before.  Anything else in
    accelerate that asks for DeepSpeed is as before.
    """
    from accelerate.utils import other

    if hasattr(other, "is_deepspeed_available"):
        other.is_deepspeed_available = lambda: sys.modules.get("deepspeed") is not None
