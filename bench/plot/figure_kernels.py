"""Rows of kernels: ours beside this machine's peak and beside a peer, one panel for each unit."""

from style import BLUE, GREY, ORANGE, groups, plt

PROGRAM = "annulus_bench --kernels"
# peak: what the machine can do at most, in the same unit and run; peer: nothing, or 0, where none was
# measured.
COLUMNS = {"kernel": str, "dtype": str, "heads": float, "kv_heads": float, "head_dim": float,
           "unit": str, "ours": float, "peak": float, "peer": float, "peer_name": str}
OPTIONAL = ("peer", "peer_name")
POSITIVE = ("ours", "peak")


def draw_panel(axes, unit, rows):
    for at, row in enumerate(rows):
        axes.barh(at, row["peak"], 0.8, color="none", edgecolor=GREY, label="peak, same run")
        peer = row["peer"] or 0
        height = 0.32 if peer > 0 else 0.6
        axes.barh(at - (0.18 if peer > 0 else 0), row["ours"], height, color=BLUE,
                  label="annulus")
        text = f" {row['ours']:.3g} = {100 * row['ours'] / row['peak']:.0f}% of peak"
        if peer > 0:
            axes.barh(at + 0.18, peer, height, color=ORANGE, label=row["peer_name"])
            text += f", {row['ours'] / peer:.2f} x {row['peer_name']}"
        axes.text(max(row["ours"], peer, row["peak"]), at, text, va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [f"{row['kernel']}, {row['dtype']}, {row['heads']:.0f}/"
                                       f"{row['kv_heads']:.0f} heads of {row['head_dim']:.0f}"
                                       for row in rows])
    axes.set_xlabel(unit)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.4)
    axes.invert_yaxis()
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles))
    axes.legend(unique.values(), unique, fontsize=7, loc="lower right", ncols=len(unique),
                bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def draw(rows):
    units = groups(rows, "unit")
    heights = [0.4 * len(of) + 0.8 for of in units.values()]
    figure, grid = plt.subplots(len(units), 1, squeeze=False, figsize=(9, sum(heights)),
                                gridspec_kw={"height_ratios": heights})
    for axes, ((unit,), of) in zip(grid[:, 0], units.items()):
        draw_panel(axes, unit, of)
    return figure
