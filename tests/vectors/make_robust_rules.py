"""Write robust_rules.json: what another implementation makes of the same vectors.

Uses the aggregators of byzfl 0.0.11 (https://github.com/LPD-EPFL/byzfl) in float64 and nothing of
Tapestry. Not a dependency: it pulls torchvision and seaborn. Run it in an environment of its own,
`pip install numpy torch scipy && pip install --no-deps byzfl==0.0.11`, with
`python tests/vectors/make_robust_rules.py`; `tests/core/test_rules.py` compares.
"""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

ELEMENTS = 7
SHAPES = ((3, 1), (5, 1), (5, 2), (8, 2), (8, 3), (13, 4), (20, 6))
FLOOR = 1e-3


def load_byzfl() -> Any:
    """Return `byzfl.aggregators` without the package's own imports, which need a GPU library."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("byzfl is not installed; see the docstring")
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def case(byzfl: Any, members: int, liars: int) -> dict[str, Any]:
    """Return one cohort's vectors, the last of them lies, and what every rule makes of them."""
    rng = np.random.default_rng(100 * members + liars)
    vectors = rng.standard_normal((members, ELEMENTS)) + rng.standard_normal(ELEMENTS)
    vectors[members - liars :] *= -3.0
    vectors = vectors.astype(np.float32).astype(np.float64)
    radius = float(np.median(np.linalg.norm(vectors, axis=1)))
    rules = {
        "trimmed-mean": byzfl.TrMean(f=liars),
        "median": byzfl.Median(),
        "multi-krum": byzfl.MultiKrum(f=liars),
        "geometric-median": byzfl.GeometricMedian(nu=FLOOR, T=5000),
        "centred-clipping": byzfl.CenteredClipping(L=5, tau=radius),
    }
    mixed = byzfl.NNM(f=liars)(vectors)
    mixed_radius = float(np.median(np.linalg.norm(mixed, axis=1)))
    after_mixing = rules | {"centred-clipping": byzfl.CenteredClipping(L=5, tau=mixed_radius)}
    return {
        "byzantine": liars,
        "floor": FLOOR,
        "vectors": vectors.tolist(),
        "mixtures": mixed.tolist(),
        "plain": {name: rule(vectors).tolist() for name, rule in rules.items()},
        "after_mixing": {name: rule(mixed).tolist() for name, rule in after_mixing.items()},
    }


def main() -> None:
    """Write the file beside this one."""
    byzfl = load_byzfl()
    cases = [case(byzfl, members, liars) for members, liars in SHAPES]
    target = Path(__file__).with_name("robust_rules.json")
    target.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


if __name__ == "__main__":
    main()
