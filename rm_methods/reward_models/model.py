"""The reward model: a Hugging Face sequence classifier whose scalar head is read by length and computed in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from rm_methods.errors import ListsFields, UserError
from rm_methods.files import written_atomically
from rm_methods.reward_models import packed_attention
from rm_methods.reward_models.attention_capture import AttentionCapture, LayerAttention, capture_obstacle
from rm_methods.reward_models.frozen_layers import FrozenLayers, check_frozen, freeze_lower_layers
from rm_methods.reward_models.layout_probe import LayoutProbe, check_length, probe_reward_model
from rm_methods.reward_models.layouts import SequenceBatch
from rm_methods.system.ranks import print_once


@dataclass
class RewardOutput(ListsFields):
    """The result of one forward.

    Attributes:
        rewards: fp32 [items, N].
        last_hidden: [items, N, hidden], the states that give the rewards.
        hidden_states: [R, L, hidden], last layer, in the batch's layout (packed: [1, T, hidden]).
        attention: layer number to its attention, for the layers of `RewardModel.captured_layers`.
    """

    rewards: torch.Tensor
    last_hidden: torch.Tensor
    hidden_states: torch.Tensor
    attention: dict[int, LayerAttention] = field(default_factory=dict)

    @property
    def margins(self) -> torch.Tensor:
        """Reward of the chosen response minus that of the rejected one, fp32 [pairs], of a batch of pairs."""
        return self.rewards[:, 0] - self.rewards[:, 1]


class RowHead(nn.Linear):
    """A linear layer with one output that sums each row by itself, so equal texts tie exactly.

    A matrix product with one column may round equal rows differently.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States [..., hidden] to rewards [..., 1]."""
        rewards = (states * self.weight[0]).sum(dim=-1, keepdim=True)
        return rewards if self.bias is None else rewards + self.bias


class RewardModel(nn.Module):
    """Backbone + linear scalar head.

    Args:
        classifier: a decoder-only `AutoModelForSequenceClassification` with `num_labels=1` and a linear head `score`.
        autocast: dtype of the backbone's matrix products, or None for that of the weights.  The head is always fp32:
            bf16 heads make ties and round away small differences.

    Attributes:
        packing_obstacle: why this backbone takes plain batches only; None if it takes packed ones.
        layout_probe: differences of the layouts from each text alone; None before `layout` measures them, and if
            weights are sharded.
        captured_layers: layers whose attention every forward returns (`capture_attention`).
        frozen: the layers that are not trained (`freeze_lower_layers`), or None.

    Raises:
        UserError: if the head is not a linear layer with one output.
    """

    def __init__(self, classifier: PreTrainedModel, autocast: torch.dtype | None = None):
        super().__init__()
        head = getattr(classifier, "score", None)
        if not isinstance(head, nn.Linear) or classifier.config.num_labels != 1:
            raise UserError(
                f"{type(classifier).__name__}: a reward model needs a linear head 'score' with one output, found "
                f"{head!r} and num_labels={classifier.config.num_labels}. Use a decoder-only model; load it with "
                "num_labels=1."
            )
        if head.weight.dtype != torch.float32:
            head.float()
        # The same module with its parameters, hooks and shards; only its sum is another.  A subclass
        # may compute more than a product, so it stays.
        if type(head) is nn.Linear:
            head.__class__ = RowHead
        self.classifier: PreTrainedModel = classifier
        self.autocast = autocast
        self.captured_layers: tuple[int, ...] = ()
        self.frozen: FrozenLayers | None = None
        self.layout_probe: LayoutProbe | None = None
        self.packing_obstacle = packing_obstacle(classifier)
        if self.packing_obstacle is None:
            classifier.set_attn_implementation(packed_attention.NAME)

    @property
    def config(self):
        """The backbone's configuration."""
        return self.classifier.config

    @property
    def backbone(self) -> nn.Module:
        """The decoder without its head."""
        return self.classifier.base_model

    @property
    def hidden_size(self) -> int:
        """Width of the states that the head reads."""
        return self._head.in_features

    @property
    def _head(self) -> nn.Linear:
        return cast(nn.Linear, self.classifier.score)

    def layout(self, requested: str) -> str:
        """The layout to use: "packed" or "plain".

        The first call measures both against transformers' own forward of each text alone.

        Args:
            requested: "auto" (packed if that is exact, otherwise plain with one message), "packed" or "plain".

        Raises:
            UserError: "packed" is asked for and not possible, or padding changes what the head reads.
        """
        first = self.layout_probe is None
        self._probe_layouts()
        if requested == "packed" and self.packing_obstacle:
            raise UserError(
                f"layout 'packed' is not possible with this backbone: {self.packing_obstacle}. Use 'auto' or 'plain'."
            )
        if requested == "auto" and self.packing_obstacle and first:
            print_once(f"{type(self.classifier).__name__}: layout plain, because {self.packing_obstacle}.")
        return "plain" if requested == "plain" or self.packing_obstacle else "packed"

    def _probe_layouts(self) -> None:
        """Measure the layouts once.

        Shards of ZeRO-3 cannot compute before the engine exists.  Then the configuration alone decides, and the saved
        model is measured when its validation pairs are scored.
        """
        if self.layout_probe is not None or any(
            hasattr(parameter, "ds_id") for parameter in self.classifier.parameters()
        ):
            return
        self.layout_probe = probe_reward_model(self)
        if self.layout_probe.packing_obstacle:
            self.packing_obstacle = self.layout_probe.packing_obstacle
            self.classifier.set_attn_implementation(packed_attention.KERNEL)

    def capture_attention(self, layers: tuple[int, ...]) -> None:
        """Let every forward return queries, keys and values of these layers in `RewardOutput.attention`.

        Args:
            layers: numbers from 0; none stops it.

        Raises:
            UserError: the backbone's attention cannot be captured.
        """
        obstacle = self.packing_obstacle or capture_obstacle(self.config)
        if obstacle:
            raise UserError(
                f"The attention of this backbone cannot be captured: {obstacle}. Use another backbone, or attention: "
                "sdpa."
            )
        self.captured_layers = tuple(layers)

    def freeze_lower_layers(self, trained: int, folder: Path | None = None) -> None:
        """Freeze the embeddings and all but the last `trained` layers.

        Args:
            folder: of stored states of the frozen layers; None stores none.

        Raises:
            UserError: the backbone has no more layers, or its layers cannot be told apart.
        """
        count = freeze_lower_layers(self.classifier, trained)
        if any(hasattr(parameter, "ds_id") for parameter in self.classifier.parameters()):
            return  # shards of ZeRO-3 are gathered by the whole forward only
        self.frozen = FrozenLayers(self.classifier, count)
        if obstacle := check_frozen(self):
            print_once(
                f"{type(self.classifier).__name__}: the frozen layers are computed in every forward, because their "
                f"states cannot be passed on: {obstacle}."
            )
            self.frozen = None
        elif folder is not None:
            self.frozen.store_in(folder, self.autocast)

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        self.classifier.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: SequenceBatch) -> RewardOutput:
        """Rewards of all responses of a batch.

        Raises:
            UserError: a packed batch for a backbone that cannot attend to one, or a text that would change the scores
                of others.
        """
        check_length(self.classifier, batch.longest)
        if batch.attention_map is not None and self.packing_obstacle:
            raise UserError(f"This backbone takes no packed batches: {self.packing_obstacle}. Use layout: plain.")
        # Plain rows need no mask: causal attention never reaches the padding after a row's end.
        packed = {} if batch.attention_map is None else {"attention_map": batch.attention_map}
        capture = AttentionCapture(self.captured_layers)
        capturing = {"capture": capture} if self.captured_layers else {}
        device_type = batch.input_ids.device.type
        # Each weight is used once a forward, so a cache of the cast ones saves nothing; under ZeRO-3 with recomputed
        # activations it would hold 2 bytes of every parameter of the whole model on every GPU.
        cast = torch.autocast(device_type, dtype=self.autocast, cache_enabled=False) if self.autocast else nullcontext()
        with cast:
            frozen = self._frozen_in_use()
            text = {"inputs_embeds": frozen.states(batch)} if frozen else {"input_ids": batch.input_ids}
            with frozen.left_out() if frozen else nullcontext():
                hidden_RLH = self.backbone(
                    **text,
                    position_ids=batch.position_ids,
                    use_cache=False,
                    **packed,
                    **capturing,
                ).last_hidden_state
        if batch.attention_map is not None and not batch.attention_map.used:
            name = type(self.backbone).__name__
            raise UserError(
                f"{name} does not pass its keyword arguments on to its attention, so it takes plain batches only"
            )
        last_SH = hidden_RLH[batch.read_row, batch.read_column]
        with torch.autocast(device_type, enabled=False):
            rewards_S = self._head(last_SH.float())[:, 0]
        return RewardOutput(
            rewards=rewards_S.view(-1, batch.responses),
            last_hidden=last_SH.view(-1, batch.responses, last_SH.shape[-1]),
            hidden_states=hidden_RLH,
            attention=capture.captured,
        )

    def _frozen_in_use(self) -> FrozenLayers | None:
        """The frozen layers, unless the attention of one of them is captured: then the forward is whole."""
        if self.frozen is None or any(layer < self.frozen.count for layer in self.captured_layers):
            return None
        return self.frozen

    def save(self, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write a plain sequence-classification folder (safetensors) that transformers loads with no code of ours.

        Args:
            state_dict: gathered weights of this module (under ZeRO-3 the module's own tensors are only shards).
        """
        with written_atomically(folder) as path:
            self.classifier.save_pretrained(path, state_dict=classifier_weights(state_dict))


def classifier_weights(state_dict: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
    """The weights of the classifier out of those of a model that holds it as `classifier`; None stays None."""
    if state_dict is None:
        return None
    prefix = "classifier."
    return {name.removeprefix(prefix): w for name, w in state_dict.items() if name.startswith(prefix)}


def packing_obstacle(classifier: PreTrainedModel) -> str | None:
    """Why the configuration rules out packed batches, or None.

    Packing is exact if every layer is softmax attention over the whole text; the probe
    (rm_methods.reward_models.layout_probe) measures the rest.
    """
    config = classifier.config.get_text_config()
    if config._attn_implementation not in (packed_attention.KERNEL, packed_attention.NAME):
        return f"attention '{config._attn_implementation}' is not {packed_attention.KERNEL}"
    if not classifier._can_set_attn_implementation():
        return f"{type(classifier).__name__} does not use the attention interface of transformers"
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if kinds <= {"full_attention", "sliding_attention"} else None
    if window and (kinds == {"full_attention"} or not getattr(config, "use_sliding_window", True)):
        window = None
    limit = getattr(config, "max_position_embeddings", None)
    if window and (limit is None or window < limit):
        return f"its sliding-window attention ({window} tokens) needs masks"
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"layers of type {', '.join(sorted(other))} are not softmax attention over the whole text"
    return None
