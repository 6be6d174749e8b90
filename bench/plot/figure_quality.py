"""annulus quality's rows: a line for each pattern. What it reads and keeps of dense attention, where
needles are found by depth, and the share of MQAR's questions that it answers."""

from style import BLUE, GREEN, GREY, ORANGE, VERMILION, plt

PROGRAM = "annulus quality"
COLUMNS = {"pattern": str, "density": float, "mass": float, "error": float, "decode_bytes": float,
           "needle_asked": float, "needle_places": str, "mqar_asked": float, "mqar_found": float}
POSITIVE = ("density", "decode_bytes", "needle_asked", "mqar_asked")
PLACES = {"+": GREEN, "o": ORANGE, ".": "#e8e8e8"}


def draw_bars(axes, title, values, color):
    axes.barh(range(len(values)), values, 0.6, color=color)
    for line, value in enumerate(values):
        axes.text(min(value, 1.0) + 0.03, line, f"{value:.2f}", va="center", fontsize=7)
    axes.set_xlim(0, 1.25)
    axes.set_xticks((0, 0.5, 1))
    axes.set_title(title, loc="left")
    axes.grid(axis="y", visible=False)


def draw_needles(axes, rows):
    for line, row in enumerate(rows):
        for depth, place in enumerate(row["needle_places"]):
            axes.barh(line, 0.9, 0.6, left=depth, color=PLACES.get(place, GREY))
    axes.set_xlim(0, rows[0]["needle_asked"])
    axes.set_xticks(())
    axes.set_title("needles found, first to last token", loc="left")
    axes.grid(visible=False)


def draw(rows):
    figure, panels = plt.subplots(1, 6, sharey=True, figsize=(15, 0.34 * len(rows) + 1.2),
                                  gridspec_kw={"width_ratios": (1, 1, 1, 1, 1.6, 1)})
    draw_bars(panels[0], "pairs, of dense", [row["density"] for row in rows], BLUE)
    draw_bars(panels[1], "bytes of a decode step", [row["decode_bytes"] for row in rows], BLUE)
    draw_bars(panels[2], "weights kept", [row["mass"] for row in rows], GREEN)
    draw_bars(panels[3], "error of the output", [row["error"] for row in rows], VERMILION)
    draw_needles(panels[4], rows)
    draw_bars(panels[5], "MQAR answered",
              [row["mqar_found"] / row["mqar_asked"] for row in rows], GREEN)
    panels[0].set_yticks(range(len(rows)), [row["pattern"] for row in rows], fontsize=7.5)
    panels[0].invert_yaxis()
    return figure
