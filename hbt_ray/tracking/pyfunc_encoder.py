"""The registered model: texts in, unit-length vectors out (MLflow "models from code").

MLflow runs this file when it loads a model, which is why the call at its end is not a side effect to avoid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from hbt_ray.model.encoder import TextEncoder


class RegisteredEncoder(PythonModel):  # type: ignore[misc]
    """Wraps the exported folder; `params={"prompt": "query"}` (or "passage") puts the model's prefix before texts."""

    def load_context(self, context: Any) -> None:
        """Load the encoder once."""
        self._encoder = TextEncoder(context.artifacts["encoder"])

    # MLflow would read a type hint of model_input as the schema, which registry.py states instead.
    def predict(  # type: ignore[no-untyped-def]
        self, context: Any, model_input, params: dict[str, Any] | None = None
    ) -> npt.NDArray[np.float32]:
        """float32 [texts, D] for a list, array or one-column frame of texts."""
        settings = self._encoder.settings
        prefixes = {"": "", "query": settings.query_prefix, "passage": settings.passage_prefix}
        prefix = prefixes[(params or {}).get("prompt", "")]
        return self._encoder.encode([str(text) for text in np.asarray(model_input).reshape(-1)], prefix)


set_model(RegisteredEncoder())
