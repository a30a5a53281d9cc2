"""The metrics as modules of Hugging Face `evaluate`.

`load_metric` makes one by name. `evaluate.load` takes this very file for its script, with the name for its
configuration: `evaluate.load(fsqcodec.evaluation.evaluate_modules.__file__, "pesq_wb")`. Neither needs the network.
"""

import math

import datasets
import evaluate
import numpy as np

# Not relative: `evaluate.load` copies this file out of the package.
from fsqcodec.evaluation.learned_metrics import LEARNED_METRICS
from fsqcodec.evaluation.metrics import METRICS, compute_metrics


def load_metric(name: str) -> evaluate.Metric:
    """One of `METRICS` or `LEARNED_METRICS` as an `evaluate.Metric`, also for `evaluate.combine`.

    Its `compute(references=, predictions=, sampling_rate=)` takes clips, float `(num_samples,)`, and their rate in Hz,
    and returns, with the name of the metric for `name`:

    - `name`: mean over the clips where it is defined, NaN if there are none;
    - `name_per_clip`: its value for each clip, NaN where it is not defined;
    - `name_failed`: how many those are.

    Raises `ValueError` if there is no metric of that name.
    """
    return CodecMetric(name)


class CodecMetric(evaluate.Metric):
    """A metric of decoded audio; the name of the configuration says which. See `load_metric`."""

    def _info(self) -> evaluate.MetricInfo:
        table = METRICS | LEARNED_METRICS
        if self.config_name not in table:
            raise ValueError(f"there is no metric {self.config_name!r}: there are {', '.join(table)}")
        clip = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=table[self.config_name].function.__doc__,
            citation="",
            inputs_description="references, predictions: clips, float (num_samples,); sampling_rate: Hz",
            features=datasets.Features({"references": clip, "predictions": clip}),
        )

    def _compute(self, references, predictions, sampling_rate: int) -> dict:
        name = self.config_name
        values = []
        for reference, prediction in zip(references, predictions):
            pair = np.asarray(reference, np.float32), np.asarray(prediction, np.float32)
            values.append(compute_metrics(*pair, sampling_rate, [name])[0][name])
        defined = [value for value in values if not math.isnan(value)]
        return {
            name: float(np.mean(defined)) if defined else math.nan,
            f"{name}_per_clip": values,
            f"{name}_failed": len(values) - len(defined),
        }
