"""Bytes in words."""


def in_words(num_bytes: float) -> str:
    """512 B, 3.4 kB, 56.7 MB, 1.23 GB; decimal units, as disks are sold and launch.min_free_gb counts."""
    if num_bytes >= 1e8:
        return f"{num_bytes / 1e9:,.2f} GB"
    if num_bytes >= 1e5:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes >= 1e3 else f"{num_bytes:.0f} B"
