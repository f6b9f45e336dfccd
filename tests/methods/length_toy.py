"""A world in which labels depend on length alone, and a linear reward model on given features, for methods against
length bias."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from rm_methods.methods.contract import Inputs
from rm_methods.reward_models.model import RewardOutput

VOCABULARY = 40


class WordTokenizer:
    """Text of numbers to those numbers."""

    def __len__(self):
        return VOCABULARY

    def __call__(self, texts, **_):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


class LinearModel(nn.Module):
    """Rewards linear in the features of a batch."""

    def __init__(self, features: int, seed: int = 0):
        super().__init__()
        self.hidden_size, self.config = features, SimpleNamespace(initializer_range=0.02)
        self.classifier = nn.Module()
        self.classifier.score = nn.Linear(features, 1, bias=False)
        self.classifier.score.weight.data = 0.02 * torch.randn(
            1, features, generator=torch.Generator().manual_seed(seed)
        )

    def forward(self, batch):
        rewards = self.classifier.score(batch.features)[..., 0]
        return RewardOutput(rewards=rewards, last_hidden=batch.features, hidden_states=None)


class LengthWorld:
    """Pairs whose longer response was chosen.  Feature 0 of a response is its standardized length, the others are
    noise.

    Attributes:
        lengths: [pairs, 2], words; features: [pairs, 2, features].
        pairs, items, reader: as a run would give them.
    """

    def __init__(self, pairs: int, features: int = 8, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        low = torch.randint(3, 50, (pairs,), generator=generator)
        self.lengths = torch.stack([low + torch.randint(1, 20, (pairs,), generator=generator), low], dim=1)
        self.features = torch.randn(pairs, 2, features, generator=generator)
        lengths = self.lengths.float()
        self.features[..., 0] = (lengths - lengths.mean()) / lengths.std()
        self.reader = SimpleNamespace(tokenizer=WordTokenizer())
        self.pairs = [SimpleNamespace(pair_id=f"pair {i}") for i in range(pairs)]
        self.items = [
            SimpleNamespace(
                conversations=tuple(({"content": " ".join(map(str, words(int(n), generator)))},) for n in both)
            )
            for both in self.lengths
        ]

    def inputs(self, tmp_path, learning_rate: float = 0.01, pairs_per_step: int = 64, seed: int = 0) -> Inputs:
        """What `build` is given."""
        config = {"training": {"learning_rate": learning_rate, "pairs_per_step": pairs_per_step}}
        return Inputs(seed, tmp_path, config=config, pairs=self.pairs, items=self.items, reader=self.reader)

    def batch(self, positions, progress: float) -> SimpleNamespace:
        """A micro-batch of the pairs at these positions."""
        return SimpleNamespace(
            features=self.features[positions],
            pair_ids=tuple(self.pairs[i].pair_id for i in positions),
            progress=progress,
            weight=torch.ones(len(positions)),
        )


def words(count: int, generator: torch.Generator) -> list[int]:
    """Random token ids."""
    return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()


def trained(
    method, world: LengthWorld, tmp_path, steps: int, learning_rate: float, pairs_per_step: int = 64
) -> LinearModel:
    """A linear model trained with the method's loss, in evaluation mode."""
    model = LinearModel(world.features.shape[-1])
    method.build(model, world.inputs(tmp_path, learning_rate, pairs_per_step))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(1)
    for step in range(steps):
        positions = torch.randperm(len(world.pairs), generator=order)[:pairs_per_step].tolist()
        optimizer.zero_grad()
        method.loss(model, world.batch(positions, step / steps)).per_pair.mean().backward()
        optimizer.step()
    return model.eval()


def accuracy(rewards: torch.Tensor) -> float:
    """Share of pairs [pairs, 2] whose chosen response is ahead."""
    return float((rewards[:, 0] > rewards[:, 1]).float().mean())


def correlation(rewards: torch.Tensor, lengths: torch.Tensor) -> float:
    """Pearson correlation of all rewards with all lengths."""
    return float(torch.corrcoef(torch.stack([rewards.flatten(), lengths.flatten().float()]))[0, 1])
