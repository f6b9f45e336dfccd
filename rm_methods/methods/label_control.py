"""Controls: Bradley-Terry on other labels, or under other seeds.

    loss = -log sigmoid(r_chosen - r_rejected)

* Gold labels: what Bradley-Terry learns without errors and bias in the labels.
* Shuffled labels: half of the labels are swapped, so nothing can be learned; the level of chance.
* Labels as given and other seeds (A/A): the same method twice, so no difference should be found.
"""

from __future__ import annotations

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.methods.world_texts import check_world
from rm_methods.preferences.noise import flip
from rm_methods.preferences.splits import seeded_order


class Method(TrainedMethod):
    def training_seed(self, seed):
        return seed + self.settings["seed_offset"]

    def transform_pairs(self, pairs, inputs):
        match self.settings["labels"]:
            case "gold":
                swapped = self._wrong(pairs)
            case "shuffled":
                order = seeded_order(pairs, inputs.seed, "shuffled labels")
                swapped = {pair.pair_id for pair in order[: len(pairs) // 2]}
            case _:
                swapped = set()
        self.swapped = len(swapped)
        return [flip(pair) if pair.pair_id in swapped else pair for pair in pairs]

    def _wrong(self, pairs) -> set[str]:
        """Ids of the pairs whose rejected response has the higher gold reward."""
        from rm_methods.preferences.world.gold import gold

        check_world("label_control", pairs)
        return {pair.pair_id for pair in pairs if gold(pair.prompt, pair.rejected) > gold(pair.prompt, pair.chosen)}

    def loss(self, model, batch):
        return Loss(bradley_terry_loss(model(batch).rewards, batch.margin))

    def report(self):
        """Number of labels that differ from the given ones."""
        return {"labels_swapped": self.swapped}
