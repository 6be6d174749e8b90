"""annulus_scale's rows: one line of panels per scenario. First how efficient it is over the number
of ranks, one line per series; then, per series, which terms the time of a step goes to."""

import math

from style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, groups, plt, tokens

PROGRAM = "annulus_scale"
COLUMNS = {"scenario": str, "scaling": str, "series_tokens": float, "plan": str, "pattern": str,
           "world": float, "ms": float, "work_ms": float, "overhead_ms": float, "imbalance_ms": float,
           "bandwidth_ms": float, "latency_ms": float, "efficiency": float,
           "heads": float, "kv_heads": float, "head_dim": float, "dtype": str}
OPTIONAL = ("efficiency",)  # empty where the pattern shows nothing
POSITIVE = ("world", "ms")
TERMS = (("work_ms", "work", BLUE), ("overhead_ms", "launches and partials", SKY),
         ("imbalance_ms", "imbalance", ORANGE),
         ("bandwidth_ms", "exposed bytes", VERMILION), ("latency_ms", "message latency", PURPLE))
LINES = ((BLACK, "o", "-"), (GREEN, "s", "--"), (PURPLE, "^", ":"))


def series_name(scaling, count):
    return f"{scaling}, {tokens(count)} tokens {'a rank' if scaling == 'weak' else 'in all'}"


def duration(ms):
    """In the unit that fits, which stands below the number: bars are narrow."""
    for unit, scale in (("s", 1e3), ("ms", 1), ("µs", 1e-3)):
        if ms >= scale:
            break
    return f"{ms / scale:.3g}\n{unit}"


def efficiencies(rows):
    """In percent; NaN, which is not drawn, where there is none."""
    return [math.nan if row["efficiency"] in ("", None) else 100 * row["efficiency"] for row in rows]


def draw_efficiency(axes, series):
    for (color, marker, dash), ((scaling, count), rows) in zip(LINES * 9, series.items()):
        axes.plot(range(len(rows)), efficiencies(rows), color=color,
                  marker=marker, linestyle=dash, markersize=4,
                  label=series_name(scaling, count))
    axes.set_ylim(0, 105)
    axes.set_ylabel("of the compute limit, %")
    axes.legend(fontsize=8, loc="best")


def draw_terms(axes, rows):
    below = [0.0] * len(rows)
    for column, name, color in TERMS:
        shares = [100 * row[column] / row["ms"] for row in rows]
        axes.bar(range(len(rows)), shares, 0.75, bottom=below, color=color, label=name)
        below = [b + s for b, s in zip(below, shares)]
    for at, row in enumerate(rows):
        axes.text(at, 101, duration(row["ms"]), ha="center", va="bottom", fontsize=6.5,
                  linespacing=0.9)
    axes.set_ylim(0, 115)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("share of the time, %")
    axes.grid(axis="x", visible=False)


def draw(rows):
    scenarios = groups(rows, "scenario", "plan", "pattern")
    columns = 1 + max(len(groups(of, "scaling", "series_tokens")) for of in scenarios.values())
    figure, grid = plt.subplots(len(scenarios), columns, squeeze=False,
                                figsize=(3.4 * columns, 2.7 * len(scenarios) + 0.5))
    for line, ((scenario, plan, pattern), of) in zip(grid, scenarios.items()):
        series = groups(of, "scaling", "series_tokens")
        for axes in line[1 + len(series):]:
            axes.axis("off")
        draw_efficiency(line[0], series)
        line[0].set_title(f"{scenario}: plan {plan}, {pattern}", loc="left", fontweight="bold")
        panels = [(line[0], max(series.values(), key=len))]
        for axes, ((scaling, count), part) in zip(line[1:], series.items()):
            draw_terms(axes, part)
            axes.set_title(series_name(scaling, count), loc="left")
            panels.append((axes, part))
        for axes, part in panels:
            axes.set_xticks(range(len(part)), [str(int(row["world"])) for row in part])
            axes.set_xlabel("ranks")
    handles, names = grid[0][1].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper right", ncols=len(names))
    shape = rows[0]
    figure.suptitle(f"Simulated scaling: {shape['heads']:.0f}/{shape['kv_heads']:.0f} heads of "
                    f"{shape['head_dim']:.0f}, {shape['dtype']}", x=0.01, ha="left",
                    fontweight="bold")
    return figure
