"""The registered model: texts in, unit-length vectors out (MLflow "models from code").

MLflow runs this file when it loads a model, which is why the call at its end is not a side effect to avoid.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from hbt_ray.model.encoder import TextEncoder

# MLflow asks for a type hint of model_input, of which it would make a schema without `prompt`; registry.py states both.
# The warning comes with a filter of its own, so only recording keeps it from being shown.
with warnings.catch_warnings(record=True):

    class RegisteredEncoder(PythonModel):  # type: ignore[misc]
        """Wraps the exported folder; `params={"prompt": "query"}` (or "passage") puts the prefix before texts."""

        def load_context(self, context: Any) -> None:
            """Load the encoder once, onto a GPU where there is one."""
            self._encoder = TextEncoder(context.artifacts["encoder"], "cuda" if torch.cuda.is_available() else "cpu")

        def predict(  # type: ignore[no-untyped-def]
            self, context: Any, model_input, params: dict[str, Any] | None = None
        ) -> npt.NDArray[np.float32]:
            """float32 [texts, D] for a list, array or one-column frame of texts.

            Raises MlflowException, which a server answers with status 400, for what is no text and an unknown prompt.
            """
            settings = self._encoder.settings
            prefixes = {"": "", "query": settings.query_prefix, "passage": settings.passage_prefix}
            prompt = (params or {}).get("prompt", "")
            if prompt not in prefixes:
                raise MlflowException.invalid_parameter_value(f"prompt: got {prompt!r}; expected query, passage or ''")
            return self._encoder.encode(_texts(model_input), prefixes[prompt])


def _texts(model_input: Any) -> list[str]:
    values = np.asarray(model_input, dtype=object)
    if values.ndim > 1 and values.shape[1] != 1:
        raise MlflowException.invalid_parameter_value(f"texts: got {values.shape[1]} columns; expected one")
    texts = values.reshape(-1).tolist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise MlflowException.invalid_parameter_value(f"text {row}: got {text!r}; expected a string")
    return texts


set_model(RegisteredEncoder())
