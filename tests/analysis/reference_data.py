"""Published scaling data that lies beside the checkout, never in it. Not a test module."""

from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2].parent / "shared" / "fitdata"


def reference(path: str) -> pd.DataFrame:
    """A file of the reference data as a table; skips the test where it is absent."""
    found = FOLDER / path
    if not found.exists():
        pytest.skip(f"reference data not here: {found}")
    return pd.read_json(found) if found.suffix == ".json" else pd.read_csv(found)


def chinchilla_points(*, all_points: bool = False) -> pd.DataFrame:
    """The 240 points of Besiroglu et al. 2024 (arXiv 2404.10102): all but the five highest losses."""
    raw = reference("epoch_chinchilla/svg_extracted_data.csv")
    table = pd.DataFrame(
        {"N": raw["Model Size"], "D": raw["Training FLOP"] / 6 / raw["Model Size"], "loss": raw["loss"]}
    )
    return table if all_points else table[table["loss"] < table["loss"].nlargest(5).min()]
