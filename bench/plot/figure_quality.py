"""annulus quality's rows: a line for each pattern. What it reads and keeps of dense attention, where
needles are found by depth, and the share of MQAR's questions that it answers. Tasks that were not
asked for have no panel, and a row that has no figure has no bar."""

from style import BLUE, GREEN, GREY, ORANGE, VERMILION, plt

PROGRAM = "annulus quality"
COLUMNS = {"pattern": str, "density": float, "mass": float, "error": float, "decode_bytes": float,
           "needle_asked": float, "needle_places": str, "mqar_asked": float, "mqar_found": float}
OPTIONAL = tuple(name for name in COLUMNS if name != "pattern")
POSITIVE = ("density", "decode_bytes", "needle_asked", "mqar_asked")
PLACES = {"+": GREEN, "o": ORANGE, ".": "#e8e8e8"}
NOTHING = ("", None)


def draw_bars(axes, title, values, color):
    axes.barh(range(len(values)), [value or 0 for value in values], 0.6, color=color)
    for line, value in enumerate(values):
        text = "–" if value is None else f"{value:.2f}"
        axes.text(min(value or 0, 1.0) + 0.03, line, text, va="center", fontsize=7)
    axes.set_xlim(0, 1.25)
    axes.set_xticks((0, 0.5, 1))
    axes.set_title(title, loc="left")
    axes.grid(axis="y", visible=False)


def draw_needles(axes, rows):
    for line, row in enumerate(rows):
        for depth, place in enumerate(row["needle_places"] or ""):
            axes.barh(line, 0.9, 0.6, left=depth, color=PLACES.get(place, GREY))
    axes.set_xlim(0, max(row["needle_asked"] or 0 for row in rows))
    axes.set_xticks(())
    axes.set_title("needles found, first to last token", loc="left")
    axes.grid(visible=False)


def bars(title, values, color):
    """A panel's width and what draws it; None where no row has a value."""
    if all(value is None for value in values):
        return None
    return 1, lambda axes: draw_bars(axes, title, values, color)


def draw(rows):
    def values(name):
        return [None if row[name] in NOTHING else row[name] for row in rows]
    answered = [None if row["mqar_asked"] in NOTHING else row["mqar_found"] / row["mqar_asked"]
                for row in rows]
    needles = any(row["needle_asked"] not in NOTHING for row in rows)
    panels = [
        bars("pairs, of dense", values("density"), BLUE),
        bars("bytes of a decode step", values("decode_bytes"), BLUE),
        bars("weights kept", values("mass"), GREEN),
        bars("error of the output", values("error"), VERMILION),
        (1.6, lambda axes: draw_needles(axes, rows)) if needles else None,
        bars("MQAR answered", answered, GREEN),
    ]
    panels = [panel for panel in panels if panel] or [(1, lambda axes: axes.set_xticks(()))]
    figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False,
                                figsize=(3 + 2 * len(panels), 0.34 * len(rows) + 1.2),
                                gridspec_kw={"width_ratios": [width for width, _ in panels]})
    for place, (_, draw_panel) in zip(axes[0], panels):
        draw_panel(place)
    axes[0][0].set_yticks(range(len(rows)), [row["pattern"] for row in rows], fontsize=7.5)
    axes[0][0].invert_yaxis()
    return figure
