"""Product of experts: the reward model trains beside a small expert that sees little more than length.

    loss = -log sigmoid(z_main + z_bias),   z = r_chosen - r_rejected

The main expert need not learn what the bias expert explains.  Only the main expert is exported.  Shen et al. 2023
(arXiv 2310.05199) use a language model of 560M parameters as bias expert, with Gaussian noise on its token embeddings
and three times the learning rate.  Ours (our choice) is a small network that reads the mean of noisy token embeddings
of the response, and its length.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.reward_models.response_tokens import response_tokens


class BiasExpert(nn.Module):
    """A reward from coarse cues: the mean token embedding of a response, noisy in training, and its log length.

    Embeddings are scaled to a root mean square of 1, so they cannot outgrow the noise.  The mean of n embeddings with
    independent noise of deviation `noise` has noise of deviation noise / sqrt(n), so it is drawn once instead of n
    times. A single token drowns in it, a habit of the whole response does not.  The output layer starts at 0, so
    training starts as Bradley-Terry.

    Args:
        vocabulary: number of token ids.
        size: of an embedding; the hidden layer has twice as many units.
        noise: standard deviation, in units of the embeddings' root mean square.
        factor: learning rate of this module over that of the optimizer.
        log_length_mean, log_length_deviation: of log(1 + tokens) over the training responses.
        seed: draws the weights.
    """

    def __init__(
        self,
        vocabulary: int,
        size: int,
        *,
        noise: float,
        factor: float,
        log_length_mean: float,
        log_length_deviation: float,
        seed: int,
    ):
        super().__init__()
        self.noise = noise
        self.factor = factor
        self.size = size
        self.log_length_mean = log_length_mean
        self.log_length_deviation = log_length_deviation
        generator = torch.Generator().manual_seed(zlib.crc32(f"bias expert {seed}".encode()))

        def drawn(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * scale / factor)

        self.embedding = drawn(vocabulary, size, scale=1.0)
        self.hidden_weight = drawn(2 * size, size + 1, scale=(size + 1) ** -0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(2 * size))
        self.output_weight = nn.Parameter(torch.zeros(1, 2 * size))

    def forward(self, ids_SL: torch.Tensor, lengths_S: torch.Tensor, noise_SE: torch.Tensor | None) -> torch.Tensor:
        """Rewards fp32 [S].

        Args:
            ids_SL: int64, token ids of the responses, right-padded with any id.
            lengths_S: int64, tokens of each response.
            noise_SE: standard normal, one row a response; None for no noise.
        """
        features = self.features(ids_SL, lengths_S, noise_SE)
        hidden = torch.tanh(F.linear(features, self._faster(self.hidden_weight), self._faster(self.hidden_bias)))
        return F.linear(hidden, self._faster(self.output_weight))[:, 0]

    def features(self, ids_SL: torch.Tensor, lengths_S: torch.Tensor, noise_SE: torch.Tensor | None) -> torch.Tensor:
        """The expert's view of the responses, fp32 [S, size + 1]: mean embedding and, last, standardized log length."""
        embedded_SLE = F.rms_norm(self._faster(F.embedding(ids_SL, self.embedding)), (self.size,))
        is_token_SL = torch.arange(ids_SL.shape[1], device=ids_SL.device) < lengths_S[:, None]
        count_S1 = lengths_S[:, None].clamp(min=1).float()
        mean_SE = (embedded_SLE * is_token_SL[..., None]).sum(dim=1) / count_S1
        if noise_SE is not None:
            mean_SE = mean_SE + self.noise * noise_SE / count_S1.sqrt()
        log_length_S1 = (lengths_S[:, None].float().log1p() - self.log_length_mean) / self.log_length_deviation
        return torch.cat([mean_SE, log_length_S1], dim=1)

    def _faster(self, stored: torch.Tensor) -> torch.Tensor:
        """The weights, `factor` times the stored ones.

        Adam moves the stored weights by the common learning rate, so these move by `factor` times as much.  The
        gradient is not scaled, so clipping treats this module like the others; Adam is invariant to it.
        """
        return self.factor * stored.detach() + (stored - stored.detach())


class Method(TrainedMethod):
    def build(self, model, inputs):
        pair_ids = [pair.pair_id for pair in inputs.pairs]
        self.tokens = dict(zip(pair_ids, response_tokens(inputs.items, inputs.reader), strict=True))
        self.seed = inputs.seed
        log_lengths = np.log1p([len(ids) for pair in self.tokens.values() for ids in pair])
        self.expert = BiasExpert(
            vocabulary=len(inputs.reader.tokenizer),
            size=self.settings["embedding_size"],
            noise=self.settings["noise"],
            factor=self.settings["expert_learning_rate"] / inputs.config["training"]["learning_rate"],
            log_length_mean=float(log_lengths.mean()),
            log_length_deviation=float(log_lengths.std()) or 1.0,
            seed=inputs.seed,
        )
        model.bias_expert = self.expert

    def loss(self, model, batch):
        main = model(batch).rewards
        bias = self.bias_rewards(batch.pair_ids, batch.progress, main.device)
        return Loss(
            bradley_terry_loss(main + bias),
            {"preference_loss": bradley_terry_loss(main), "bias_loss": bradley_terry_loss(bias)},
        )

    def bias_rewards(self, pair_ids, progress: float, device) -> torch.Tensor:
        """Rewards of the bias expert, fp32 [pairs, 2].

        The noise of a pair comes from seed, progress and pair, so neither micro-batches nor an interruption change it.
        """
        responses = [torch.from_numpy(ids.astype(np.int64)) for pair_id in pair_ids for ids in self.tokens[pair_id]]
        lengths = torch.tensor([len(ids) for ids in responses], device=device)
        ids = nn.utils.rnn.pad_sequence(responses, batch_first=True).to(device)
        noise = None
        if self.expert.training and self.expert.noise:
            noise = torch.cat([self._noise(pair_id, progress) for pair_id in pair_ids]).to(device)
        return self.expert(ids, lengths, noise).view(-1, 2)

    def _noise(self, pair_id: str, progress: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {progress} {pair_id}".encode()))
        return torch.randn(2, self.expert.size, generator=generator)

    def report(self):
        """Number of parameters of the bias expert, and the factor of its learning rate."""
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.expert.parameters())
        return {"bias_expert_parameters": parameters, "bias_expert_learning_rate_factor": round(self.expert.factor, 4)}
