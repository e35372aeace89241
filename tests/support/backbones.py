"""A second network beside the bundled one, for tests that need two: real, small, and with weights of its own."""

from __future__ import annotations

from pathlib import Path

OTHER = "shufflenet_v2_x0_5"
JOINED = f"likewise-tiny+{OTHER}"


def write_weights(folder: Path) -> Path:
    """Write weights of OTHER, drawn at random but always the same, where a server finds them; return the folder."""
    import torch  # noqa: PLC0415  # the client's tests do without
    from torchvision import models  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    torch.save(models.get_model(OTHER).state_dict(), folder / f"{OTHER}.pth")
    torch.random.set_rng_state(state)
    return folder
