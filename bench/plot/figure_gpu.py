"""bench/gpu/gpu.py's rows: for each case a bar of ours and one of each peer; prefill in TFLOP/s,
decode in GB/s beside the copy bandwidth of the same process."""

from style import BLUE, GREEN, GREY, ORANGE, SKY, groups, plt

PROGRAM = "bench/gpu/gpu.py"
COLUMNS = {"gpu": str, "case": str, "q_tokens": float, "ours_ms": float, "ours_tflops": float,
           "ours_gb_per_s": float, "peer": str, "copy_gb_per_s": float, "matmul_tflops": float}
POSITIVE = ("ours_ms", "copy_gb_per_s", "matmul_tflops")
PEERS = {"fa2": ("FlashAttention 2", ORANGE), "cudnn": ("cuDNN", GREEN),
         "flex": ("FlexAttention", SKY)}


def draw_panel(axes, cases, unit, ceiling):
    """`ceiling`: name and rate of what no kernel can pass."""
    ticks = []
    for at, (name, rows) in enumerate(cases.items()):
        ours = [row[unit] for row in rows]
        bars = [("Annulus", BLUE, sum(ours) / len(ours))]
        bars += [(*PEERS.get(row["peer"], (row["peer"], GREY)), row["peer_rate"])
                 for row in rows if row["peer"] and isinstance(row.get("peer_rate"), float)]
        height = 0.8 / len(bars)
        for i, (label, color, rate) in enumerate(bars):
            y = at + (i - (len(bars) - 1) / 2) * height
            axes.barh(y, rate, 0.9 * height, color=color, label=label)
            axes.text(rate, y, f" {rate:,.0f}", va="center", ha="left", fontsize=7)
        ticks.append(name)
    axes.axvline(ceiling[1], color=GREY, linestyle="--", linewidth=1, label=ceiling[0])
    axes.set_yticks(range(len(ticks)), ticks)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles))
    axes.legend(unique.values(), unique, fontsize=7, loc="lower right", ncols=3,
                bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def draw(rows):
    decodes = [row for row in rows if row["q_tokens"] == 1]
    prefills = [row for row in rows if row["q_tokens"] != 1]
    panels = [(part, unit, label) for part, unit, label in
              ((prefills, "ours_tflops", "TFLOP/s"), (decodes, "ours_gb_per_s", "GB/s")) if part]
    figure, grid = plt.subplots(1, len(panels), squeeze=False, figsize=(7 * len(panels), 6))
    for axes, (part, unit, label) in zip(grid[0], panels):
        ceiling = (("matrix product", part[0]["matmul_tflops"]) if label == "TFLOP/s" else
                   ("copy", sum(row["copy_gb_per_s"] for row in part) / len(part)))
        draw_panel(axes, groups(part, "case"), unit, ceiling)
        axes.set_yticklabels(name for (name,) in groups(part, "case"))
        axes.set_xlabel(f"{label} on one {part[0]['gpu']}")
    return figure
