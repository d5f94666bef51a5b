"""Numbers the paper states, as data, so that a table can show them beside measured ones and never mix the two."""

from __future__ import annotations

# Table 1, {system: {(data set, metric): value}}; KID is multiplied by 1000.
TABLE1 = {
    "pi_gan": {
        ("photoshape_chairs", "fid"): 52.71,
        ("photoshape_chairs", "kid"): 13.64,
        ("abo_tables", "fid"): 41.67,
        ("abo_tables", "kid"): 13.81,
    },
    "eg3d": {
        ("photoshape_chairs", "fid"): 16.54,
        ("photoshape_chairs", "kid"): 8.412,
        ("abo_tables", "fid"): 31.18,
        ("abo_tables", "kid"): 11.67,
    },
    "diffrf": {
        ("photoshape_chairs", "fid"): 15.95,
        ("photoshape_chairs", "kid"): 7.935,
        ("abo_tables", "fid"): 27.06,
        ("abo_tables", "kid"): 10.03,
    },
    "ours": {
        ("photoshape_chairs", "fid"): 11.28,
        ("photoshape_chairs", "kid"): 4.714,
        ("abo_tables", "fid"): 18.44,
        ("abo_tables", "kid"): 6.854,
    },
}


def table1_rows() -> list[dict]:
    """Table 1 as rows for a report (features InceptionV3, as stated)."""
    return [
        {
            "system": system,
            "dataset": dataset,
            "metric": metric,
            "scale": 1000 if metric == "kid" else 1,
            "value": value,
            "features": "inception-v3",
            "source": "paper",
        }
        for system, cells in TABLE1.items()
        for (dataset, metric), value in cells.items()
    ]
