"""The columns of evaluation.parquet, which `ppo.records` writes and `overoptimization.ppo_evaluations` reads."""

# With their kinds as in `rm_methods.parquet`. Null where a diverged policy gave a value that is not finite.
PPO_EVALUATION_COLUMNS = {
    "step": "int32",
    "prompt_id": "text",
    "response": "text",
    "proxy": "number?",
    "gold": "number?",
    "kl": "number?",
    "n_tokens": "int32",
    "finished": "boolean",
}
