"""DPO: a policy is trained on the pairs directly, and its implicit reward is the score.

    r(x, y) = beta * [log pi(y | x) - log pi_ref(y | x)]
    loss    = -(1 - smoothing) * log sigmoid(z) - smoothing * log sigmoid(-z),   z = r_chosen - r_rejected

pi_ref is the policy with the weights that training starts from; log pi(y | x) is summed over the tokens of the
response.  Rafailov et al. 2023 (arXiv 2305.18290), equation 7; smoothing: Mitchell 2023, "A note on DPO with noisy
preferences" (conservative DPO).  Scores as allenai/reward-bench, rewardbench/dpo.py.
"""

from __future__ import annotations

from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.methods.label_smoothing import label_smoothing_loss
from rm_methods.methods.reference import reference_log_probabilities
from rm_methods.reward_models.implicit_reward_model import ImplicitRewardModel, causal_weights
from rm_methods.reward_models.language_head import has_one_prompt, language_head


class Method(TrainedMethod):
    # The reference is a copy of whole weights, and its log-probabilities are computed before ZeRO-3 shards the model.
    model_is_made_whole = True

    def model(self, pairs, reader, inputs):
        plain = super().model(pairs, reader, inputs)
        head = language_head(plain, inputs.backbone, inputs.config["backbone"], inputs.seed, method="dpo")
        model = ImplicitRewardModel(
            plain.classifier,
            head,
            beta=self.settings["beta"],
            average=self.settings["average"],
            autocast=plain.autocast,
        )
        causal_weights(model.config, model.state_dict())  # raises before the training what the export would raise
        return model

    def build(self, model, inputs):
        if inputs.config["training"]["lora"]:
            model.language_head.requires_grad_(False)
        self.different_prompts = sum(not has_one_prompt(item) for item in inputs.items)
        self.positions = {pair.pair_id: position for position, pair in enumerate(inputs.pairs)}
        self.reference = reference_log_probabilities(
            model, inputs, lambda items, batch: model.reference_log_probabilities(batch)
        )

    def loss(self, model, batch):
        positions = [self.positions[pair_id] for pair_id in batch.pair_ids]
        rewards = model(batch, self.reference[positions].to(batch.input_ids.device)).rewards
        return Loss(label_smoothing_loss(rewards, self.settings["smoothing"]))

    def report(self):
        return {"pairs_with_different_prompts": self.different_prompts}
