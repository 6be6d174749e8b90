"""annulus_bench's rows: a line of panels for each problem, a bar for each run of it. Those of
bench/gpu/ranks.py have a row for each peer: peers are marks in the bar of their run."""

from style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, groups, plt, tokens

PROGRAM = "annulus_bench"
COLUMNS = {"plan": str, "pattern": str, "tokens": float, "heads": float, "kv_heads": float,
           "head_dim": float, "dtype": str, "backend": str, "transport": str, "world": float,
           "ms": float, "tflops_per_rank": float, "pct_of_single": float, "bytes_sent": float,
           "planned_bytes": float, "exposed_comm_ms": float, "max_over_mean_work": float}
# Empty where one rank alone was not measured; where the pattern shows nothing.
OPTIONAL = ("pct_of_single", "tflops_per_rank")
NOTHING = ("", None)
POSITIVE = ("world", "ms", "tflops_per_rank")
PEERS = {"cudnn": ("context parallel, cuDNN", BLACK), "fa2": ("context parallel, FA2", VERMILION)}
PROBLEM = ("pattern", "tokens", "heads", "kv_heads", "head_dim", "dtype", "backend")


def title_of(pattern, count, heads, kv_heads, head_dim, dtype, backend):
    pattern = pattern if len(pattern) <= 48 else f"{pattern[:22]}…{pattern[-22:]}"
    return (f"{pattern}, {tokens(count)} tokens, {heads:.0f}/{kv_heads:.0f} heads of "
            f"{head_dim:.0f}, {dtype}, {backend}")


def chosen(row):
    """Whether the plan was the planner's choice, where the file says so."""
    return " (auto)" if row.get("chosen") in (True, "true") else ""


def label(axes, at, value, text):
    axes.text(value, at, " " + text, va="center", ha="left", fontsize=7)


def draw_time(axes, rows):
    for at, row in enumerate(rows):
        exposed = min(row["exposed_comm_ms"], row["ms"])
        axes.barh(at, row["ms"] - exposed, color=BLUE, label="compute and wait")
        axes.barh(at, exposed, left=row["ms"] - exposed, color=VERMILION, label="exposed transfers")
        label(axes, at, row["ms"], f"{row['ms']:,.4g}")
    axes.set_xlabel("time, ms")


def draw_rate(axes, rows):
    for at, row in enumerate(rows):
        if row["tflops_per_rank"] in NOTHING:
            continue
        # The rate of one rank alone stands behind that of each rank among many.
        of_single = row["pct_of_single"] or 0
        if of_single > 0:
            single = 100 * row["tflops_per_rank"] / of_single
            axes.barh(at, single, 0.8, color="none", edgecolor=GREY, label="one rank alone")
        axes.barh(at, row["tflops_per_rank"], 0.55, color=GREEN, label="a rank among all")
        label(axes, at, row["tflops_per_rank"], f"{of_single:.0f}%" if of_single > 0 else "")
        for name, rate in row["peers"].items():
            text, color = PEERS.get(name, (name, GREY))
            axes.plot([rate, rate], [at - 0.4, at + 0.4], color=color, linewidth=2, label=text)
    axes.set_xlabel("TFLOP/s a rank, % of one alone")


def draw_bytes(axes, rows):
    for at, row in enumerate(rows):
        axes.barh(at, row["bytes_sent"] / 1e6, color=ORANGE, label="bytes sent")
        same = row["bytes_sent"] == row["planned_bytes"]
        label(axes, at, row["bytes_sent"] / 1e6,
              f"{row['bytes_sent'] / 1e6:,.4g}"
              + ("" if same else f", planned {row['planned_bytes'] / 1e6:,.4g}"))
    axes.set_xlabel("sent by all ranks, MB")


def draw_balance(axes, rows):
    for at, row in enumerate(rows):
        axes.barh(at, row["max_over_mean_work"], color=BLUE, label="work")
        label(axes, at, row["max_over_mean_work"], f"{row['max_over_mean_work']:.2f}")
    axes.axvline(1.05, color=GREY, linestyle="--", linewidth=1)
    axes.set_xlabel("work, max / mean (dashed: 1.05)")


def add_legend(axes):
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    unique = dict(zip(names, handles))
    axes.legend(unique.values(), unique, fontsize=7, loc="lower right", ncols=2,
                bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def merged(rows):
    """A row for each run, its peers' rates by name."""
    runs = []
    for of in groups(rows, *PROBLEM, "plan", "transport", "world", "ms").values():
        runs.append(dict(of[0], peers={row["peer"]: row["peer_tflops_per_rank"]
                                       for row in of if row.get("peer")}))
    return runs


def draw(rows):
    rows = merged(rows)
    problems = groups(rows, *PROBLEM)
    panels = (draw_time, draw_rate, draw_bytes, draw_balance)
    heights = [0.28 * len(of) + 0.9 for of in problems.values()]
    figure, grid = plt.subplots(len(problems), len(panels), squeeze=False, sharey="row",
                                figsize=(14, sum(heights)),
                                gridspec_kw={"height_ratios": heights})
    for line, (problem, of) in zip(grid, problems.items()):
        for axes, panel in zip(line, panels):
            panel(axes, of)
            axes.grid(axis="y", visible=False)
            axes.margins(x=0.18)
        add_legend(line[0])
        add_legend(line[1])
        line[0].invert_yaxis()  # the panels share this axis
        line[0].set_yticks(range(len(of)), [f"{row['plan']}{chosen(row)}, {row['transport']}, "
                                            f"{row['world']:.0f} ranks" for row in of])
        line[2].set_title(title_of(*problem), loc="left", fontweight="bold")
    return figure
