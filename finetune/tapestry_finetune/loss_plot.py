"""The picture of a run: loss and what is held out, over all stages."""

from pathlib import Path

from tapestry_finetune.keeping import read_metrics

_UNITS = {
    "language": ("loss (nats per token)", "held out: bits per byte"),
    "instruct": ("loss (nats per token)", "held out: bits per byte of answers"),
    "values": ("loss (of DPO with SFT, or of KTO)", "held out: share judged wrongly"),
}
"""By stage: of the loss, and of what `measuring.held_out_measure` measures."""


def plot_losses(folder: Path) -> None:
    """Draw loss and what is held out over all stages of a run, into `loss.png`."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    stages = sorted(path for path in folder.glob("[0-9]-*") if (path / "metrics.jsonl").exists())
    if not stages:
        return
    figure, axes = plt.subplots(
        1, len(stages), figsize=(5 * len(stages), 3.5), squeeze=False, layout="constrained"
    )
    for axis, stage in zip(axes[0], stages, strict=True):
        lines = read_metrics(stage)
        name = stage.name.partition("-")[2]
        loss, held_out = _UNITS[name]
        axis.plot([line["step"] for line in lines], [line["loss"] for line in lines])
        measured = [line for line in lines if line.get("held_out") is not None]
        if measured:
            other = axis.twinx()
            other.plot(
                [line["step"] for line in measured],
                [line["held_out"] for line in measured],
                "o-",
                color="tab:orange",
            )
            other.set_ylabel(held_out, color="tab:orange")
        axis.set_title(name)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(loss)
    temporary = folder / ".loss.png"
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    temporary.replace(folder / "loss.png")
