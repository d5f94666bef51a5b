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

# Table 2, {variant, each without what the ones above it lack: (PSNR in dB, LPIPS multiplied by 100)}.
TABLE2 = {
    "ours": (27.719, 6.255),
    "multi_frame": (27.176, 6.855),
    "self_attention": (27.335, 6.738),
    "depth": (27.24, 6.924),
    "embedding_length": (25.985, 8.332),
}

# Table 3, {(system, variant): {data set: (FID, KID multiplied by 1000)}}.
TABLE3 = {
    ("dls", "N(0, I)"): {"celebv_text": (69.21, 73.74), "mvimgnet": (97.51, 69.22), "objaverse": (72.76, 53.68)},
    ("ours", "16 steps"): {"celebv_text": (48.01, 49.49), "mvimgnet": (62.21, 39.94), "objaverse": (47.49, 32.44)},
    ("ours", "32 steps"): {"celebv_text": (49.74, 46.20), "mvimgnet": (51.26, 28.45), "objaverse": (43.68, 31.70)},
    ("ours", "64 steps"): {"celebv_text": (50.27, 47.72), "mvimgnet": (43.85, 23.91), "objaverse": (40.49, 29.37)},
}

# Table 4, {system: {(data set, metric): value}}, beside Table 1's FID and KID; COV in percent, MMD multiplied by 1000.
TABLE4 = {
    "pi_gan": {
        ("photoshape_chairs", "cov"): 39.92,
        ("photoshape_chairs", "mmd"): 7.387,
        ("abo_tables", "cov"): 44.23,
        ("abo_tables", "mmd"): 10.92,
    },
    "eg3d": {
        ("photoshape_chairs", "cov"): 47.55,
        ("photoshape_chairs", "mmd"): 5.619,
        ("abo_tables", "cov"): 48.15,
        ("abo_tables", "mmd"): 9.327,
    },
    "diffrf": {
        ("photoshape_chairs", "cov"): 58.93,
        ("photoshape_chairs", "mmd"): 4.416,
        ("abo_tables", "cov"): 61.54,
        ("abo_tables", "mmd"): 7.610,
    },
    "ours": {
        ("photoshape_chairs", "cov"): 64.20,
        ("photoshape_chairs", "mmd"): 4.445,
        ("abo_tables", "cov"): 60.25,
        ("abo_tables", "mmd"): 6.684,
    },
}

# Table 5, {(part, row): cells as printed}, in the order of its columns.
TABLE5_COLUMNS = {
    "abo_tables": "ABO-Tables",
    "photoshape_chairs": "Chairs",
    "celebv_text": "CelebV-Text",
    "mvimgnet": "MVImgNet",
    "objaverse": "Objaverse",
}
TABLE5 = {
    ("3D AutoDecoder", "z-length"): ("1024", "1024", "1024", "1024", "1024"),
    ("3D AutoDecoder", "MaxChannels"): ("512", "512", "512", "512", "512"),
    ("3D AutoDecoder", "Depth"): ("2", "4", "2", "4", "4"),
    ("3D AutoDecoder", "SA-Resolutions"): ("8,16", "8,16", "8,16", "8,16", "8,16"),
    ("3D AutoDecoder", "ForegroundLoss λ"): ("10", "10", "10", "10", "0"),
    ("3D AutoDecoder", "#Renders/batch"): ("4", "4", "4", "4", "4"),
    ("3D AutoDecoder", "VoxelGridSize"): ("128³ × 4", "64³ × 4", "64³ × 14", "64³ × 4", "64³ × 4"),
    ("3D AutoDecoder", "Learning Rate"): ("5e-4", "5e-4", "5e-4", "5e-4", "5e-4"),
    ("Latent 3D Diffusion Model", "z-shape"): ("8³ × 256", "8³ × 256", "8³ × 256", "8³ × 256", "8³ × 256"),
    ("Latent 3D Diffusion Model", "Sampler"): ("edm", "edm", "edm", "edm", "edm"),
    ("Latent 3D Diffusion Model", "Channels"): ("128", "128", "192", "192", "192"),
    ("Latent 3D Diffusion Model", "Depth"): ("2", "2", "3", "3", "3"),
    ("Latent 3D Diffusion Model", "Channel Multiplier"): ("3,4", "3,4", "3,4", "3,4", "3,4"),
    ("Latent 3D Diffusion Model", "SA-resolutions"): ("8,4", "8,4", "8,4", "8,4", "8,4"),
    ("Latent 3D Diffusion Model", "Learning Rate"): ("4.5e-5", "4.5e-5", "4.5e-5", "4.5e-5", "4.5e-5"),
    ("Latent 3D Diffusion Model", "Conditioning"): ("None", "None", "None/CA", "None/CA", "None/CA"),
    ("Latent 3D Diffusion Model", "CA-resolutions"): ("-", "-", "8,4", "8,4", "8,4"),
    ("Latent 3D Diffusion Model", "Embedding Dimension"): ("-", "-", "1024", "1024", "1024"),
    ("Latent 3D Diffusion Model", "Transformers Depth"): ("-", "-", "1", "1", "2"),
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


def table2_rows() -> list[dict]:
    """Table 2 as rows for a report; without a component, and without those before it, ours is ours-without_<it>."""
    return [
        {
            "system": "ours" if name == "ours" else f"ours-without_{name}",
            "dataset": "photoshape_chairs",
            "metric": metric,
            "scale": scale,
            "value": value,
            "features": "not stated" if metric == "lpips" else None,
            "source": "paper",
        }
        for name, values in TABLE2.items()
        for metric, scale, value in zip(("psnr", "lpips"), (1, 100), values, strict=True)
    ]


def table3_rows() -> list[dict]:
    """Table 3 as rows for a report (features InceptionV3, as stated)."""
    return [
        {
            "system": system,
            "variant": variant,
            "dataset": dataset,
            "metric": metric,
            "scale": scale,
            "value": value,
            "features": "inception-v3",
            "source": "paper",
        }
        for (system, variant), cells in TABLE3.items()
        for dataset, values in cells.items()
        for metric, scale, value in zip(("fid", "kid"), (1, 1000), values, strict=True)
    ]


def table4_rows() -> list[dict]:
    """COV and MMD of Table 4 as rows for a report; its FID and KID are Table 1's."""
    return [
        {
            "system": system,
            "dataset": dataset,
            "metric": metric,
            "scale": 1000 if metric == "mmd" else 100,
            "value": value,
            "source": "paper",
        }
        for system, cells in TABLE4.items()
        for (dataset, metric), value in cells.items()
    ]
