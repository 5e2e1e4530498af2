"""The head of a transformers model: what it does behind its layers."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor, nn

from elasticnet.retrofit.transformers.layer_inputs import EMBEDDINGS, LayerContext
from elasticnet.retrofit.transformers.layer_list import POOLINGS, Anatomy
from elasticnet.retrofit.transformers.shells import shell_of

# what a net returns of a model's result, the first found
RESULTS = ("logits", "last_hidden_state", "pooler_output")
MASK = "attention_mask"
PIXELS = "pixel_values"


class HiddenStateHead(nn.Module):
    """The head: what a model does behind its layers.

    Final norm, pooler, and the model's own forward around its base model.

    Args:
        model: The model.
        anatomy: Its base model, which may be the model itself, and what runs behind the layers.
        output: Which entry of the result is returned; None means the first of `RESULTS`.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, output: str | None) -> None:
        super().__init__()
        stand_in = HiddenStateBase(anatomy)
        is_base = model is anatomy.base
        if is_base:
            self.model: nn.Module = stand_in
        else:
            shell: Any = shell_of(model, {anatomy.base_path: stand_in})
            # the model's config may say otherwise, see `_returning_mappings`
            shell.config = copy.copy(shell.config)
            shell.config.return_dict = True
            self.model = shell
        self.main = str(getattr(model, "main_input_name", "input_ids"))
        self.output = output
        parameters = inspect.signature(model.forward).parameters
        self.names = list(parameters)
        # Models that look at the ids themselves (for the last token that is no padding, say) get
        # them, and the features as embeddings, which the stand-in takes.
        self.takes_embeddings = not is_base and EMBEDDINGS in parameters
        self.takes_ids = self.takes_embeddings
        takes_mask = MASK in parameters and self.main != PIXELS
        self.takes_context = not is_base and (self.takes_embeddings or takes_mask)

    def forward(self, features: Tensor, context: LayerContext | None = None) -> Tensor:
        """Return the model's output for the features of any layer.

        Args:
            features: Hidden states (b, n, c).
            context: What the stem prepared, where the head takes it: the model's own forward may
                need the ids or the mask.
        """
        inputs: dict[str, Any] = {}
        if context is not None:
            for name, value in context.inputs.items():
                if name in self.names:
                    inputs[name] = value
        if not self.takes_embeddings:
            inputs[self.main] = features
        else:
            inputs[EMBEDDINGS] = features
            if not self.takes_ids:
                inputs.pop(self.main, None)
        return self.chosen(self.model(**inputs))

    def try_ids(self, features: Tensor, context: LayerContext) -> None:
        """Do without the ids from now on if the model refuses them beside embeddings.

        Args:
            features: Hidden states (b, n, c).
            context: What the stem prepared.
        """
        if not self.takes_ids:
            return
        try:
            self(features, context)
        except ValueError:
            self.takes_ids = False

    def chosen(self, result: Any) -> Tensor:
        """Return the one tensor of a model's result that the net returns.

        Args:
            result: What the model returned, a mapping.

        Raises:
            ValueError: It has no such entry.
        """
        candidates = RESULTS if self.output is None else (self.output,)
        for name in candidates:
            if result.get(name) is not None:
                return result[name]
        raise ValueError(f"output {self.output!r}: the model's result has {', '.join(result)}")


class HiddenStateBase(nn.Module):
    """Stands where a base model stood: its last steps alone, on features instead of the input.

    Args:
        anatomy: The base model, and what runs behind its layers.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        self.result_class = anatomy.result
        self.norm_names = [_last_name(path) for path in anatomy.norms]
        self.pooling = anatomy.pooler
        # under the last part of their paths, which are the model's own names
        for path in anatomy.behind:
            self.add_module(_last_name(path), anatomy.base.get_submodule(path))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return a result of the base model's class.

        Args:
            *args: The features as the first one, where they stand for the input.
            **kwargs: `inputs_embeds` holds the features, if given; else the first one does.
        """
        x = kwargs.get("inputs_embeds")
        if x is None:
            x = [*args, *kwargs.values()][0]
        for name in self.norm_names:
            x = self.get_submodule(name)(x)
        if self.pooling is None:
            return self.result_class(last_hidden_state=x)
        pooled = POOLINGS[self.pooling.tokens](x)
        if self.pooling.path is not None:
            pooled = self.get_submodule(_last_name(self.pooling.path))(pooled)
        return self.result_class(last_hidden_state=x, pooler_output=pooled)


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]
